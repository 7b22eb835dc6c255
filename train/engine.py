"""The training loop: from a configuration to a run folder."""

import dataclasses
import datetime
import functools
import json
import os
import platform
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import numpy as np
import torch

import scsco_fast
from scsco_fast.data.samples import BadSample, Batch, PackedBatch, collate
from scsco_fast.errors import ScscoError
from scsco_fast.evaluation import evaluate
from scsco_fast.nn.attention_maps import attention_maps, foreground_points
from scsco_fast.nn.efficientnet import load_imagenet
from scsco_fast.nn.unet import HarmonizationUNet
from scsco_fast.nn.weights import save_model
from scsco_fast.regions import foreground_boxes
from scsco_fast.style.loss import SCSCoLoss
from scsco_fast.style.vgg import VGG16Features
from scsco_fast.system.extras import require
from scsco_fast.system.files import write_durably
from scsco_fast.system.locks import LOCK, writing
from scsco_fast.train import checkpoint
from scsco_fast.train.config import TrainConfig
from scsco_fast.train.memory import kept_memory
from scsco_fast.train.processes import Processes, start_processes
from scsco_fast.train.profiling import Profile
from scsco_fast.train.report import COLUMNS, Report
from scsco_fast.train.samples import (
    Samples,
    build_dataset,
    build_loader,
    build_preview,
    build_validation,
    fingerprint,
)
from scsco_fast.train.step import AUTOCAST, TrainingStep, learning_rate, step_seed

NAMES_SAID = 8  # samples that a message names


def train(
    config: TrainConfig, dataset: Samples | None = None, validation: Samples | None = None, profile: bool = False
) -> Path:
    """Train as `config` says and return the run folder.

    The folder holds config.json (the configuration, what "auto" became, versions, git revision), model.safetensors
    (averaged weights), checkpoints/ (last.pt, the last few step_XXXXXXX.pt, and best.pt where there is a validation),
    best.safetensors, metrics.csv, loss.png and tensorboard/. SIGINT, SIGTERM and SIGUSR1 end the run after the step in
    hand with a checkpoint, and `train` returns as usual; a second SIGINT interrupts at once. With `config.resume` the
    same weights come out, bit for bit, as without the stop.

    Under torchrun or `accelerate launch` the processes share each step's batch; the first one writes the folder.

    Args:
        config: see `TrainConfig`.
        dataset: samples to train on instead of those that `config` names; item i must depend on i alone.
        validation: held-out samples to go with `dataset`, for `config.validate_every`.
        profile: also write profile/trace.json and a table of the ten most expensive operations of a few steps.

    Raises:
        ScscoError: a package of the extra `train` is missing, the folder holds a run already, nothing to resume, a
            checkpoint of another architecture, too many bad samples, too many non-finite steps in a row, a file that
            cannot be written, another run at work in the folder. All processes raise it.

    Examples:
        >>> train(dataclasses.replace(PRESETS["demo"], output="runs/mine", steps=100))  # doctest: +SKIP
        PosixPath('runs/mine')
    """
    require("training", "train", "tensorboard", "matplotlib", "scikit-image")
    processes = start_processes(config.device)
    folder, console, given = Path(config.output), _console(processes.rank), config
    with _deterministic(config.deterministic), scsco_fast.use_backend(config.backend), ExitStack() as held:
        with processes.together():
            check_folder(folder, resume=config.resume)
            if processes.rank == 0:
                held.enter_context(writing(folder))
                check_folder(folder, resume=config.resume)  # another run may have come and gone in between
            config = resolve(config, processes)
            samples = build_dataset(config) if dataset is None else dataset
            validation = build_validation(config) if dataset is None else validation
            preview = build_preview(config) if dataset is None else collate([dataset[index] for index in range(2)])
            model, loss, source = build_model(config)
        if config.device == "cpu":
            held.enter_context(kept_memory())
        step = TrainingStep(model, loss, config, processes)
        with processes.together():
            data = fingerprint(samples)
            progress = restore(folder / "checkpoints", step, config, len(samples), data, console.print)
            if processes.rank == 0:
                make_folder(folder)
                write_config(folder, given, config, step.model, source, data)
        processes.agree(progress.step, "checkpoint")
        team = f" by each of {processes.world} processes" if processes.world > 1 else ""
        steps = config.steps - progress.step
        console.print(f"{folder}: {steps} steps on {config.device}{team}, VGG-16 weights: {source}")
        run = Run(folder, config, step, progress, len(samples), data, preview, validation, console)
        if profile and processes.rank == 0:
            run.profile = Profile(folder / "profile", step.device, steps)
        try:
            done = run.steps(build_loader(samples, config, progress.step, step.device, processes))
        finally:
            run.close()
    console.print(summary(run, done, source))
    return folder


