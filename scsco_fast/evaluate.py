"""Metrics of a method over a dataset, beside the untouched composite's: per picture, subset and foreground size."""

from __future__ import annotations

import csv as csv_module
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from scsco_fast.data.layouts import SUBSETS
from scsco_fast.data.samples import BadSample, Sample, collate
from scsco_fast.errors import ScscoError
from scsco_fast.files import replacing
from scsco_fast.metrics import METRICS, score, with_background
from scsco_fast.protocols import Protocol, protocol_named
from scsco_fast.published import PUBLISHED, TEST_PICTURES
from scsco_fast.regions import THRESHOLD
from scsco_fast.triplets import Triplet, Triplets

if TYPE_CHECKING:
    from rich.table import Table

Model = Callable[[Tensor, Tensor], Tensor]
Samples = Dataset[Sample | BadSample] | Iterable[Sample | BadSample]
Item = Sample | BadSample

# Foreground share in percent, (low, high].
FOREGROUND_BINS = ((0, 5), (5, 15), (15, 100))
NAMES_KEPT = 100  # of samples that cannot be used; the rest are counted

_LABELS = {"mse": "MSE", "psnr": "PSNR", "fmse": "fMSE", "fpsnr": "fPSNR", "ssim": "SSIM"}


@dataclass(frozen=True)
class Row:
    """One picture: its size and the share of its foreground in [0, 1], the output's metrics, the composite's.

    Without a method the output is the composite. For files, size and share are those of the file, whatever resolution
    is scored.
    """

    name: str
    subset: str
    width: int
    height: int
    foreground_ratio: float
    mse: float
    psnr: float
    fmse: float
    fpsnr: float
    ssim: float
    composite_mse: float
    composite_psnr: float
    composite_fmse: float
    composite_fpsnr: float
    composite_ssim: float
    protocol: str
    resolution: str


VALUES = tuple(prefix + metric for prefix in ("", "composite_") for metric in METRICS)


@dataclass(frozen=True)
class Summary:
    """Means over one group of pictures; the keys of `means` are `Row`'s metrics.

    A mean leaves out infinite and undefined values: the PSNR of a picture without any error, the SSIM of one smaller
    than its window. It is NaN where nothing is left. `left_out` counts them, for each metric that has some.
    """

    group: str
    pictures: int
    means: dict[str, float]
    left_out: dict[str, int]


@dataclass
class _Group:
    """Running sums over one group."""

    pictures: int = 0
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(VALUES, 0.0))
    finite: dict[str, int] = field(default_factory=lambda: dict.fromkeys(VALUES, 0))

    def add(self, row: Row) -> None:
        self.pictures += 1
        for name in VALUES:
            value = getattr(row, name)
            if math.isfinite(value):
                self.sums[name] += value
                self.finite[name] += 1

    def summary(self, group: str) -> Summary:
        means = {name: self.sums[name] / self.finite[name] if self.finite[name] else math.nan for name in VALUES}
        left_out = {name: self.pictures - self.finite[name] for name in VALUES if self.finite[name] < self.pictures}
        return Summary(group, self.pictures, means, left_out)


