"""`scsco bench --tune`: the attention's table of configurations, and the rows behind it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scsco_fast import kernels
from scsco_fast.benchmarks import rows
from scsco_fast.benchmarks.rows import Row
from scsco_fast.errors import ScscoError

if TYPE_CHECKING:
    from scsco_fast.kernels.tune import Trial


def tune(minutes: float, output: Path, say: Callable[[str], None]) -> None:
    """Time candidates on this GPU, rewrite the table and append a row for each candidate to output/tune.csv.

    Raises:
        ScscoError: the kernels cannot run here, or a file cannot be written.
    """
    reason = kernels.unavailable()
    if reason is not None:
        raise ScscoError(f"--tune times the Triton kernels on a GPU: {reason}")
    from scsco_fast.kernels import tune as program

    def record(trials: "list[Trial]") -> None:
        where = {"suite": "tune", **rows.machine("cuda")}
        rows.append([row_of(trial, where, program.FOREGROUND, program.GATE) for trial in trials], output / "tune.csv")

    try:
        program.tune(minutes, say, record=record)
    except RuntimeError as error:
        raise ScscoError(str(error)) from error


def row_of(trial: "Trial", where: dict[str, Any], foreground: float, gate: dict[str, float]) -> Row:
    """`detail` is the line's key, the kernel and the configuration."""
    batch, channels, size, _ = trial.shape
    line, config = " ".join(map(str, trial.key)), ",".join(map(str, trial.config))
    return Row(
        **where,
        op="bain_attention",
        backend="triton",
        mode="forward" if trial.kernel == "fwd" else "backward",
        dtype=trial.dtype,
        batch=batch,
        channels=channels,
        size=size,
        foreground=foreground,
        detail=f"{line} {trial.kernel} {config}",
        ms=trial.ms,
        error=None if trial.error != trial.error else trial.error,
        gate=gate[trial.key[1]],
        note=trial.reason,
    )
