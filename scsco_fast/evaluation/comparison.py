"""Is one method better than another on the same pictures, or is the difference noise?"""

from __future__ import annotations

import csv
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from scsco_fast.errors import ScscoError
from scsco_fast.evaluation.metrics import METRICS
from scsco_fast.evaluation.paired import LEVEL, RESAMPLES, Difference, mean_difference
from scsco_fast.evaluation.rows import COLUMNS
from scsco_fast.evaluation.tables import cell, write_json

if TYPE_CHECKING:
    from rich.table import Table

_NAMES_SAID = 3
_SAME = 1e-6  # relative: the composite's own MSE in both files
_FIXED = ("width", "height")


@dataclass(frozen=True)
class Comparison:
    """The differences of two evaluations, the subsets' first where there are several, then all."""

    protocol: str
    resolution: str
    differences: list[Difference]

    def table(self) -> Table:
        """The differences as a rich table."""
        from rich.table import Table

        sides = "full resolution" if self.resolution == "full" else f"resolution {self.resolution}"
        title = f"B less A, protocol {self.protocol}, {sides}, {LEVEL:.0%} bootstrap intervals"
        table = Table(title=title)
        for name in ("group", "metric", "pictures", "difference", "from", "to", "B is"):
            table.add_column(name, justify="left" if name in ("group", "metric", "B is") else "right")
        for entry in self.differences:
            numbers = [cell(entry.metric, value) for value in (entry.difference, entry.low, entry.high)]
            pictures = f"{entry.pictures}" + (f" ({entry.left_out} left out)" if entry.left_out else "")
            table.add_row(entry.group, entry.metric, pictures, *numbers, entry.verdict)
        return table

    def write_json(self, path: str | os.PathLike[str]) -> None:
        """Write the differences; whole or not at all. An undefined value is null."""
        content = {
            "protocol": self.protocol,
            "resolution": self.resolution,
            "level": LEVEL,
            "differences": [asdict(difference) for difference in self.differences],
        }
        write_json(content, path)


@dataclass(frozen=True)
class _Scores:
    """One CSV file: values (N, metrics) in the order of `names`."""

    path: str
    names: list[str]
    subsets: list[str]
    fixed: list[tuple[str, ...]]
    values: np.ndarray
    composite_mse: np.ndarray
    protocol: str
    resolution: str


def compare(
    a: str | os.PathLike[str], b: str | os.PathLike[str], resamples: int = RESAMPLES, seed: int = 0
) -> Comparison:
    """Compare two files of `scsco evaluate --csv` picture by picture.

    The interval is the bootstrap's percentile interval of the mean difference: pictures are drawn anew with
    replacement `resamples` times (Efron 1979). It says how far the mean would move with other pictures of the same
    kind; it says nothing about another training run.

    Args:
        a: the CSV file of the method that is compared with.
        b: the CSV file of the method that is judged.
        resamples: of the bootstrap.
        seed: of the bootstrap, not negative.

    Raises:
        ScscoError: a file cannot be read or is no such CSV; the files differ in protocol, resolution or pictures.
    """
    if resamples < 1 or seed < 0:
        raise ScscoError(f"resamples is {resamples} and seed {seed}; at least 1 and 0 are wanted")
    one, other = _read(a), _read(b)
    _check_same_kind(one, other)
    place = {name: index for index, name in enumerate(other.names)}
    order = np.array([place[name] for name in one.names])
    _check_same_data(one, other, order)
    # inf - inf is an undefined difference and is left out as one.
    with np.errstate(invalid="ignore"):
        change = other.values[order] - one.values  # (N, metrics)
    subsets = np.array(one.subsets)
    names = sorted(set(one.subsets))
    groups = [(name, change[subsets == name]) for name in (names if len(names) > 1 else [])]
    found = [
        mean_difference(metric, values[:, index], resamples, seed, group)
        for group, values in [*groups, ("all", change)]
        for index, metric in enumerate(METRICS)
    ]
    return Comparison(one.protocol, one.resolution, found)


def _read(path: str | os.PathLike[str]) -> _Scores:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
            if missing:
                raise ScscoError(f"{path}: has no column {missing[0]}; a file of scsco evaluate --csv is wanted")
            rows = list(reader)
        values = np.array([[float(row[metric]) for metric in METRICS] for row in rows]).reshape(-1, len(METRICS))
        composite_mse = np.array([float(row["composite_mse"]) for row in rows])
    except OSError as error:
        raise ScscoError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (UnicodeDecodeError, csv.Error, TypeError, ValueError) as error:
        if isinstance(error, ScscoError):
            raise
        raise ScscoError(f"{path}: is damaged ({error}); write it again with scsco evaluate --csv") from error
    if not rows:
        raise ScscoError(f"{path}: has no rows, there is nothing to compare")
    names = [row["name"] for row in rows]
    if len(set(names)) < len(names):
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        raise ScscoError(f"{path}: {twice} is there more than once, so pictures cannot be paired by name")
    kinds = {(row["protocol"], row["resolution"]) for row in rows}
    if len(kinds) > 1:
        raise ScscoError(f"{path}: mixes {_kind(*sorted(kinds)[0])} with {_kind(*sorted(kinds)[1])}; one is wanted")
    protocol, resolution = kinds.pop()
    fixed = [tuple(row[name] for name in _FIXED) for row in rows]
    return _Scores(
        os.fspath(path), names, [row["subset"] for row in rows], fixed, values, composite_mse, protocol, resolution
    )


def _kind(protocol: str, resolution: str) -> str:
    return f"protocol {protocol} at resolution {resolution}"


def _check_same_kind(one: _Scores, other: _Scores) -> None:
    if (one.protocol, one.resolution) != (other.protocol, other.resolution):
        raise ScscoError(
            f"{one.path} holds {_kind(one.protocol, one.resolution)}, {other.path} "
            f"{_kind(other.protocol, other.resolution)}; such figures cannot be compared, evaluate both the same way"
        )
    if set(one.names) == set(other.names):
        return
    counts = []
    for here, there in ((one, other), (other, one)):
        lone = sorted(set(here.names) - set(there.names))
        first = f" ({', '.join(lone[:_NAMES_SAID])}{', ...' if len(lone) > _NAMES_SAID else ''})" if lone else ""
        counts.append(f"{len(lone)} only in {here.path}{first}")
    raise ScscoError(f"the files are not of the same pictures: {', '.join(counts)}; evaluate both on the same")


def _check_same_data(one: _Scores, other: _Scores, order: np.ndarray) -> None:
    """Equal names may still be other pictures: their sizes and the composite's own MSE tell."""
    sizes = [here == other.fixed[there] for here, there in zip(one.fixed, order, strict=True)]
    same = np.array(sizes) & np.isclose(one.composite_mse, other.composite_mse[order], rtol=_SAME, atol=_SAME)
    if not same.all():
        index = int(np.flatnonzero(~same)[0])
        raise ScscoError(
            f"{one.names[index]} is not the same picture in both files: its composite is {'x'.join(one.fixed[index])} "
            f"with MSE {one.composite_mse[index]:g} in {one.path}, {'x'.join(other.fixed[order[index]])} with MSE "
            f"{other.composite_mse[order[index]]:g} in {other.path}; {int((~same).sum())} pictures differ"
        )
