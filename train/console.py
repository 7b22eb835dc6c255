"""What a run says to the terminal or into a log: a progress bar or lines, and a summary at the end."""

import datetime
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from scsco_fast.train import checkpoint
from scsco_fast.train.config import TrainConfig
from scsco_fast.train.report import Row
from scsco_fast.train.run_folder import Progress


def new_console(rank: int) -> Any:
    """A rich.console.Console; the first process speaks for all."""
    from rich.console import Console

    return Console(highlight=False, markup=False, soft_wrap=True, quiet=rank > 0)


class ProgressBar:
    """A bar over the steps of a run on a terminal; elsewhere a line for each row of metrics.csv.

    Args:
        console: of `new_console`.
        steps: of the whole run.
        done: how many were done before.
    """

    def __init__(self, console: Any, steps: int, done: int) -> None:
        import rich.progress as rich

        self.console, self.steps, self.first, self.begun = console, steps, done, time.perf_counter()
        self.progress = rich.Progress(
            rich.BarColumn(),
            rich.MofNCompleteColumn(),
            rich.TextColumn("loss {task.fields[loss]}"),
            rich.TextColumn("{task.fields[speed]} images/s"),
            rich.TimeElapsedColumn(),
            rich.TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task("", total=steps, completed=done, loss="", speed="")

    def __enter__(self) -> "ProgressBar":
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def advance(self) -> None:
        """One more step is done."""
        self.progress.advance(self.task)

    def show(self, row: Row) -> None:
        """The losses and the speed of a row of metrics.csv."""
        self.progress.update(self.task, loss=f"{row['total']:.4f}", speed=f"{row['images_per_second']:.1f}")
        if not self.console.is_terminal:
            self.console.print(self.line(row))

    def line(self, row: Row) -> str:
        """One row for people who watch a log."""
        done = int(row["step"])
        phases = ", ".join(f"{name.removesuffix('_ms')} {row[name]:.0f}" for name in row if name.endswith("_ms"))
        seconds = (time.perf_counter() - self.begun) / (done - self.first) * (self.steps - done)
        return (
            f"step {done}/{self.steps}: loss {row['total']:.4f}, {row['images_per_second']:.1f} images/s "
            f"({phases} ms), {row['memory_mib']:.0f} MiB, {datetime.timedelta(seconds=round(seconds))} left"
        )


def summary(
    folder: Path,
    config: TrainConfig,
    progress: Progress,
    *,
    seconds: float,
    vgg_source: str,
    profile: Path | None,
) -> str:
    """What the run did, and where it is.

    Args:
        seconds: that the steps of this time took.
        profile: the folder of the profile, if there is one.
    """
    done, best, steps = progress.step, progress.best, progress.step - progress.first
    took = datetime.timedelta(seconds=round(seconds))
    speed = steps * config.batch_size / seconds
    lines = [
        f"{done} of {config.steps} steps done; VGG-16 weights: {vgg_source}",
        f"  this time    {steps} steps in {took}, {speed:.1f} images/s, {progress.skipped} steps skipped in all, "
        f"{len(progress.bad)} bad samples",
        f"  model        {folder / 'model.safetensors'}",
        f"  checkpoint   {folder / 'checkpoints' / checkpoint.LAST}",
        f"  metrics      {folder / 'metrics.csv'}",
        f"  loss plot    {folder / 'loss.png'}",
        f"  config       {folder / 'config.json'}",
        f"  pictures     tensorboard --logdir {folder / 'tensorboard'}",
    ]
    if best is not None:
        of = f"step {best['step']:.0f}, fMSE {best['fmse']:.2f}, PSNR {best['psnr']:.2f} held out"
        lines.insert(3, f"  best model   {folder / 'best.safetensors'} ({of})")
    if profile is not None:
        lines.append(f"  profile      {profile}")
    return "\n".join(lines)
