"""The training loop: from a configuration to a run folder."""

import dataclasses
import math
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

import scsco_fast
from scsco_fast.data.samples import Batch, PackedBatch, collate
from scsco_fast.errors import ScscoError
from scsco_fast.evaluation import evaluate
from scsco_fast.nn.attention_maps import attention_maps, foreground_points
from scsco_fast.system.extras import require
from scsco_fast.system.locks import writing
from scsco_fast.train.build import build_model, deterministic, resolve
from scsco_fast.train.checkpoint import restore_rng_state, rng_state, telling_what_to_do
from scsco_fast.train.config import TrainConfig
from scsco_fast.train.console import ProgressBar, new_console, summary
from scsco_fast.train.decision import Decision, decide
from scsco_fast.train.failures import Failures
from scsco_fast.train.loader import boxes_of, build_loader
from scsco_fast.train.memory import kept_memory, peak_mib
from scsco_fast.train.processes import start_processes
from scsco_fast.train.profiling import Profile
from scsco_fast.train.report import COLUMNS, Report, Row
from scsco_fast.train.run_folder import Data, Progress, check_folder, make_folder, restore, save, write_config
from scsco_fast.train.samples import Samples, build_dataset, build_preview, build_validation, fingerprint
from scsco_fast.train.schedules import learning_rate
from scsco_fast.train.signals import StopSignals
from scsco_fast.train.step import TrainingStep


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
    folder, console, given = Path(config.output), new_console(processes.rank), config
    with deterministic(config.deterministic), scsco_fast.use_backend(config.backend), ExitStack() as held:
        with processes.together():
            check_folder(folder, resume=config.resume)
            if processes.rank == 0:
                held.enter_context(writing(folder))
                check_folder(folder, resume=config.resume)  # another run may have come and gone in between
            config = resolve(config, processes)
            samples = build_dataset(config) if dataset is None else dataset
            validation = build_validation(config) if dataset is None else validation
            preview = build_preview(config) if dataset is None else collate([dataset[index] for index in range(2)])
            model, loss, vgg_source = build_model(config)
        if config.device == "cpu":
            held.enter_context(kept_memory())
        step = TrainingStep(model, loss, config, processes)
        with processes.together():
            data = Data(len(samples), fingerprint(samples))
            progress = restore(folder, step, data, console.print)
            if processes.rank == 0:
                make_folder(folder)
                write_config(folder, given, step, vgg_source, data)
        processes.agree(progress.step, "checkpoint")
        team = f" by each of {processes.world_size} processes" if processes.world_size > 1 else ""
        steps = config.steps - progress.step
        console.print(f"{folder}: {steps} steps on {config.device}{team}, VGG-16 weights: {vgg_source}")
        run = Run(folder, step, progress, data, preview, validation, console)
        if profile and processes.rank == 0:
            run.profile = Profile(folder / "profile", step.device, steps)
        try:
            loop(run, build_loader(samples, config, progress.step, step.device, processes))
        finally:
            run.close()
    console.print(run.summary(vgg_source))
    return folder


def loop(run: "Run", batches: Iterable[Batch | PackedBatch]) -> None:
    """The next batch, a step, and what is due after it, until all steps are done or a signal asks for the end."""
    config, processes, progress = run.step.config, run.step.processes, run.progress
    if progress.step >= config.steps:  # a finished run that is resumed
        run.save(Decision(save_last=True))
        return
    with StopSignals(run.console.print) as stop, ProgressBar(run.console, config.steps, progress.first) as bar:
        run.since = time.perf_counter()
        for index, batch in zip(range(progress.first, config.steps), run.step.timer.waiting(batches), strict=False):
            # Every process learns of the others' images, signals and bad samples, and so decides as they do.
            gathered = processes.all_gather_integers([len(batch.names), stop.requested, len(batch.bad)])
            counts, stopping, bad = zip(*gathered, strict=True)
            if any(bad):
                run.failures.note_bad(batch.bad)
            if any(counts):
                run.do_step(batch, index, counts)
            progress.step = index + 1
            bar.advance()

            due = decide(config, progress.step, can_validate=run.validation is not None, stopping=any(stopping))
            if due.validate and run.validate():
                due = dataclasses.replace(due, save_best=True)
            if due.log:
                bar.show(run.log())
            if due.picture:
                run.show()
            if due.save_last or due.save_best:
                run.save(due)
            if due.stop:
                stop.requested = any(stopping)  # on whichever process
                break


