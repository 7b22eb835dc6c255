"""The run of a method over a data set: every picture is read, given to the method, scored and counted.

Beside the method stand the untouched composite and, where wanted, references that need no network.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from scsco_fast.data.samples import BadSample, Batch, Sample, collate
from scsco_fast.data.workers import ignore_interrupts, interrupted_afterwards
from scsco_fast.errors import ScscoError
from scsco_fast.evaluation.baselines import BASELINES, full_name
from scsco_fast.evaluation.metrics import score, with_background
from scsco_fast.evaluation.protocols import Protocol, protocol_named
from scsco_fast.evaluation.results import Evaluation
from scsco_fast.evaluation.rows import Row, row_writer
from scsco_fast.evaluation.triplets import Triplet, Triplets
from scsco_fast.regions import THRESHOLD

Model = Callable[[Tensor, Tensor], Tensor]
Samples = Dataset[Sample | BadSample] | Iterable[Sample | BadSample]
Item = Sample | BadSample


def evaluate(
    model: Model | None,
    dataset: Samples,
    *,
    protocol: str = "strict",
    baselines: Sequence[str] = (),
    untouched: bool = False,
    repeat: int = 1,
    csv: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    batch_size: int = 8,
    workers: int = 0,
    progress: Callable[[int, int | None], None] | None = None,
    on_row: Callable[[Row], None] | None = None,
    on_bad: Callable[[BadSample], None] | None = None,
) -> Evaluation:
    """Score a method's output and the untouched composite of every sample, one batch in memory at a time.

    Rows are written as they come. Of each picture a few numbers are kept, for medians and intervals, and no pixels.

    Args:
        model: `model(composite, mask)` -> output, (B, 3, H, W) and (B, 1, H, W) in [0, 1]; a module is put in eval mode
            for the time. None scores the predictions of a `Triplets` that has some, else the composite itself.
        dataset: a dataset or any iterable of `Sample` and `BadSample`. Where its `size` is None or missing the pictures
            may differ in size and go one by one. Only a `Triplets` is read as the protocol reads files; other samples
            are scored as they are.
        protocol: a name of `scsco_fast.evaluation.protocols.PROTOCOLS`.
        baselines: names of `scsco_fast.evaluation.baselines.BASELINES`, to be scored on the same pictures.
        untouched: give the real picture to model and baselines instead of the composite. What they change in it is
            damage, since it already is the right answer.
        repeat: how many times the model is applied, each time but the first to its own output, clamped to [0, 1]. The
            metrics are those of the first output; of the later ones the MSE is kept.
        csv: file for a row per picture; it takes its name when it is complete. Infinite is `inf`, undefined is `nan`.
        device: where the model is.
        batch_size: pictures at a time.
        workers: processes that read a dataset's samples; 0 reads them here.
        progress: called with the number of samples done, and in all where that is known.
        on_row: called with each `Row`.
        on_bad: called with each sample that cannot be used.

    Raises:
        ScscoError: no sample could be used, the model's output has another shape or is not finite, the protocol or a
            baseline is unknown, the protocol is not the dataset's, `repeat` or `untouched` ask for a model and there is
            none, the CSV cannot be written.

    Examples:
        >>> from scsco_fast.data import Sample
        >>> real, mask = torch.rand(3, 16, 16), torch.zeros(1, 16, 16)
        >>> mask[:, :8] = 1
        >>> sample = Sample((real + 0.2 * mask).clamp(0, 1), real, mask, "one", "synthetic")
        >>> evaluate(lambda composite, mask: composite - 0.1 * mask, [sample]).title()
        '1 pictures, protocol strict, full resolution'
    """
    chosen = protocol_named(protocol)
    if isinstance(dataset, Triplets) and dataset.protocol != chosen:
        raise ScscoError(f"the pictures are read for protocol {dataset.protocol.name} but scored for {protocol}")
    size = getattr(dataset, "size", None)
    total = len(dataset) if isinstance(dataset, Sized) else None
    names = tuple(dict.fromkeys(map(full_name, baselines)))
    evaluation = replace(_evaluation(model, dataset, chosen), baselines=names, untouched=untouched, repeat=repeat)
    _check_asked(evaluation)
    batches = _batches(dataset, 1 if size is None else batch_size, workers)
    done = 0
    with row_writer(csv, evaluation.extra_columns) as write, _eval_mode(model):
        for items in batches:
            for sample in (item for item in items if isinstance(item, BadSample)):
                evaluation.add_bad(sample)
                if on_bad is not None:
                    on_bad(sample)
            for row in _score_batch(model, [item for item in items if isinstance(item, Sample)], evaluation, device):
                evaluation.add(row)
                write(row)
                if on_row is not None:
                    on_row(row)
            done += len(items)
            if progress is not None:
                progress(done, total)
        if not evaluation.pictures:
            first = f"; first: {evaluation.bad[0].name}: {evaluation.bad[0].reason}" if evaluation.bad else ""
            raise ScscoError(f"none of the {done} samples can be evaluated{first}")
    return evaluation


def _evaluation(model: Model | None, dataset: Samples, protocol: Protocol) -> Evaluation:
    triplets = dataset if isinstance(dataset, Triplets) else None
    predicted = triplets is not None and triplets.predictions is not None
    if model is not None and predicted:
        raise ScscoError("a model and a folder of predictions were given; one of them is wanted")
    return Evaluation(
        protocol=protocol,
        resolution=str(getattr(dataset, "size", None) or "full"),
        scored="model" if model is not None else "predictions" if predicted else "identity",
        split=None if triplets is None else triplets.split,
        unpredicted=[] if triplets is None else triplets.unpredicted,
    )


def _check_asked(evaluation: Evaluation) -> None:
    if evaluation.repeat < 1:
        raise ScscoError(f"repeat is {evaluation.repeat}; at least 1 is wanted")
    if evaluation.repeat > 1 and evaluation.scored != "model":
        raise ScscoError(f"repeat is {evaluation.repeat}, but there is no model to give its output to; give one")
    if evaluation.untouched and evaluation.scored == "predictions":
        raise ScscoError("predictions were made of composites, so they say nothing about real pictures; give a model")
    if evaluation.untouched and evaluation.scored == "identity" and not evaluation.baselines:
        raise ScscoError("nothing is applied to the real pictures; give a model or a baseline")


def _batches(dataset: Samples, batch_size: int, workers: int) -> Iterator[list[Item]]:
    if isinstance(dataset, Dataset):
        ordered = not isinstance(dataset, IterableDataset)
        workers = workers if ordered else 0
        loader = DataLoader(dataset, batch_size, num_workers=workers, collate_fn=list, worker_init_fn=ignore_interrupts)
        with interrupted_afterwards():  # its processes are forked here
            ready = iter(loader)
        yield from ready
        return
    items = iter(dataset)
    while batch := list(islice(items, batch_size)):
        yield batch


@contextmanager
def _eval_mode(model: Model | None) -> Iterator[None]:
    training = isinstance(model, nn.Module) and model.training
    if isinstance(model, nn.Module):
        model.eval()
    try:
        yield
    finally:
        if training and isinstance(model, nn.Module):
            model.train()


@torch.inference_mode()
def _score_batch(
    model: Model | None, samples: Sequence[Sample], evaluation: Evaluation, device: str | torch.device
) -> Iterator[Row]:
    if not samples:
        return
    protocol = evaluation.protocol
    batch = collate(samples)
    picture = batch.real if evaluation.untouched else batch.composite
    given = with_background(picture, batch.real, batch.mask, protocol)
    outputs = [] if model is None else _passes(model, given, batch, evaluation, device)
    references = {name: BASELINES[name](given, batch.mask) for name in evaluation.baselines}
    for index, sample in enumerate(samples):
        output = outputs[0][index] if outputs else getattr(sample, "prediction", None)
        scores = partial(score, real=sample.real, mask=sample.mask, protocol=protocol)
        try:
            untouched = scores(given[index])
            ours = untouched if output is None else scores(output)
            theirs = {name: scores(reference[index]) for name, reference in references.items()}
            repeats = tuple(scores(later[index])["mse"] for later in outputs[1:])
        except ScscoError as error:
            raise ScscoError(f"{sample.name}: {error}") from error
        yield replace(_row(sample, ours, untouched, evaluation), baselines=theirs, repeats=repeats)


def _passes(
    model: Model, given: Tensor, batch: Batch, evaluation: Evaluation, device: str | torch.device
) -> list[Tensor]:
    """The model's output, its output for that, and so on: one for each repeat."""
    outputs: list[Tensor] = []
    for _ in range(evaluation.repeat):
        output = model(given.to(device), batch.mask.to(device))
        if output.shape != given.shape:
            raise ScscoError(
                f"the model's output for {batch.names[0]} has shape {tuple(output.shape)}, "
                f"{tuple(given.shape)} is wanted"
            )
        outputs.append(output)
        given = with_background(output.to(given).clamp(0, 1), batch.real, batch.mask, evaluation.protocol)
    return outputs


def _row(sample: Sample, ours: dict[str, float], untouched: dict[str, float], evaluation: Evaluation) -> Row:
    height, width = sample.real.shape[1:]
    if isinstance(sample, Triplet):
        width, height, ratio = sample.width, sample.height, sample.foreground_ratio
    else:
        ratio = float((sample.mask > THRESHOLD).double().mean())
    values: dict[str, Any] = {**ours, **{f"composite_{metric}": value for metric, value in untouched.items()}}
    return Row(
        sample.name,
        sample.subset,
        width,
        height,
        ratio,
        protocol=evaluation.protocol.name,
        resolution=evaluation.resolution,
        **values,
    )