@dataclasses.dataclass
class Progress:
    """What of a run is done, besides the weights."""

    step: int = 0
    bad: dict[str, str] = dataclasses.field(default_factory=dict)
    """Name and reason of each sample that could not be used."""
    best: dict[str, float] | None = None
    """"step", "fmse" and "psnr" of the best validation."""


class Run:
    """The state of a run between its first and its last step, and what is done at which of them."""

    def __init__(
        self,
        folder: Path,
        config: TrainConfig,
        step: TrainingStep,
        progress: Progress,
        samples: int,
        data: str | None,
        preview: Batch,
        validation: Samples | None,
        console: Any,
    ) -> None:
        self.folder, self.config, self.step, self.samples, self.data = folder, config, step, samples, data
        self.first, self.bad, self.best = progress.step, progress.bad, progress.best
        self.preview, self.validation, self.console = preview, validation, console
        self.processes = step.processes
        self.leading = self.processes.rank == 0
        self.report = Report(folder, self.first) if self.leading else None
        self.profile: Profile | None = None
        self.names: dict[int, list[str]] = {}  # of this process's samples in the steps since the last reading
        self.skipped = 0
        self.begun, self.seconds = time.perf_counter(), 0.0
        self.validated: dict[str, float] = {}

    def steps(self, batches: Iterable[Batch | PackedBatch]) -> int:
        """Do the steps; return how many of the run are done."""
        config, done = self.config, self.first
        if done >= config.steps:
            self.save(done, numbered=False)
            return done
        images, since = 0, time.perf_counter()
        with StopSignals(self.console.print) as stop, _progress(self.console) as progress:
            bar = progress.add_task("", total=config.steps, completed=done, loss="", speed="")
            for index, batch in zip(range(self.first, config.steps), self.waited(batches), strict=False):
                told = self.processes.tell([len(batch.names), stop.requested, len(batch.bad)])
                counts, stopping, bad = ([row[place] for row in told] for place in range(3))
                if any(bad):
                    self.note_bad([sample for samples in self.processes.objects(batch.bad) for sample in samples])
                if any(counts):
                    self.do_step(batch, index, counts)
                done, images = index + 1, images + sum(counts)
                progress.advance(bar)

                ending = any(stopping) or done == config.steps
                saving = ending or done % config.checkpoint_every == 0
                validating = self.validates(done)
                improved = self.validate(done) if validating else False
                if saving or validating or done % config.log_every == 0:
                    row = self.log(done, images / (time.perf_counter() - since))
                    progress.update(bar, loss=f"{row['total']:.4f}", speed=f"{row['images_per_second']:.1f}")
                    images, since = 0, time.perf_counter()
                if done == 1 or done == config.steps or done % config.picture_every == 0:
                    self.show(done)
                if saving or improved:
                    self.save(done, numbered=done % config.checkpoint_every == 0, best=improved, last=saving)
                if ending:
                    stop.requested = any(stopping)  # on whichever process
                    break
        return done

    def waited(self, batches: Iterable[Batch | PackedBatch]) -> Iterator[Batch | PackedBatch]:
        """The batches, with the time that the loop waited for them on the step's clock."""
        since = time.perf_counter()
        for batch in batches:
            self.step.clock.waited(time.perf_counter() - since)
            yield batch
            since = time.perf_counter()

    def do_step(self, batch: Batch | PackedBatch, index: int, counts: Sequence[int]) -> None:
        self.names[index] = batch.names
        composite, real, mask = batch.to(self.step.device)[:3]
        boxes = None
        if batch.names:
            boxes = foreground_boxes(batch.mask) if isinstance(batch, Batch) else batch.foreground
        try:
            self.step(composite, real, mask, index, boxes, counts)
        except RuntimeError as error:
            if self.config.deterministic and "deterministic" in str(error):
                reason = str(error).split(".")[0]
                raise ScscoError(f"deterministic is set, but {reason}; switch it off, or that operation") from error
            raise
        if self.profile is not None:
            self.profile.step()

    def note_bad(self, bad: Sequence[BadSample]) -> None:
        """Name each bad sample once; stop when there are too many."""
        for sample in bad:
            if sample.name in self.bad:
                continue
            self.bad[sample.name] = sample.reason
            self.console.print(f"warning: skipped {sample.name}: {sample.reason}")
            if len(self.bad) >= self.samples:
                raise ScscoError(
                    f"none of the {self.samples} samples can be used, the last is {sample.name}: {sample.reason}; "
                    "repair the data (see scsco prepare --check)"
                )
            if len(self.bad) > self.config.bad_sample_limit:
                raise ScscoError(
                    f"{len(self.bad)} samples cannot be used (bad_sample_limit {self.config.bad_sample_limit}), "
                    f"the last is {sample.name}: {sample.reason}; repair the data or raise the limit"
                )

    def log(self, done: int, speed: float) -> dict[str, float]:
        """Read the losses since the last row and write the next; stop when too many steps in a row were skipped."""
        state = self.step.read()
        if state["skipped"] > self.skipped:
            self.note_skipped(state)
        self.skipped, self.names = state["skipped"], {}
        self.seconds = time.perf_counter() - self.begun
        row = {
            "step": done,
            "learning_rate": learning_rate(self.config, done - 1),
            "images_per_second": speed,
            "skipped_steps": state["skipped"],
            "bad_samples": len(self.bad),
            "total": float("nan"),
            **{name: value for name, value in state["means"].items() if name in COLUMNS},
            **{f"{phase}_ms": value for phase, value in state["milliseconds"].items()},
            "memory_mib": memory_mib(self.step.device),
            "loss_scale": state["scale"],
            **self.validated,
        }
        self.validated = {}
        with self.processes.together(), checkpoint.telling_what_to_do():
            if self.report is not None:
                self.report.add_row(row)
        if not self.console.is_terminal:
            self.console.print(self.line(row))
        return row

    def line(self, row: dict[str, float]) -> str:
        """One row for people who watch a log."""
        done = int(row["step"])
        phases = ", ".join(f"{name.removesuffix('_ms')} {row[name]:.0f}" for name in row if name.endswith("_ms"))
        left = datetime.timedelta(seconds=round(self.seconds / (done - self.first) * (self.config.steps - done)))
        return (
            f"step {done}/{self.config.steps}: loss {row['total']:.4f}, {row['images_per_second']:.1f} images/s "
            f"({phases} ms), {row['memory_mib']:.0f} MiB, {left} left"
        )

    def note_skipped(self, state: dict[str, Any]) -> None:
        """Name the samples of the last step that was skipped; stop when too many were skipped in a row."""
        names = self.processes.objects(self.names.get(state["last_skipped"], []))
        wrong = [name for rank in state["culprits"] or range(len(names)) for name in names[rank]]
        said = ", ".join(wrong[:NAMES_SAID]) + (" ..." if len(wrong) > NAMES_SAID else "")
        where = f"step {state['last_skipped'] + 1}: the loss or gradient was not finite"
        limit = self.config.non_finite_limit
        if state["in_a_row"] >= limit:
            raise ScscoError(
                f"{where} for {state['in_a_row']} steps in a row (non_finite_limit {limit}), there with the samples "
                f"{said}; look at these, lower lr or use precision float32"
            )
        self.console.print(f"warning: {where} with the samples {said}; skipped, {state['skipped']} steps in all")

    @torch.no_grad()
    def show(self, done: int) -> None:
        """Write what the averaged model makes of the preview, and which background its BAINs look at for it."""
        if not self.preview.names or self.report is None:
            return
        composite, real, mask = (x.to(self.step.device) for x in self.preview[:3])
        self.report.add_pictures(done, composite, self.step.ema(composite, mask), real, mask)
        points = foreground_points(mask)
        self.report.add_attention(done, composite, points, attention_maps(self.step.ema, composite, mask, points))

    def validates(self, done: int) -> bool:
        every = self.config.validate_every
        return self.validation is not None and every is not None and (done % every == 0 or done == self.config.steps)

    def validate(self, done: int) -> bool:
        """Measure the averaged model on the held-out composites; True where its fMSE is the lowest so far."""
        found: dict[str, float] = {}
        with self.processes.together():
            if self.leading:
                found = validation_means(self.step, self.validation, self.config.batch_size)
        found = self.processes.objects(found)[0]
        self.validated = {f"validation_{name}": value for name, value in found.items()}
        if self.best is not None and found["fmse"] >= self.best["fmse"]:
            return False
        self.best = {"step": done, **found}
        return True

    def save(self, done: int, *, numbered: bool, best: bool = False, last: bool = True) -> None:
        """Write the checkpoint, the averaged model and the plot, each of them whole or not at all."""
        rng = self.processes.objects(checkpoint.rng_state(self.step.device))
        with self.processes.together():
            if self.report is None:
                return
            state = {
                "step": done,
                "config": self.config.to_dict(),
                "versions": versions(),
                "training": self.step.state_dict(),
                "rng": rng,
                "bad_samples": dict(self.bad),
                "samples": self.samples,
                "data": self.data,
                "best": self.best,
            }
            places = self.folder / "checkpoints"
            metadata = {"working_size": self.config.size, "step": done}
            with checkpoint.telling_what_to_do():
                if best:
                    checkpoint.save_checkpoint(places / checkpoint.BEST, state)
                    save_model(self.step.ema, self.folder / "best.safetensors", metadata)
                if last:
                    checkpoint.save_rotating(places, state, keep=self.config.keep_checkpoints, numbered=numbered)
                    save_model(self.step.ema, self.folder / "model.safetensors", metadata)
                    self.report.draw()

    def close(self) -> None:
        if self.profile is not None:
            self.profile.close()
        if self.report is not None:
            self.report.close()