class Run:
    """A run between its first and its last step: what is done in one, and what is due after some.

    Attributes:
        progress: how far it is.
        failures: the samples and steps that could not be used.
        report: metrics.csv and TensorBoard; None but in the first process.
        images, since: what was trained on since the last row of metrics.csv.
        validated: what a validation found that is not in metrics.csv yet.
    """

    def __init__(
        self,
        folder: Path,
        step: TrainingStep,
        progress: Progress,
        data: Data,
        preview: Batch,
        validation: Samples | None,
        console: Any,
    ) -> None:
        self.folder, self.step, self.progress, self.data = folder, step, progress, data
        self.preview, self.validation, self.console = preview, validation, console
        self.failures = Failures(step.config, step.processes, progress, data.samples, console.print)
        self.report = Report(folder, progress.first) if step.processes.rank == 0 else None
        self.profile: Profile | None = None
        self.begun = self.since = time.perf_counter()
        self.images = 0
        self.validated: dict[str, float] = {}

    def do_step(self, batch: Batch | PackedBatch, index: int, counts: Sequence[int]) -> None:
        """Train on this process's share of a batch; `counts` has the share of each."""
        self.failures.names[index] = batch.names
        composite, real, mask = batch.to(self.step.device)[:3]
        try:
            self.step(composite, real, mask, index, boxes_of(batch), counts)
        except RuntimeError as error:
            if self.step.config.deterministic and "deterministic" in str(error):
                reason = str(error).split(".")[0]
                raise ScscoError(f"deterministic is set, but {reason}; switch it off, or that operation") from error
            raise
        self.images += sum(counts)
        if self.profile is not None:
            self.profile.step()

    def validate(self) -> bool:
        """Measure the averaged model on the held-out composites; True where its fMSE is the lowest so far."""
        processes, best, found = self.step.processes, self.progress.best, {}
        lowest = math.inf if best is None else best["fmse"]
        with processes.together():
            if processes.rank == 0:
                found = validation_means(self.step, self.validation)
        found = processes.all_gather_object(found)[0]
        self.validated = {f"validation_{name}": value for name, value in found.items()}
        if not found["fmse"] < lowest:  # also where it is not a number
            return False
        self.progress.best = {"step": self.progress.step, **found}
        return True

    def log(self) -> Row:
        """Read the losses since the last row and write the next; stop when too many steps in a row were skipped."""
        speed = self.images / (time.perf_counter() - self.since)
        state = self.step.read()
        self.failures.note_skipped(state)
        row = {
            "step": self.progress.step,
            "learning_rate": learning_rate(self.step.config, self.progress.step - 1),
            "images_per_second": speed,
            "skipped_steps": state["skipped"],
            "bad_samples": len(self.progress.bad),
            "total": float("nan"),
            **{name: value for name, value in state["means"].items() if name in COLUMNS},
            **{f"{phase}_ms": value for phase, value in state["milliseconds"].items()},
            "memory_mib": peak_mib(self.step.device),
            "loss_scale": state["scale"],
            **self.validated,
        }
        with self.step.processes.together(), telling_what_to_do():
            if self.report is not None:
                self.report.add_row(row)
        self.images, self.since, self.validated = 0, time.perf_counter(), {}
        return row

    @torch.no_grad()
    def show(self) -> None:
        """Write what the averaged model makes of the preview, and which background its BAINs look at for it."""
        if not self.preview.names or self.report is None:
            return
        done, ema = self.progress.step, self.step.ema
        composite, real, mask = (x.to(self.step.device) for x in self.preview[:3])
        self.report.add_pictures(done, composite, ema(composite, mask), real, mask)
        points = foreground_points(mask)
        self.report.add_attention(done, composite, points, attention_maps(ema, composite, mask, points))

    def save(self, due: Decision) -> None:
        """Write the checkpoints and models that are due, and the plot of the losses."""
        rng = self.step.processes.all_gather_object(rng_state(self.step.device))
        with self.step.processes.together():
            if self.report is None:
                return
            save(self.folder, self.step, self.progress, self.data, rng, due)
            if due.save_last:
                with telling_what_to_do():
                    self.report.draw()

    def close(self) -> None:
        """Finish the files that are still open."""
        if self.profile is not None:
            self.profile.close()
        if self.report is not None:
            self.report.close()

    def summary(self, vgg_source: str) -> str:
        """What the run did, and where it is."""
        return summary(
            self.folder,
            self.step.config,
            self.progress,
            seconds=time.perf_counter() - self.begun,
            vgg_source=vgg_source,
            profile=None if self.profile is None else self.profile.folder,
        )


def validation_means(step: TrainingStep, samples: Any) -> dict[str, float]:
    """fMSE and PSNR of the averaged model over held-out samples; the random state stays as it was."""
    state = rng_state(step.device)
    means = evaluate(step.ema, samples, device=step.device, batch_size=step.config.batch_size).summaries()[-1].means
    restore_rng_state(state, step.device)
    return {name: float("nan") if (value := means[name]) is None else value for name in ("fmse", "psnr")}
