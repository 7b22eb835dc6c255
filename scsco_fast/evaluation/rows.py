"""What is measured of one picture, and the CSV file with a row for each."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields

from scsco_fast.evaluation.metrics import METRICS
from scsco_fast.system.files import replacing


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


def prefix_of(baseline: str) -> str:
    """What the columns of a baseline begin with: half_mean_ for half-mean."""
    return f"{baseline.replace('-', '_')}_"


def repeat_column(number: int) -> str:
    """The column of the MSE after that many passes through the model."""
    return f"repeat_{number}_mse"


@contextmanager
def row_writer(path: str | os.PathLike[str] | None, extra: Sequence[str]) -> Iterator[Callable[[Row], None]]:
    """A function that writes a row to the CSV file, which takes its place when all went well."""
    if path is None:
        yield lambda row: None
        return
    with (
        replacing(os.fspath(path)) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, *extra])

        def write(row: Row) -> None:
            values = row.values()
            writer.writerow([getattr(row, name) for name in COLUMNS] + [values[name] for name in extra])

        yield write
