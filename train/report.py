"""What a run shows: metrics.csv, TensorBoard scalars and pictures, loss.png."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scsco_fast.errors import ScscoError
from scsco_fast.system.files import write_durably
from scsco_fast.train.timer import PHASES

COLUMNS = (
    "step",
    "learning_rate",
    "images_per_second",
    "skipped_steps",
    "bad_samples",
    "grad_norm",
    "total",
    "reconstruction",
    "self_style",
    "consistency",
    "self_positive",
    "self_negative",
    "consistency_positive",
    "consistency_negative",
    "validation_fmse",
    "validation_psnr",
    *(f"{phase}_ms" for phase in PHASES),
    "memory_mib",
    "loss_scale",
)
Row = dict[str, float]


class Report:
    """Writes the rows and pictures of a run into its folder.

    Args:
        folder: the run folder.
        first_step: steps already done; what a stopped run wrote after them is dropped, so that no step appears twice.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.table = folder / "metrics.csv"
        self.plot = folder / "loss.png"
        rows = [row for row in read_rows(self.table) if row["step"] <= first_step]
        write_durably(self.table, lambda file: file.write(_csv_text(rows, header=True)))
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1 if first_step else None)

    def add_row(self, values: Mapping[str, float]) -> None:
        """Append one row; a column that is not in `values` stays empty."""
        try:
            with self.table.open("ab") as file:
                file.write(_csv_text([values], header=False))
        except OSError as error:
            reason = error.strerror or error
            raise ScscoError(
                f"{self.table}: cannot be written ({reason}); make room, then scsco train resume"
            ) from error
        step = int(values["step"])
        for name, value in values.items():
            if name != "step":
                self.board.add_scalar(name, value, step)

    def add_pictures(self, step: int, composite: Tensor, output: Tensor, real: Tensor, mask: Tensor) -> None:
        """One line per picture: composite, output, real, mask."""
        self.board.add_image("composite | output | real | mask", picture_strip(composite, output, real, mask), step)

    def add_attention(self, step: int, composite: Tensor, points: Tensor, maps: Mapping[str, Tensor]) -> None:
        """One line per picture: the composite with its point, and what each BAIN looks at from there."""
        if maps:
            self.board.add_image("attention of the marked point", attention_strip(composite, points, maps), step)

    def draw(self) -> None:
        """Write loss.png from metrics.csv."""
        rows = read_rows(self.table)
        write_durably(self.plot, lambda file: draw_losses(rows, file))

    def close(self) -> None:
        self.board.close()


def picture_strip(composite: Tensor, output: Tensor, real: Tensor, mask: Tensor) -> Tensor:
    """(B, 3, H, W) pictures and (B, 1, H, W) masks -> one picture (3, B * H, 4 * W), clamped to [0, 1]."""
    columns = torch.cat([composite, output, real, mask.expand_as(real)], dim=3).float().clamp(0, 1).cpu()
    return torch.cat(list(columns), dim=1)


def attention_strip(composite: Tensor, points: Tensor, maps: Mapping[str, Tensor]) -> Tensor:
    """Pictures (B, 3, H, W), their points (B, 2) and maps (B, h, w) -> one picture (3, B * H, (1 + maps) * W).

    A map is shown relative to its largest weight, over the darkened picture.
    """
    size = composite.shape[-2:]
    columns = [composite.clone()]
    for (row, column), picture in zip(points.tolist(), columns[0], strict=True):
        picture[:, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = picture.new_tensor(
            [[[1.0]], [[0]], [[0]]]
        )
    for rows in maps.values():
        shown = rows / rows.amax((1, 2), keepdim=True).clamp_min(1e-30)
        shown = F.interpolate(shown.unsqueeze(1), size=size, mode="nearest")
        columns.append(0.3 * composite + 0.7 * shown)
    return torch.cat(list(torch.cat(columns, dim=3).float().clamp(0, 1).cpu()), dim=1)


def read_rows(path: Path) -> list[Row]:
    """The complete rows of a metrics.csv (a killed run may leave half a line); none if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if None not in row and None not in row.values()]
    return [{name: float(value) for name, value in row.items() if value} for row in rows]


def _csv_text(rows: list[Any], *, header: bool) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="raise", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows([{**row, "step": int(row["step"])} for row in rows])
    return text.getvalue().encode()


def draw_losses(rows: list[Row], file: Any) -> None:
    """Plot the total loss and its reconstruction part over the steps, and the two style terms if there are any."""
    from matplotlib.figure import Figure

    panels = {"loss": ("total", "reconstruction"), "style contrastive loss": ("self_style", "consistency")}
    shown = {title: [name for name in names if any(name in row for row in rows)] for title, names in panels.items()}
    shown = {title: names for title, names in shown.items() if names or title == "loss"}
    figure = Figure(figsize=(6 * len(shown), 4), layout="constrained")
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for axis, (title, names) in zip(axes, shown.items(), strict=True):
        for name in names:
            points = [(row["step"], row[name]) for row in rows if name in row]
            axis.plot(*zip(*points, strict=True), label=name.replace("_", "-"))
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        if names:
            axis.legend()
    figure.savefig(file, format="png", dpi=120)
