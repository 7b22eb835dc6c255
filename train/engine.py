"""The training loop: from a configuration to a run folder."""

import dataclasses
import json
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import numpy as np
import torch

import scsco_fast
from scsco_fast.data.samples import BadSample, Batch, collate
from scsco_fast.errors import ScscoError
from scsco_fast.loss import SCSCoLoss
from scsco_fast.nn.unet import HarmonizationUNet
from scsco_fast.nn.vgg import VGG16Features
from scsco_fast.regions import foreground_boxes
from scsco_fast.train import checkpoint
from scsco_fast.train.config import TrainConfig
from scsco_fast.train.report import COLUMNS, Report
from scsco_fast.train.samples import Samples, build_dataset, build_loader, build_preview
from scsco_fast.train.step import TrainingStep, learning_rate
from scsco_fast.weights import save_model


def train(config: TrainConfig, dataset: Samples | None = None) -> Path:
    """Train as `config` says and return the run folder.

    The folder holds config.json (the configuration, what "auto" became, versions), model.safetensors (averaged
    weights), checkpoints/ (last.pt and the last three step_XXXXXXX.pt), metrics.csv, loss.png and tensorboard/.
    SIGINT and SIGTERM end the run after the step in hand with a checkpoint, and `train` returns as usual; a second
    SIGINT interrupts at once. With `config.resume` the same weights come out, bit for bit, as without the stop.

    Args:
        config: see `TrainConfig`.
        dataset: samples to train on instead of those that `config` names; item i must depend on i alone.

    Raises:
        ScscoError: the folder holds a run already, nothing to resume, a checkpoint of another architecture, too many
            bad samples, too many non-finite steps in a row, a file that cannot be written.

    Example:
        >>> train(dataclasses.replace(PRESETS["demo"], output="runs/mine", steps=100))  # doctest: +SKIP
        PosixPath('runs/mine')
    """
    folder, console, given = Path(config.output), _console(), config
    check_folder(folder, resume=config.resume)
    config = resolve(config)
    samples = build_dataset(config) if dataset is None else dataset
    preview = build_preview(config) if dataset is None else collate([dataset[index] for index in range(2)])
    with scsco_fast.use_backend(config.backend):
        step, source = build_step(config)
        first, bad = restore(folder / "checkpoints", step, config, console.print)
        make_folder(folder)
        write_config(folder, given, config, step.model, source)
        console.print(f"{folder}: {config.steps - first} steps on {config.device}, VGG-16 weights: {source}")
        run = Run(folder, config, step, first, bad, preview, console)
        try:
            done = run.steps(build_loader(samples, config, first, step.device))
        finally:
            run.report.close()
    console.print(summary(folder, config, done, source))
    return folder


