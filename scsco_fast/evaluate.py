"""A model's metrics over a dataset, beside the untouched composite's: per picture, subset and foreground size."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from scsco_fast.data.layouts import SUBSETS
from scsco_fast.data.samples import BadSample, Batch, Sample, collate
from scsco_fast.errors import ScscoError
from scsco_fast.files import replacing
from scsco_fast.metrics import METRICS, PROTOCOLS, score
from scsco_fast.regions import THRESHOLD

if TYPE_CHECKING:
    from rich.table import Table

Model = Callable[[Tensor, Tensor], Tensor]

# Foreground share in percent, (low, high].
FOREGROUND_BINS = ((0, 5), (5, 15), (15, 100))

# SCS-Co's published results on iHarmony4's test set at 256x256, (MSE, PSNR, fMSE); the protocol was not published.
PUBLISHED = {
    "HCOCO": (13.58, 39.88, 245.54),
    "HAdobe5k": (21.01, 38.29, 165.48),
    "HFlickr": (55.83, 34.22, 393.72),
    "Hday2night": (41.75, 37.83, 606.80),
    "all": (21.33, 38.75, 248.86),
}


@dataclass(frozen=True)
class Row:
    """One picture: `foreground` in percent of its pixels, the model's metrics (or None), the untouched composite's."""

    name: str
    subset: str
    width: int
    height: int
    foreground: float
    mse: float | None
    fmse: float | None
    psnr: float | None
    fpsnr: float | None
    ssim: float | None
    composite_mse: float
    composite_fmse: float
    composite_psnr: float
    composite_fpsnr: float
    composite_ssim: float


@dataclass(frozen=True)
class Summary:
    """Means over one group of pictures; the keys of `means` are `Row`'s metrics."""

    group: str
    pictures: int
    means: dict[str, float | None]


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured.

    Attributes:
        rows: one per picture, in the dataset's order.
        bad: samples that could not be used; they are in no mean.
        protocol: name of the metrics' protocol.
        has_model: False where only the composite was measured.
    """

    rows: list[Row]
    bad: list[BadSample]
    protocol: str
    has_model: bool

    def summaries(self) -> list[Summary]:
        """Means per subset (where there are several), per foreground bin, and over all, in this order.

        A mean leaves out infinite and undefined values: the PSNR of a picture without any error, the SSIM of one
        smaller than its window. It is NaN where nothing is left.
        """
        groups: list[tuple[str, list[Row]]] = []
        subsets = sorted({row.subset for row in self.rows})
        if len(subsets) > 1:
            groups += [(subset, [row for row in self.rows if row.subset == subset]) for subset in subsets]
        for low, high in FOREGROUND_BINS:
            rows = [row for row in self.rows if low < row.foreground <= high]
            groups += [(f"foreground {low}-{high} %", rows)] if rows else []
        return [_summarize(group, rows) for group, rows in [*groups, ("all", self.rows)]]

    def improvement(self) -> str:
        """One line: how far the model's mean MSE is below the composite's, and its mean PSNR above.

        Raises:
            ScscoError: there was no model.
        """
        means = self.summaries()[-1].means
        before, after = means["composite_mse"], means["mse"]
        psnr_before, psnr_after = means["composite_psnr"], means["psnr"]
        if before is None or after is None or psnr_before is None or psnr_after is None:
            raise ScscoError("no model was evaluated, so there is no improvement to state; give one")
        change = f" ({100 * (after / before - 1):+.1f} %)" if before > 0 else ""
        return (
            f"mean MSE {before:.2f} -> {after:.2f}{change}, "
            f"mean PSNR {psnr_before:.2f} -> {psnr_after:.2f} dB ({psnr_after - psnr_before:+.2f} dB) "
            f"over {len(self.rows)} pictures, protocol {self.protocol}"
        )

    def table(self) -> Table:
        """The summaries as a rich table; SCS-Co's published row is added where the subsets are iHarmony4's."""
        from rich.table import Table

        title = f"{len(self.rows)} pictures, protocol {self.protocol}" + (f", {len(self.bad)} bad" if self.bad else "")
        table = Table(title=title)
        table.add_column("group")
        table.add_column("pictures", justify="right")
        prefixes = [("composite", "composite_"), *([("output", "")] if self.has_model else [])]
        for label, _ in prefixes:
            for metric in METRICS:
                table.add_column(f"{label}\n{_LABELS[metric]}", justify="right")
        for summary in self.summaries():
            cells = [_cell(metric, summary.means[prefix + metric]) for _, prefix in prefixes for metric in METRICS]
            table.add_row(summary.group, str(summary.pictures), *cells)
        for name, (mse, psnr, fmse) in self._published():
            known = {"mse": mse, "psnr": psnr, "fmse": fmse}
            cells = [_cell(metric, known.get(metric)) for metric in METRICS]
            blank = [""] * len(METRICS) if self.has_model else []
            table.add_row(f"SCS-Co as published, 256x256, its protocol unknown: {name}", "", *blank, *cells)
        return table

    def write(self, csv: str | os.PathLike[str] | None = None, json: str | os.PathLike[str] | None = None) -> None:
        """Write a row per picture to `csv`; summaries, bad samples and rows to `json`. Each comes whole or not at all.

        An infinite or undefined value is `inf` or `nan` in the CSV, and null in the JSON, which has no word for it.

        Raises:
            ScscoError: a file cannot be written; the message names it.
        """
        for path, writer in ((csv, self._write_csv), (json, self._write_json)):
            if path is not None:
                with replacing(os.fspath(path)) as temporary:
                    writer(temporary)

    def _write_csv(self, path: os.PathLike[str]) -> None:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Row)])
            writer.writeheader()
            writer.writerows(asdict(row) for row in self.rows)

    def _write_json(self, path: os.PathLike[str]) -> None:
        content = {
            "protocol": self.protocol,
            "pictures": len(self.rows),
            "improvement": self.improvement() if self.has_model else None,
            "summaries": [asdict(summary) for summary in self.summaries()],
            "bad": [asdict(sample) for sample in self.bad],
            "rows": [asdict(row) for row in self.rows],
        }
        with open(path, "w", encoding="utf-8") as file:
            json.dump(_finite(content), file, indent=1, allow_nan=False)

    def _published(self) -> list[tuple[str, tuple[float, float, float]]]:
        subsets = {row.subset for row in self.rows}
        if not subsets <= set(SUBSETS):
            return []
        names = [*sorted(subsets), *(["all"] if subsets == set(SUBSETS) else [])]
        return [(name, PUBLISHED[name]) for name in names]


def evaluate(
    model: Model | None,
    dataset: Dataset[Sample | BadSample],
    *,
    protocol: str = "strict",
    device: str | torch.device = "cpu",
    batch_size: int = 8,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score a model's output and the untouched composite of every sample, one batch in memory at a time.

    Args:
        model: `model(composite, mask)` -> output, (B, 3, H, W) and (B, 1, H, W) in [0, 1]; a module is put in eval mode
            for the time. None scores the composite alone.
        dataset: yields `Sample` and `BadSample`. Where its `size` is None the pictures differ in size and go one by
        one. protocol: a name of `scsco_fast.metrics.PROTOCOLS`. device: where the model is. batch_size: pictures at a
        time. workers: processes that read samples; 0 reads them here. progress: called with the number of samples
        done and in all.

    Raises:
        ScscoError: no sample could be used, the model's output has another shape or is not finite, or the protocol is
            unknown.

    Example:
        >>> from scsco_fast.data import Sample
        >>> real, mask = torch.rand(3, 16, 16), torch.zeros(1, 16, 16)
        >>> mask[:, :8] = 1
        >>> sample = Sample((real + 0.2 * mask).clamp(0, 1), real, mask, "one", "synthetic")
        >>> evaluate(lambda composite, mask: composite - 0.1 * mask, [sample]).has_model
        True
    """
    if protocol not in PROTOCOLS:
        raise ScscoError(f"protocol {protocol!r} is unknown; use one of {', '.join(PROTOCOLS)}")
    if getattr(dataset, "size", 0) is None:
        batch_size = 1
    loader = DataLoader(dataset, batch_size, num_workers=workers, collate_fn=collate)
    total = len(cast(Sized, dataset))
    rows: list[Row] = []
    bad: list[BadSample] = []
    training = isinstance(model, nn.Module) and model.training
    if isinstance(model, nn.Module):
        model.eval()
    try:
        for batch in loader:
            bad += batch.bad
            rows += _score_batch(model, batch, protocol, device)
            if progress is not None:
                progress(len(rows) + len(bad), total)
    finally:
        if training and isinstance(model, nn.Module):
            model.train()
    if not rows:
        first = f"; first: {bad[0].name}: {bad[0].reason}" if bad else ""
        raise ScscoError(f"none of the {total} samples can be evaluated{first}")
    return Evaluation(rows, bad, protocol, model is not None)