def validation_means(step: TrainingStep, samples: Any, batch_size: int) -> dict[str, float]:
    """fMSE and PSNR of the averaged model over held-out samples; the random state stays as it was."""
    state = checkpoint.rng_state(step.device)
    means = evaluate(step.ema, samples, device=step.device, batch_size=batch_size).summaries()[-1].means
    checkpoint.restore_rng_state(state, step.device)
    return {name: float("nan") if (value := means[name]) is None else value for name in ("fmse", "psnr")}


def memory_mib(device: torch.device) -> float:
    """The most memory in use so far: tensors of the GPU, or this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # Linux counts KiB


class StopSignals:
    """While open, the signals of `NUMBERS` only set `requested`; a second SIGINT is a KeyboardInterrupt."""

    NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self, say: Callable[[str], object]) -> None:
        self.requested = False
        self._say = say
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread set handlers
            self._previous = {number: signal.signal(number, self._handle) for number in self.NUMBERS}
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


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """torch refuses operations without reproducible bits within the block."""
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


def resolve(config: TrainConfig, processes: Processes) -> TrainConfig:
    """`config` with "auto" replaced by what this machine has, and a share of the batch for each process."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    name = name if processes.device is None else str(processes.device)
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ScscoError(f"device {config.device!r} cannot be used here; wanted auto, cpu or cuda") from error
    precision = config.precision
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported(False) else "float32"
    parts = processes.world * config.accumulate
    if config.batch_size % parts:
        raise ScscoError(
            f"batch_size {config.batch_size} cannot be shared by {processes.world} processes in {config.accumulate} "
            f"parts each; wanted a multiple of {parts}"
        )
    if config.cuda_graph and (device.type != "cuda" or processes.world > 1):
        raise ScscoError(
            f"cuda_graph is set for {processes.world} processes on {device.type}; it captures one process on one GPU: "
            "leave it out"
        )
    return dataclasses.replace(config, device=name, precision=precision)


