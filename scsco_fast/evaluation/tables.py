"""What was measured as tables for a terminal and as JSON."""

from __future__ import annotations

import json
import math
import os
from typing import TYPE_CHECKING, Any

from scsco_fast.evaluation.metrics import METRICS
from scsco_fast.evaluation.paired import LEVEL
from scsco_fast.system.files import replacing

if TYPE_CHECKING:
    from rich.table import Table

    from scsco_fast.evaluation.results import Evaluation

LABELS = {"mse": "MSE", "psnr": "PSNR", "fmse": "fMSE", "fpsnr": "fPSNR", "ssim": "SSIM"}


def groups_table(evaluation: Evaluation) -> Table:
    """The summaries as a rich table."""
    from rich.table import Table

    table = Table(title=evaluation.title(), caption=f"{evaluation.protocol.name}: {evaluation.protocol.describe()}")
    table.add_column("group")
    table.add_column("pictures", justify="right")
    prefixes = [(evaluation.input, "composite_"), *([] if evaluation.scored == "identity" else [("output", "")])]
    for label, _ in prefixes:
        for metric in METRICS:
            table.add_column(f"{label}\n{LABELS[metric]}", justify="right")
    for summary in evaluation.summaries():
        cells = [cell(metric, summary.means[prefix + metric]) for _, prefix in prefixes for metric in METRICS]
        table.add_row(summary.group, str(summary.pictures), *cells)
    return table


def methods_table(evaluation: Evaluation) -> Table:
    """`methods` as a rich table."""
    from rich.table import Table

    table = Table(title="over all pictures, each method beside the others")
    for name in ("method", "mean\nMSE", "median\nMSE", "mean\nPSNR", "mean\nfMSE", "median\nfMSE"):
        table.add_column(name, justify="left" if name == "method" else "right")
    table.add_column("MSE higher than\nthe input's", justify="right")
    for entry in evaluation.methods():
        numbers = (entry.mse, entry.median_mse, entry.psnr, entry.fmse, entry.median_fmse)
        worse = f"{entry.worse} of {entry.pictures} ({entry.worse_share:.0%})"
        table.add_row(
            entry.method, *(f"{number:.2f}" for number in numbers), "" if entry.method == evaluation.input else worse
        )
    return table


def differences_table(evaluation: Evaluation) -> Table | None:
    """`differences` as a rich table, or None where it is empty."""
    from rich.table import Table

    if not evaluation.differences():
        return None
    ours = "the model" if evaluation.scored == "model" else "the predictions"
    table = Table(title=f"{ours} less each reference, picture by picture, {LEVEL:.0%} bootstrap intervals")
    judged = f"{ours} {'is' if evaluation.scored == 'model' else 'are'}"
    for name in ("reference", "metric", "pictures", "difference", "from", "to", judged):
        table.add_column(name, justify="left" if name in ("reference", "metric", judged) else "right")
    for reference, entry in evaluation.differences():
        numbers = [cell(entry.metric, value) for value in (entry.difference, entry.low, entry.high)]
        pictures = f"{entry.pictures}" + (f" ({entry.left_out} left out)" if entry.left_out else "")
        table.add_row(reference, LABELS[entry.metric], pictures, *numbers, entry.verdict)
    return table


def drift_table(evaluation: Evaluation) -> Table | None:
    """`drift` as a rich table, or None where the model was applied once."""
    from rich.table import Table

    if evaluation.repeat == 1 or not evaluation.drift():
        return None
    table = Table(title="output given back to the model")
    for name in ("repeat", "mean MSE\nto the real", "median MSE\nto the real", "mean /\nfirst mean"):
        table.add_column(name, justify="right")
    for entry in evaluation.drift():
        table.add_row(str(entry.repeat), f"{entry.mse:.2f}", f"{entry.median_mse:.2f}", f"{entry.ratio:.3f}")
    return table


def published_table(evaluation: Evaluation) -> Table | None:
    """`published` as a rich table, or None where it is empty."""
    from rich.table import Table

    rows = evaluation.published()
    if not rows:
        return None
    table = Table(title="beside published results at 256x256; only rows of one protocol can be compared")
    for name in ("group", "method", "pictures", "protocol", "MSE", "PSNR", "fMSE"):
        table.add_column(name, justify="left" if name in ("group", "method", "protocol") else "right")
    for method, group, pictures, protocol, means in rows:
        cells = [cell(metric, value) for metric, value in means.items()]
        table.add_row(group, method, str(pictures), protocol, *cells)
    return table


def cell(metric: str, value: float | None) -> str:
    """A metric's value for a table; empty for None."""
    if value is None:
        return ""
    return f"{value:.4f}" if metric == "ssim" else f"{value:.2f}"


def write_json(content: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a JSON file, whole or not at all; an infinite or undefined number, which JSON cannot hold, is null.

    Raises:
        ScscoError: the file cannot be written; the message names it.
    """
    with replacing(os.fspath(path)) as temporary, open(temporary, "w", encoding="utf-8") as file:
        json.dump(_finite(content), file, indent=1, allow_nan=False)


def _finite(value: Any) -> Any:
    """The same with None for every number that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