class Run:
    """The state of a run between its first and its last step, and what is done at which of them."""

    def __init__(
        self,
        folder: Path,
        config: TrainConfig,
        step: TrainingStep,
        first: int,
        bad: dict[str, str],
        preview: Batch,
        console: Any,
    ) -> None:
        self.folder, self.config, self.step, self.first = folder, config, step, first
        self.preview, self.console = preview, console
        self.bad = bad  # name -> reason of the samples that could not be used
        self.report = Report(folder, first)

    def steps(self, batches: Iterable[Batch]) -> int:
        """Do the steps; return how many of the run are done."""
        config, device, done = self.config, self.step.device, self.first
        if done >= config.steps:
            self.save(done, numbered=False)
            return done
        images, since = 0, time.perf_counter()
        with StopSignals(self.console.print) as stop, _progress(self.console) as progress:
            bar = progress.add_task("", total=config.steps, completed=done, loss="", speed="")
            for index, batch in zip(range(self.first, config.steps), batches, strict=False):
                self.note_bad(batch.bad)
                if batch.names:
                    composite, real, mask = (x.to(device, non_blocking=True) for x in batch[:3])
                    self.step(composite, real, mask, index, foreground_boxes(batch.mask))
                done, images = index + 1, images + len(batch.names)
                progress.advance(bar)

                ending = stop.requested or done == config.steps
                saving = ending or done % config.checkpoint_every == 0
                if saving or done % config.log_every == 0:
                    row = self.log(done, images / (time.perf_counter() - since))
                    progress.update(bar, loss=f"{row['total']:.4f}", speed=f"{row['images_per_second']:.1f}")
                    images, since = 0, time.perf_counter()
                if done == 1 or done == config.steps or done % config.picture_every == 0:
                    self.show(done)
                if saving:
                    self.save(done, numbered=done % config.checkpoint_every == 0)
                if ending:
                    break
        return done

    def note_bad(self, bad: Sequence[BadSample]) -> None:
        """Name each bad sample once; stop when there are too many."""
        for sample in bad:
            if sample.name in self.bad:
                continue
            self.bad[sample.name] = sample.reason
            self.console.print(f"warning: skipped {sample.name}: {sample.reason}")
            if len(self.bad) > self.config.bad_sample_limit:
                raise ScscoError(
                    f"{len(self.bad)} samples cannot be used (bad_sample_limit {self.config.bad_sample_limit}), "
                    f"the last is {sample.name}: {sample.reason}; repair the data or raise the limit"
                )

    def log(self, done: int, speed: float) -> dict[str, float]:
        """Read the losses since the last row and write the next; stop when too many steps in a row were skipped."""
        state = self.step.read()
        if state["in_a_row"] >= self.config.non_finite_limit:
            raise ScscoError(
                f"step {state['last_skipped'] + 1}: the loss or gradient was not finite for {state['in_a_row']} steps "
                f"in a row (non_finite_limit {self.config.non_finite_limit}); lower lr or use precision float32"
            )
        row = {
            "step": done,
            "learning_rate": learning_rate(self.config, done - 1),
            "images_per_second": speed,
            "skipped_steps": state["skipped"],
            "bad_samples": len(self.bad),
            "total": float("nan"),
            **{name: value for name, value in state["means"].items() if name in COLUMNS},
        }
        self.report.add_row(row)
        if not self.console.is_terminal:
            self.console.print(f"step {done}/{self.config.steps}: loss {row['total']:.4f}, {speed:.1f} images/s")
        return row

    @torch.no_grad()
    def show(self, done: int) -> None:
        """Write what the averaged model makes of the preview."""
        if not self.preview.names:
            return
        composite, real, mask = (x.to(self.step.device) for x in self.preview[:3])
        self.report.add_pictures(done, composite, self.step.ema(composite, mask), real, mask)

    def save(self, done: int, *, numbered: bool) -> None:
        """Write the checkpoint, the averaged model and the plot, each of them whole or not at all."""
        state = {
            "step": done,
            "config": self.config.to_dict(),
            "versions": versions(),
            "training": self.step.state_dict(),
            "rng": checkpoint.rng_state(self.step.device),
            "bad_samples": dict(self.bad),
        }
        checkpoint.save_rotating(self.folder / "checkpoints", state, numbered=numbered)
        save_model(self.step.ema, self.folder / "model.safetensors", {"working_size": self.config.size, "step": done})
        self.report.draw()


class StopSignals:
    """While open, SIGINT and SIGTERM only set `requested`; a second SIGINT is a KeyboardInterrupt."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self.requested = False
        self._say = say
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread set handlers
            self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self.requested and kind is None:
            self._say("stopped by a signal after a checkpoint; continue with scsco train resume")


def resolve(config: TrainConfig) -> TrainConfig:
    """`config` with "auto" replaced by what this machine has."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ScscoError(f"device {config.device!r} cannot be used here; wanted auto, cpu or cuda") from error
    precision = config.precision
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported(False) else "float32"
    return dataclasses.replace(config, device=name, precision=precision)


def check_folder(folder: Path, *, resume: bool) -> None:
    """Refuse what would overwrite a run, and a run to resume that is not there."""
    if resume and not folder.is_dir():
        raise ScscoError(f"{folder}: no such run to resume; wanted the output folder of an earlier run")
    if not resume and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ScscoError(f"{folder}: exists already; choose another output folder, or scsco train resume {folder}")


def make_folder(folder: Path) -> None:
    """Make the run folder, or clear an existing one of what a killed run left half-written."""
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ScscoError(f"{folder}: cannot be made ({error.strerror}); choose another output folder") from error
    for place in (folder, folder / "checkpoints"):
        checkpoint.remove_temporary_files(place)