@dataclass
class Evaluation:
    """What `evaluate` measured: sums per group, no pictures and no rows, so its size does not grow with the dataset.

    Attributes:
        protocol: of the metrics.
        resolution: "full", or the side in pixels that was scored, as text.
        scored: what the metrics without prefix are of: a "model", "predictions", or "identity", the untouched
            composites.
        split: "train", "test", or None where the dataset has no parts.
        bad: the first `NAMES_KEPT` samples that could not be used; `bad_count` is how many there were.
        unpredicted: names of the composites without a prediction; they are in no mean.
    """

    protocol: Protocol
    resolution: str
    scored: Literal["model", "predictions", "identity"]
    split: str | None = None
    bad: list[BadSample] = field(default_factory=list)
    bad_count: int = 0
    unpredicted: list[str] = field(default_factory=list)
    _subsets: dict[str, _Group] = field(default_factory=dict)
    _bins: dict[tuple[int, int], _Group] = field(default_factory=dict)
    _all: _Group = field(default_factory=_Group)

    @property
    def pictures(self) -> int:
        """How many pictures are in the means."""
        return self._all.pictures

    def add(self, row: Row) -> None:
        """Count one picture."""
        bins = [(low, high) for low, high in FOREGROUND_BINS if low < 100 * row.foreground_ratio <= high]
        groups = [self._all, self._subsets.setdefault(row.subset, _Group())]
        groups += [self._bins.setdefault(limits, _Group()) for limits in bins]
        for group in groups:
            group.add(row)

    def add_bad(self, sample: BadSample) -> None:
        """Count one sample that could not be used."""
        self.bad_count += 1
        if len(self.bad) < NAMES_KEPT:
            self.bad.append(sample)

    def summaries(self) -> list[Summary]:
        """Means per subset (where there are several), per foreground bin, and over all, in this order."""
        subsets = sorted(self._subsets) if len(self._subsets) > 1 else []
        parts = [self._subsets[subset].summary(subset) for subset in subsets]
        parts += [
            self._bins[low, high].summary(f"foreground {low}-{high} %")
            for low, high in FOREGROUND_BINS
            if (low, high) in self._bins
        ]
        return [*parts, self._all.summary("all")]

    def improvement(self) -> str:
        """One line: how far the output's mean MSE is below the composite's, and its mean PSNR above.

        Raises:
            ScscoError: only the untouched composites were scored.
        """
        if self.scored == "identity":
            raise ScscoError("no model was evaluated, so there is no improvement to state; give one")
        means = self.summaries()[-1].means
        before, after = means["composite_mse"], means["mse"]
        psnr_before, psnr_after = means["composite_psnr"], means["psnr"]
        change = f" ({100 * (after / before - 1):+.1f} %)" if before > 0 else ""
        return (
            f"mean MSE {before:.2f} -> {after:.2f}{change}, "
            f"mean PSNR {psnr_before:.2f} -> {psnr_after:.2f} dB ({psnr_after - psnr_before:+.2f} dB) "
            f"over {self.title()}"
        )

    def title(self) -> str:
        """Number of pictures, protocol, resolution, and what is left out."""
        resolution = "full resolution" if self.resolution == "full" else f"{self.resolution}x{self.resolution}"
        parts = [f"{self.pictures} pictures, protocol {self.protocol.name}, {resolution}"]
        parts += [f"{self.bad_count} bad"] if self.bad_count else []
        parts += [f"{len(self.unpredicted)} without prediction"] if self.unpredicted else []
        return ", ".join(parts)

    def table(self) -> Table:
        """The summaries as a rich table."""
        from rich.table import Table

        table = Table(title=self.title(), caption=f"{self.protocol.name}: {self.protocol.describe()}")
        table.add_column("group")
        table.add_column("pictures", justify="right")
        prefixes = [("composite", "composite_"), *([] if self.scored == "identity" else [("output", "")])]
        for label, _ in prefixes:
            for metric in METRICS:
                table.add_column(f"{label}\n{_LABELS[metric]}", justify="right")
        for summary in self.summaries():
            cells = [cell(metric, summary.means[prefix + metric]) for _, prefix in prefixes for metric in METRICS]
            table.add_row(summary.group, str(summary.pictures), *cells)
        return table

    def published(self) -> list[tuple[str, str, int, str, dict[str, float | None]]]:
        """Rows of published methods beside this run: method, group, pictures, protocol, MSE, PSNR and fMSE.

        Only for iHarmony4's test split at 256x256, per subset and, where all four subsets are there, over all; else
        empty. The number of pictures stands in each row: ours may be fewer.
        """
        names = set(self._subsets)
        if self.split != "test" or self.resolution != "256" or not names or not names <= set(SUBSETS):
            return []
        rows: list[tuple[str, str, int, str, dict[str, float | None]]] = []
        for group in [*sorted(names), *(["all"] if names == set(SUBSETS) else [])]:
            for entry in PUBLISHED:
                if entry.group == group:
                    means: dict[str, float | None] = {"mse": entry.mse, "psnr": entry.psnr, "fmse": entry.fmse}
                    rows.append((entry.method, group, TEST_PICTURES[group], entry.protocol, means))
            ours = (self._all if group == "all" else self._subsets[group]).summary(group)
            said = "untouched composites" if self.scored == "identity" else f"this {self.scored.rstrip('s')}"
            own: dict[str, float | None] = {metric: ours.means[metric] for metric in ("mse", "psnr", "fmse")}
            rows.append((said, group, ours.pictures, self.protocol.name, own))
        return rows

    def published_table(self) -> Table | None:
        """`published` as a rich table, or None where it is empty."""
        from rich.table import Table

        rows = self.published()
        if not rows:
            return None
        table = Table(title="beside published results at 256x256; only rows of one protocol can be compared")
        for name in ("group", "method", "pictures", "protocol", "MSE", "PSNR", "fMSE"):
            table.add_column(name, justify="left" if name in ("group", "method", "protocol") else "right")
        for method, group, pictures, protocol, means in rows:
            cells = [cell(metric, value) for metric, value in means.items()]
            table.add_row(group, method, str(pictures), protocol, *cells)
        return table

    def write_json(self, path: str | os.PathLike[str]) -> None:
        """Write the summaries, the protocol's choices and what was left out; whole or not at all.

        An infinite or undefined value is null.

        Raises:
            ScscoError: the file cannot be written; the message names it.
        """
        content = {
            "protocol": self.protocol.name,
            "resolution": self.resolution,
            "choices": asdict(self.protocol),
            "scored": self.scored,
            "split": self.split,
            "pictures": self.pictures,
            "improvement": None if self.scored == "identity" else self.improvement(),
            "summaries": [asdict(summary) for summary in self.summaries()],
            "published": [
                {"method": method, "group": group, "pictures": pictures, "protocol": protocol, **means}
                for method, group, pictures, protocol, means in self.published()
            ],
            "bad_count": self.bad_count,
            "bad": [asdict(sample) for sample in self.bad],
            "without_prediction": self.unpredicted,
        }
        with replacing(os.fspath(path)) as temporary, open(temporary, "w", encoding="utf-8") as file:
            json.dump(_finite(content), file, indent=1, allow_nan=False)


