"""What was measured over a data set: sums and means of every group of pictures, and what follows from them."""

from __future__ import annotations

import math
import os
from array import array
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from scsco_fast.data.layouts import SUBSETS
from scsco_fast.data.samples import BadSample
from scsco_fast.errors import ScscoError
from scsco_fast.evaluation import tables
from scsco_fast.evaluation.metrics import METRICS
from scsco_fast.evaluation.paired import Difference, mean_difference
from scsco_fast.evaluation.protocols import Protocol
from scsco_fast.evaluation.published import PUBLISHED, TEST_PICTURES
from scsco_fast.evaluation.rows import VALUES, Row, prefix_of, repeat_column

if TYPE_CHECKING:
    from rich.table import Table

# Foreground share in percent, (low, high].
FOREGROUND_BINS = ((0, 5), (5, 15), (15, 100))
NAMES_KEPT = 100  # of samples that cannot be used; the rest are counted


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

    def table(self) -> Table:
        """The summaries as a rich table."""
        return tables.groups_table(self)

    def methods_table(self) -> Table:
        """`methods` as a rich table."""
        return tables.methods_table(self)

    def differences_table(self) -> Table | None:
        """`differences` as a rich table, or None where it is empty."""
        return tables.differences_table(self)

    def drift_table(self) -> Table | None:
        """`drift` as a rich table, or None where the model was applied once."""
        return tables.drift_table(self)

    def published_table(self) -> Table | None:
        """`published` as a rich table, or None where it is empty."""
        return tables.published_table(self)

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
        tables.write_json(content, path)

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