@torch.inference_mode()
def _score_batch(model: Model | None, batch: Batch, protocol: str, device: str | torch.device) -> Iterator[Row]:
    if not batch.names:
        return
    output = None
    if model is not None:
        output = model(batch.composite.to(device), batch.mask.to(device))
        if output.shape != batch.composite.shape:
            raise ScscoError(
                f"the model's output for {batch.names[0]} has shape {tuple(output.shape)}, "
                f"{tuple(batch.composite.shape)} is wanted"
            )
    for index, name in enumerate(batch.names):
        real, mask = batch.real[index], batch.mask[index]
        try:
            ours: dict[str, Any] = (
                dict.fromkeys(METRICS) if output is None else score(output[index], real, mask, protocol)
            )
            untouched = score(batch.composite[index], real, mask, protocol)
        except ScscoError as error:
            raise ScscoError(f"{name}: {error}") from error
        yield Row(
            name,
            batch.subsets[index],
            real.shape[2],
            real.shape[1],
            100 * float((mask > THRESHOLD).double().mean()),
            **ours,
            **{f"composite_{metric}": value for metric, value in untouched.items()},
        )


def _summarize(group: str, rows: Sequence[Row]) -> Summary:
    names = [prefix + metric for prefix in ("", "composite_") for metric in METRICS]
    return Summary(group, len(rows), {name: _mean([getattr(row, name) for row in rows]) for name in names})


def _mean(values: Sequence[float | None]) -> float | None:
    """Of the finite values; None where there was no model to measure."""
    measured = [value for value in values if value is not None]
    if not measured:
        return None
    finite = [value for value in measured if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan


_LABELS = {"mse": "MSE", "fmse": "fMSE", "psnr": "PSNR", "fpsnr": "fPSNR", "ssim": "SSIM"}


def _cell(metric: str, value: float | None) -> str:
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