def evaluate(
    model: Model | None,
    dataset: Samples,
    *,
    protocol: str = "strict",
    csv: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    batch_size: int = 8,
    workers: int = 0,
    progress: Callable[[int, int | None], None] | None = None,
    on_row: Callable[[Row], None] | None = None,
    on_bad: Callable[[BadSample], None] | None = None,
) -> Evaluation:
    """Score a method's output and the untouched composite of every sample, one batch in memory at a time.

    Rows are written as they come and only their sums are kept, so memory does not grow with the dataset.

    Args:
        model: `model(composite, mask)` -> output, (B, 3, H, W) and (B, 1, H, W) in [0, 1]; a module is put in eval mode
            for the time. None scores the predictions of a `Triplets` that has some, else the composite itself.
        dataset: a dataset or any iterable of `Sample` and `BadSample`. Where its `size` is None or missing the pictures
            may differ in size and go one by one. Only a `Triplets` is read as the protocol reads files; other samples
            are scored as they are.
        protocol: a name of `scsco_fast.protocols.PROTOCOLS`.
        csv: file for a row per picture; it takes its name when it is complete. Infinite is `inf`, undefined is `nan`.
        device: where the model is.
        batch_size: pictures at a time.
        workers: processes that read a dataset's samples; 0 reads them here.
        progress: called with the number of samples done, and in all where that is known.
        on_row: called with each `Row`.
        on_bad: called with each sample that cannot be used.

    Raises:
        ScscoError: no sample could be used, the model's output has another shape or is not finite, the protocol is
            unknown or not the dataset's, the CSV cannot be written.

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
    evaluation = _evaluation(model, dataset, chosen)
    batches = _batches(dataset, 1 if size is None else batch_size, workers)
    done = 0
    with _row_writer(csv) as write, _eval_mode(model):
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


def _batches(dataset: Samples, batch_size: int, workers: int) -> Iterator[list[Item]]:
    if isinstance(dataset, Dataset):
        ordered = not isinstance(dataset, IterableDataset)
        loader = DataLoader(dataset, batch_size, num_workers=workers if ordered else 0, collate_fn=list)
        yield from loader
        return
    items = iter(dataset)
    while batch := list(islice(items, batch_size)):
        yield batch


@contextmanager
def _row_writer(path: str | os.PathLike[str] | None) -> Iterator[Callable[[Row], None]]:
    """A function that writes a row to the CSV file, which takes its place when all went well."""
    if path is None:
        yield lambda row: None
        return
    names = [entry.name for entry in fields(Row)]
    with (
        replacing(os.fspath(path)) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv_module.writer(file)
        writer.writerow(names)
        yield lambda row: writer.writerow([getattr(row, name) for name in names])


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
    composite = with_background(batch.composite, batch.real, batch.mask, protocol)
    outputs = None
    if model is not None:
        outputs = model(composite.to(device), batch.mask.to(device))
        if outputs.shape != composite.shape:
            raise ScscoError(
                f"the model's output for {batch.names[0]} has shape {tuple(outputs.shape)}, "
                f"{tuple(composite.shape)} is wanted"
            )
    for index, sample in enumerate(samples):
        output = getattr(sample, "prediction", None) if outputs is None else outputs[index]
        try:
            untouched = score(composite[index], sample.real, sample.mask, protocol)
            ours = untouched if output is None else score(output, sample.real, sample.mask, protocol)
        except ScscoError as error:
            raise ScscoError(f"{sample.name}: {error}") from error
        yield _row(sample, ours, untouched, evaluation)


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


def cell(metric: str, value: float | None) -> str:
    """A metric's value for a table; empty for None."""
    if value is None:
        return ""
    return f"{value:.4f}" if metric == "ssim" else f"{value:.2f}"


def _finite(value: Any) -> Any:
    """The same with None for every number that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
