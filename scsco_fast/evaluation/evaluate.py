"""Metrics of a method over a dataset: per picture, subset and foreground size.

Beside it stand the untouched composite and, where wanted, references that need no network.
"""

from __future__ import annotations

import csv as csv_module
import json
import math
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from scsco_fast.data.layouts import SUBSETS
from scsco_fast.data.samples import BadSample, Batch, Sample, collate
from scsco_fast.data.workers import ignore_interrupts, interrupted_afterwards
from scsco_fast.errors import ScscoError
from scsco_fast.evaluation.baselines import BASELINES, full_name
from scsco_fast.evaluation.metrics import METRICS, score, with_background
from scsco_fast.evaluation.paired import LEVEL, Difference, mean_difference
from scsco_fast.evaluation.protocols import Protocol, protocol_named
from scsco_fast.evaluation.published import PUBLISHED, TEST_PICTURES
from scsco_fast.evaluation.triplets import Triplet, Triplets
from scsco_fast.regions import THRESHOLD
from scsco_fast.system.files import replacing

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
    is scored. Where the real picture is the input, the composite's metrics are the real picture's own: no error.

    `baselines` holds the metrics of each reference by its name in `BASELINES`; `repeats` holds the
    MSE after the second pass through the model, the third, and so on.
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
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    repeats: tuple[float, ...] = ()

    def values(self) -> dict[str, float]:
        """Every metric by the name of its column, such as mse, composite_mse, half_mean_mse and repeat_2_mse."""
        found: dict[str, float] = {name: getattr(self, name) for name in VALUES}
        for name, metrics in self.baselines.items():
            found |= {prefix_of(name) + metric: value for metric, value in metrics.items()}
        return found | {repeat_column(number): value for number, value in enumerate(self.repeats, start=2)}


# The columns that every CSV file has; those of baselines and repeats come after them.
COLUMNS = tuple(entry.name for entry in fields(Row) if entry.name not in ("baselines", "repeats"))
VALUES = tuple(prefix + metric for prefix in ("", "composite_") for metric in METRICS)


@dataclass(frozen=True)
class Summary:
    """Means over one group of pictures; the keys of `means` are those of `Row.values`.

    A mean leaves out infinite and undefined values: the PSNR of a picture without any error, the SSIM of one smaller
    than its window. `left_out` counts them, for each metric that has some. One perfect picture would otherwise make
    every mean infinite. Where nothing is left the mean is that of what was left out: infinite where every picture is
    without any error, NaN where nothing is defined.
    """

    group: str
    pictures: int
    means: dict[str, float]
    left_out: dict[str, int]


@dataclass(frozen=True)
class MethodSummary:
    """One method over all pictures.

    Attributes:
        method: "composite", or "real" where the real pictures are the input; the name of a baseline; "model" or
            "predictions".
        mse: mean over pictures, and so psnr and fmse; they leave out what `Summary` leaves out.
        median_mse: median over pictures: half of them have a lower MSE.
        median_fmse: median over pictures.
        worse: how many pictures have a higher MSE than the input.
        worse_share: that as a share of all pictures, in [0, 1].
    """

    method: str
    pictures: int
    mse: float
    median_mse: float
    psnr: float
    fmse: float
    median_fmse: float
    worse: int
    worse_share: float


@dataclass(frozen=True)
class Repeat:
    """MSE to the real picture after the model was applied `repeat` times, and the mean's ratio to the first."""

    repeat: int
    mse: float
    median_mse: float
    ratio: float


@dataclass
class _Group:
    """Running sums over one group."""

    pictures: int = 0
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(VALUES, 0.0))
    finite: dict[str, int] = field(default_factory=dict)
    rest: dict[str, float] = field(default_factory=dict)  # sums of what is not finite

    def add(self, row: Row) -> None:
        self.pictures += 1
        for name, value in row.values().items():
            self.sums.setdefault(name, 0.0)
            if math.isfinite(value):
                self.sums[name] += value
                self.finite[name] = self.finite.get(name, 0) + 1
            else:
                self.rest[name] = self.rest.get(name, 0.0) + value

    def summary(self, group: str) -> Summary:
        means = {name: self._mean(name) for name in self.sums}
        missing = {name: self.pictures - self.finite.get(name, 0) for name in self.sums}
        return Summary(group, self.pictures, means, {name: count for name, count in missing.items() if count})

    def _mean(self, name: str) -> float:
        if self.finite.get(name, 0):
            return self.sums[name] / self.finite[name]
        return self.rest.get(name, math.nan)