def build_step(config: TrainConfig) -> tuple[TrainingStep, str]:
    """The seeded model with its loss on its device, and the name of the VGG-16 weights that were found."""
    torch.manual_seed(config.seed)
    try:
        model = HarmonizationUNet(**config.architecture()).to(config.device).train()
        state = checkpoint.rng_state(torch.device(config.device))
        loss, source = build_loss(config)
    except ScscoError:
        raise
    except ValueError as error:
        raise ScscoError(str(error)) from error
    # Dropout's random numbers must not depend on what the loss drew for its weights.
    checkpoint.restore_rng_state(state, torch.device(config.device))
    return TrainingStep(model, loss, config), source


def build_loss(config: TrainConfig) -> tuple[SCSCoLoss | None, str]:
    """The style contrastive loss and the name of its weights; None where `style_weight` is 0."""
    if config.style_weight == 0:
        return None, "none (style_weight 0)"
    encoder = VGG16Features(weights=config.vgg_weights, layers=config.vgg_layers).to(config.device)
    if config.channels_last:
        encoder = encoder.to(memory_format=torch.channels_last)
    if config.precision == "bfloat16":
        encoder.features.to(torch.bfloat16)  # once; autocast would cast the frozen weights anew at every step
    weights = config.layer_weights
    layer_weights = None if weights is None else dict(zip(config.vgg_layers, weights, strict=True))
    loss = SCSCoLoss(
        encoder,
        style_weight=config.style_weight,
        negatives=config.negatives,
        gram=config.gram,
        self_style=config.self_style,
        layer_weights=layer_weights,
        style_size=config.style_size,
        crop=config.style_crop,
    )
    return loss, encoder.source


def restore(
    folder: Path, step: TrainingStep, config: TrainConfig, say: Callable[[str], object]
) -> tuple[int, dict[str, str]]:
    """Load the newest complete checkpoint of a resumed run; return the steps done and the bad samples known."""
    found = checkpoint.newest_checkpoint(folder, lambda text: say(f"warning: {text}")) if config.resume else None
    if found is None:
        if config.resume:
            say(f"{folder}: no checkpoint yet, starting at step 0")
        return 0, {}
    path, state = found
    changes = TrainConfig.from_dict(state["config"]).differences(config)
    wrong = [f"{name} {changes[name][0]} (now {changes[name][1]})" for name in config.architecture() if name in changes]
    if wrong:
        raise ScscoError(f"{path}: trained with {', '.join(wrong)}; resume with its own architecture")
    for name in changes.keys() - {"resume", "output"}:
        say(f"warning: {name} was {changes[name][0]}, goes on with {changes[name][1]}")
    step.load_state_dict(state["training"], path)
    checkpoint.restore_rng_state(state["rng"], step.device)
    say(f"resumed from {path} at step {state['step']}")
    return state["step"], state["bad_samples"]


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    return {
        "scsco_fast": scsco_fast.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }


def write_config(
    folder: Path, given: TrainConfig, resolved: TrainConfig, model: HarmonizationUNet, source: str
) -> None:
    """Write config.json: the configuration as given, what "auto" became here, and what the result depends on."""
    content = {
        "config": given.to_dict(),
        "resolved": {name: value for name, (_, value) in given.differences(resolved).items()},
        "vgg_source": source,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "versions": versions(),
    }
    checkpoint.write_durably(folder / "config.json", lambda file: file.write(json.dumps(content, indent=2).encode()))


def summary(folder: Path, config: TrainConfig, done: int, source: str) -> str:
    return "\n".join(
        [
            f"{done} of {config.steps} steps done; VGG-16 weights: {source}",
            f"  model        {folder / 'model.safetensors'}",
            f"  checkpoint   {folder / 'checkpoints' / checkpoint.LAST}",
            f"  metrics      {folder / 'metrics.csv'}",
            f"  loss plot    {folder / 'loss.png'}",
            f"  config       {folder / 'config.json'}",
            f"  pictures     tensorboard --logdir {folder / 'tensorboard'}",
        ]
    )


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False, markup=False, soft_wrap=True)


def _progress(console: Any) -> Any:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TextColumn("{task.fields[speed]} images/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