def check_folder(folder: Path, *, resume: bool) -> None:
    """Refuse what would overwrite a run, and a run to resume that is not there."""
    if resume and not folder.is_dir():
        raise ScscoError(f"{folder}: no such run to resume; wanted the output folder of an earlier run")
    if not resume and folder.exists() and (not folder.is_dir() or any(path.name != LOCK for path in folder.iterdir())):
        raise ScscoError(f"{folder}: exists already; choose another output folder, or scsco train resume {folder}")


def make_folder(folder: Path) -> None:
    """Make the run folder, or clear an existing one of what a killed run left half-written."""
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ScscoError(f"{folder}: cannot be made ({error.strerror}); choose another output folder") from error
    for place in (folder, folder / "checkpoints"):
        checkpoint.remove_temporary_files(place)


def build_model(config: TrainConfig) -> tuple[HarmonizationUNet, SCSCoLoss | None, str]:
    """The seeded model and its loss on their device, and the name of the VGG-16 weights that were found."""
    torch.manual_seed(config.seed)
    device = torch.device(config.device)
    try:
        model = HarmonizationUNet(**config.architecture()).to(device).train()
        model.working_size = config.size  # an affine head works at this size at most
        # Of a resumed run too: it may have no checkpoint yet.
        if model.trunk is not None and config.encoder_weights == "imagenet":
            load_imagenet(model.trunk)
        state = checkpoint.rng_state(device)
        loss, source = build_loss(config)
    except ScscoError:
        raise
    except ValueError as error:
        raise ScscoError(str(error)) from error
    # Dropout's random numbers must not depend on what the loss drew for its weights.
    checkpoint.restore_rng_state(state, device)
    return model, loss, source