@dataclass
class Evaluation:
    """What `evaluate` measured: sums per group, no pictures and no rows.

    Medians and intervals need each picture's values: three numbers of 8 bytes for each method, one for each repeat.

    Attributes:
        protocol: of the metrics.
        resolution: "full", or the side in pixels that was scored, as text.
        scored: what the metrics without prefix are of: a "model", "predictions", or "identity", the untouched
            composites.
        split: "train", "test", or None where the dataset has no parts.
        bad: the first `NAMES_KEPT` samples that could not be used; `bad_count` is how many there were.
        unpredicted: names of the composites without a prediction; they are in no mean.
        baselines: names of the references that were scored beside it.
        untouched: the real pictures were the input instead of the composites.
        repeat: how many times the model was applied.
    """

    protocol: Protocol
    resolution: str
    scored: Literal["model", "predictions", "identity"]
    split: str | None = None
    bad: list[BadSample] = field(default_factory=list)
    bad_count: int = 0
    unpredicted: list[str] = field(default_factory=list)
    baselines: tuple[str, ...] = ()
    untouched: bool = False
    repeat: int = 1
    _subsets: dict[str, _Group] = field(default_factory=dict)
    _bins: dict[tuple[int, int], _Group] = field(default_factory=dict)
    _all: _Group = field(default_factory=_Group)
    _kept: dict[str, array[float]] = field(default_factory=dict)
    _differences: list[tuple[str, Difference]] | None = None

    @property
    def input(self) -> str:
        """What the methods were given: "composite", or "real"."""
        return "real" if self.untouched else "composite"

    @property
    def extra_columns(self) -> list[str]:
        """Names of the CSV file's columns after `COLUMNS`."""
        names = [prefix_of(name) + metric for name in self.baselines for metric in METRICS]
        return names + [repeat_column(number) for number in range(2, self.repeat + 1)]

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
        values = row.values()
        for name in self._kept_columns():
            self._kept.setdefault(name, array("d")).append(values[name])
        self._differences = None

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

    def methods(self) -> list[MethodSummary]:
        """The input, the baselines and the method, in this order, each over all pictures; empty before the first."""
        if not self.pictures:
            return []
        return [self._method(name, prefix) for name, prefix in self._prefixes().items()]

    def differences(self) -> list[tuple[str, Difference]]:
        """The method's value less the reference's, per picture: (reference, difference in MSE or PSNR).

        References are the input and each baseline; empty where no method was scored. The interval is the bootstrap's,
        as of `compare`. A difference that is defined for no picture is left out, such as the one
        in PSNR to real pictures, which is infinite.
        """
        if self._differences is None:
            self._differences = [
                (name, found)
                for name, prefix in self._prefixes().items()
                for metric in ("mse", "psnr")
                if prefix and self.scored != "identity"
                if (found := mean_difference(metric, self._less(prefix, metric))).pictures
            ]
        return self._differences

    def drift(self) -> list[Repeat]:
        """MSE to the real picture after each pass, where the model's output is given back to it; empty without one."""
        if self.scored != "model":
            return []
        passes = ["mse", *(repeat_column(number) for number in range(2, self.repeat + 1))]
        values = [self._column(name) for name in passes if self.pictures]
        means = [float(mse.mean()) for mse in values]
        return [
            Repeat(number, mean, float(np.median(mse)), mean / means[0] if means[0] > 0 else math.nan)
            for number, (mean, mse) in enumerate(zip(means, values, strict=True), start=1)
        ]

    def improvement(self) -> str:
        """One line: how far the output's mean MSE is below the composite's, and its mean PSNR above.

        Raises:
            ScscoError: only the untouched composites were scored, or real pictures were the input.
        """
        if self.scored == "identity":
            raise ScscoError("no model was evaluated, so there is no improvement to state; give one")
        if self.untouched:
            raise ScscoError("real pictures were the input, which nothing can improve; see damage()")
        means = self.summaries()[-1].means
        before, after = means["composite_mse"], means["mse"]
        psnr_before, psnr_after = means["composite_psnr"], means["psnr"]
        change = f" ({100 * (after / before - 1):+.1f} %)" if before > 0 else ""
        gain = psnr_after - psnr_before
        return (
            f"mean MSE {before:.2f} -> {after:.2f}{change}, "
            f"mean PSNR {psnr_before:.2f} -> {psnr_after:.2f} dB{f' ({gain:+.2f} dB)' if math.isfinite(gain) else ''} "
            f"over {self.title()}"
        )

    def damage(self) -> str:
        """One line: what the method changes in real pictures, which have nothing to be corrected; 0 is right.

        Raises:
            ScscoError: no method was scored, or composites were the input.
        """
        if self.scored == "identity" or not self.untouched:
            raise ScscoError("damage is what a method does to real pictures; evaluate one with untouched")
        ours = self.methods()[-1]
        return (
            f"damage to real pictures, where 0 is right: MSE {ours.mse:.2f} (median {ours.median_mse:.2f}), "
            f"foreground MSE {ours.fmse:.2f} (median {ours.median_fmse:.2f}) over {self.title()}"
        )

    def title(self) -> str:
        """Number of pictures, protocol, resolution, and what is left out."""
        resolution = "full resolution" if self.resolution == "full" else f"{self.resolution}x{self.resolution}"
        kind = "real pictures as input" if self.untouched else "pictures"
        parts = [f"{self.pictures} {kind}, protocol {self.protocol.name}, {resolution}"]
        parts += [f"{self.bad_count} bad"] if self.bad_count else []
        parts += [f"{len(self.unpredicted)} without prediction"] if self.unpredicted else []
        return ", ".join(parts)

    def table(self) -> Table:
        """The summaries as a rich table."""
        from rich.table import Table

        table = Table(title=self.title(), caption=f"{self.protocol.name}: {self.protocol.describe()}")
        table.add_column("group")
        table.add_column("pictures", justify="right")
        prefixes = [(self.input, "composite_"), *([] if self.scored == "identity" else [("output", "")])]
        for label, _ in prefixes:
            for metric in METRICS:
                table.add_column(f"{label}\n{_LABELS[metric]}", justify="right")
        for summary in self.summaries():
            cells = [cell(metric, summary.means[prefix + metric]) for _, prefix in prefixes for metric in METRICS]
            table.add_row(summary.group, str(summary.pictures), *cells)
        return table

    def methods_table(self) -> Table:
        """`methods` as a rich table."""
        from rich.table import Table

        table = Table(title="over all pictures, each method beside the others")
        for name in ("method", "mean\nMSE", "median\nMSE", "mean\nPSNR", "mean\nfMSE", "median\nfMSE"):
            table.add_column(name, justify="left" if name == "method" else "right")
        table.add_column("MSE higher than\nthe input's", justify="right")
        for entry in self.methods():
            numbers = (entry.mse, entry.median_mse, entry.psnr, entry.fmse, entry.median_fmse)
            worse = f"{entry.worse} of {entry.pictures} ({entry.worse_share:.0%})"
            table.add_row(
                entry.method, *(f"{number:.2f}" for number in numbers), "" if entry.method == self.input else worse
            )
        return table

    def differences_table(self) -> Table | None:
        """`differences` as a rich table, or None where it is empty."""
        from rich.table import Table

        if not self.differences():
            return None
        ours = "the model" if self.scored == "model" else "the predictions"
        table = Table(title=f"{ours} less each reference, picture by picture, {LEVEL:.0%} bootstrap intervals")
        judged = f"{ours} {'is' if self.scored == 'model' else 'are'}"
        for name in ("reference", "metric", "pictures", "difference", "from", "to", judged):
            table.add_column(name, justify="left" if name in ("reference", "metric", judged) else "right")
        for reference, entry in self.differences():
            numbers = [cell(entry.metric, value) for value in (entry.difference, entry.low, entry.high)]
            pictures = f"{entry.pictures}" + (f" ({entry.left_out} left out)" if entry.left_out else "")
            table.add_row(reference, _LABELS[entry.metric], pictures, *numbers, entry.verdict)
        return table

    def drift_table(self) -> Table | None:
        """`drift` as a rich table, or None where the model was applied once."""
        from rich.table import Table

        if self.repeat == 1 or not self.drift():
            return None
        table = Table(title="output given back to the model")
        for name in ("repeat", "mean MSE\nto the real", "median MSE\nto the real", "mean /\nfirst mean"):
            table.add_column(name, justify="right")
        for entry in self.drift():
            table.add_row(str(entry.repeat), f"{entry.mse:.2f}", f"{entry.median_mse:.2f}", f"{entry.ratio:.3f}")
        return table

    def published(self) -> list[tuple[str, str, int, str, dict[str, float | None]]]:
        """Rows of published methods beside this run: method, group, pictures, protocol, MSE, PSNR and fMSE.

        Only for iHarmony4's test split at 256x256, per subset and, where all four subsets are there, over all; else
        empty. The number of pictures stands in each row: ours may be fewer.
        """
        names = set(self._subsets)
        if self.untouched or self.split != "test" or self.resolution != "256" or not names or not names <= set(SUBSETS):
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
            "improvement": None if self.scored == "identity" or self.untouched else self.improvement(),
            "summaries": [asdict(summary) for summary in self.summaries()],
            "published": [
                {"method": method, "group": group, "pictures": pictures, "protocol": protocol, **means}
                for method, group, pictures, protocol, means in self.published()
            ],
            "bad_count": self.bad_count,
            "bad": [asdict(sample) for sample in self.bad],
            "without_prediction": self.unpredicted,
            "input": self.input,
            "baselines": list(self.baselines),
            "methods": [asdict(method) for method in self.methods()],
            "differences": [{"reference": name, **asdict(entry)} for name, entry in self.differences()],
            "damage": self.damage() if self.untouched and self.scored != "identity" else None,
            "drift": [asdict(entry) for entry in self.drift()],
        }
        with replacing(os.fspath(path)) as temporary, open(temporary, "w", encoding="utf-8") as file:
            json.dump(_finite(content), file, indent=1, allow_nan=False)

    def _prefixes(self) -> dict[str, str]:
        """Prefix of each method's columns, by the method's name."""
        found = {self.input: "composite_", **{name: prefix_of(name) for name in self.baselines}}
        return found if self.scored == "identity" else {**found, self.scored: ""}

    def _kept_columns(self) -> list[str]:
        kept = [prefix + metric for prefix in self._prefixes().values() for metric in ("mse", "psnr", "fmse")]
        return kept + [repeat_column(number) for number in range(2, self.repeat + 1)]

    def _column(self, name: str) -> np.ndarray:
        """(N,) a copy: a view would forbid that the array grows."""
        return np.array(self._kept.get(name, ()), dtype=np.float64)

    def _method(self, name: str, prefix: str) -> MethodSummary:
        means = self._all.summary("all").means
        mse, fmse = self._column(f"{prefix}mse"), self._column(f"{prefix}fmse")
        worse = int((mse > self._column("composite_mse")).sum())
        return MethodSummary(
            method=name,
            pictures=self.pictures,
            mse=means[f"{prefix}mse"],
            median_mse=float(np.median(mse)),
            psnr=means[f"{prefix}psnr"],
            fmse=means[f"{prefix}fmse"],
            median_fmse=float(np.median(fmse)),
            worse=worse,
            worse_share=worse / self.pictures,
        )

    def _less(self, prefix: str, metric: str) -> np.ndarray:
        """(N,) the method's values less those of a reference; undefined where both are infinite."""
        with np.errstate(invalid="ignore"):
            return self._column(metric) - self._column(prefix + metric)


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
    with _row_writer(csv, evaluation.extra_columns) as write, _eval_mode(model):
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
def _row_writer(path: str | os.PathLike[str] | None, extra: Sequence[str]) -> Iterator[Callable[[Row], None]]:
    """A function that writes a row to the CSV file, which takes its place when all went well."""
    if path is None:
        yield lambda row: None
        return
    with (
        replacing(os.fspath(path)) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv_module.writer(file)
        writer.writerow([*COLUMNS, *extra])

        def write(row: Row) -> None:
            values = row.values()
            writer.writerow([getattr(row, name) for name in COLUMNS] + [values[name] for name in extra])

        yield write


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


def prefix_of(baseline: str) -> str:
    """What the columns of a baseline begin with: half_mean_ for half-mean."""
    return f"{baseline.replace('-', '_')}_"


def repeat_column(number: int) -> str:
    """The column of the MSE after that many passes through the model."""
    return f"repeat_{number}_mse"


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