def build_loss(config: TrainConfig) -> tuple[SCSCoLoss | None, str]:
    """The style contrastive loss and the name of its weights; None where `style_weight` is 0."""
    if config.style_weight == 0:
        return None, "none (style_weight 0)"
    encoder = VGG16Features(weights=config.vgg_weights, layers=config.vgg_layers).to(config.device)
    if config.channels_last:
        torch.nn.utils.convert_conv2d_weight_memory_format(encoder, torch.channels_last)
    if config.precision in AUTOCAST:
        # Once: autocast would cast the frozen weights anew at every step.
        encoder.features.to(AUTOCAST[config.precision])
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
        reconstruction=config.reconstruction,
    )
    return loss, encoder.source


def restore(
    folder: Path,
    step: TrainingStep,
    config: TrainConfig,
    samples: int,
    data: str | None,
    say: Callable[[str], object],
) -> Progress:
    """Load the newest complete checkpoint of a resumed run, and what it says of the run; seed each process."""
    rank = step.processes.rank
    if rank:  # the first process goes on from the weights' seed, as it would alone
        torch.manual_seed(step_seed(config.seed, -rank))
    found = checkpoint.newest_checkpoint(folder, lambda text: say(f"warning: {text}")) if config.resume else None
    if found is None:
        if config.resume:
            say(f"{folder}: no checkpoint yet, starting at step 0")
        return Progress()
    path, state = found
    changes = TrainConfig.from_dict(state["config"]).differences(config)
    wrong = [f"{name} {changes[name][0]} (now {changes[name][1]})" for name in config.architecture() if name in changes]
    if wrong:
        raise ScscoError(f"{path}: trained with {', '.join(wrong)}; resume with its own architecture")
    for name in changes.keys() - {"resume", "output"}:
        say(f"warning: {name} was {changes[name][0]}, goes on with {changes[name][1]}")
    if state["samples"] != samples:
        say(f"warning: there were {state['samples']} samples and are {samples}: the order of samples changes")
    if (before := state.get("data")) is not None and data is not None and before != data:
        say(
            f"warning: the training data are not those of {path}: there were {before}, here are {data}; "
            "the run goes on with these"
        )
    step.load_state_dict(state["training"], path)
    if len(state["rng"]) != step.processes.world:
        say(f"warning: saved by {len(state['rng'])} processes, goes on with {step.processes.world}: new dropout draws")
    if rank < len(state["rng"]):
        checkpoint.restore_rng_state(state["rng"][rank], step.device)
    say(f"resumed from {path} at step {state['step']}")
    return Progress(state["step"], state["bad_samples"], state["best"])


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    return {
        "scsco_fast": scsco_fast.__version__,
        "git": git_revision(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }


@functools.cache
def git_revision() -> str:
    """Commit of this source, "-dirty" where files were changed since; "unknown" where it is not in a git repository."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # an installed copy may lie in somebody else's repository
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def write_config(
    folder: Path, given: TrainConfig, resolved: TrainConfig, model: HarmonizationUNet, source: str, data: str | None
) -> None:
    """Write config.json: the configuration as given, what "auto" became here, and what the result depends on."""
    content = {
        "config": given.to_dict(),
        "resolved": {name: value for name, (_, value) in given.differences(resolved).items()},
        "vgg_source": source,
        "data": data,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "versions": versions(),
    }
    write_durably(folder / "config.json", lambda file: file.write(json.dumps(content, indent=2).encode()))


def summary(run: Run, done: int, source: str) -> str:
    """What the run did, and where it is."""
    folder, config, best = run.folder, run.config, run.best
    took = datetime.timedelta(seconds=round(time.perf_counter() - run.begun))
    speed = (done - run.first) * config.batch_size / (time.perf_counter() - run.begun)
    lines = [
        f"{done} of {config.steps} steps done; VGG-16 weights: {source}",
        f"  this time    {done - run.first} steps in {took}, {speed:.1f} images/s, {run.skipped} steps skipped in all, "
        f"{len(run.bad)} bad samples",
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
    if run.profile is not None:
        lines.append(f"  profile      {run.profile.folder}")
    return "\n".join(lines)


def _console(rank: int) -> Any:
    from rich.console import Console

    return Console(highlight=False, markup=False, soft_wrap=True, quiet=rank > 0)


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
