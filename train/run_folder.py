"""The run folder: what may be written there, config.json, checkpoints and models, and how a run is resumed."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from scsco_fast.errors import ScscoError
from scsco_fast.nn.weights import save_model
from scsco_fast.system.environment import versions
from scsco_fast.system.files import write_durably
from scsco_fast.system.locks import LOCK
from scsco_fast.train import checkpoint
from scsco_fast.train.config import TrainConfig
from scsco_fast.train.decision import Decision
from scsco_fast.train.schedules import step_seed
from scsco_fast.train.step import TrainingStep


class Data(NamedTuple):
    """What is known of the training samples: their number, and the `fingerprint` of what they hold."""

    samples: int
    fingerprint: str | None


@dataclass
class Progress:
    """What of a run is done, besides the weights.

    Attributes:
        step: how many steps.
        first: how many of them before this start of the run.
        skipped: how many of them were not finite and changed nothing.
        bad: name and reason of each sample that could not be used.
        best: "step", "fmse" and "psnr" of the best validation.
    """

    step: int = 0
    first: int = 0
    skipped: int = 0
    bad: dict[str, str] = field(default_factory=dict)
    best: dict[str, float] | None = None


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


def write_config(folder: Path, given: TrainConfig, step: TrainingStep, vgg_source: str, data: Data) -> None:
    """Write config.json: the configuration as given, what "auto" became here, and what the result depends on."""
    content = {
        "config": given.to_dict(),
        "resolved": {name: value for name, (_, value) in given.differences(step.config).items()},
        "vgg_source": vgg_source,
        "data": data.fingerprint,
        "parameters": sum(parameter.numel() for parameter in step.model.parameters()),
        "versions": versions(),
    }
    write_durably(folder / "config.json", lambda file: file.write(json.dumps(content, indent=2).encode()))


def save(folder: Path, step: TrainingStep, progress: Progress, data: Data, rng: list[Any], due: Decision) -> None:
    """Write the checkpoints and models that are due, each of them whole or not at all.

    Args:
        rng: the random state of each process.
    """
    state = {
        "step": progress.step,
        "config": step.config.to_dict(),
        "versions": versions(),
        "training": step.state_dict(),
        "rng": rng,
        "bad_samples": dict(progress.bad),
        "samples": data.samples,
        "data": data.fingerprint,
        "best": progress.best,
    }
    places, keep = folder / "checkpoints", step.config.keep_checkpoints
    metadata = {"working_size": step.config.size, "step": progress.step}
    with checkpoint.telling_what_to_do():
        if due.save_best:
            checkpoint.save_checkpoint(places / checkpoint.BEST, state)
            save_model(step.ema, folder / "best.safetensors", metadata)
        if due.save_last:
            checkpoint.save_rotating(places, state, keep=keep, numbered=due.save_numbered)
            save_model(step.ema, folder / "model.safetensors", metadata)


def restore(folder: Path, step: TrainingStep, data: Data, say: Callable[[str], object]) -> Progress:
    """Load the newest complete checkpoint of a run that is resumed, and what it says of the run; seed each process."""
    config, rank = step.config, step.processes.rank
    if rank:  # the first process goes on from the weights' seed, as it would alone
        torch.manual_seed(step_seed(config.seed, -rank))
    if not config.resume:
        return Progress()
    places = folder / "checkpoints"
    found = checkpoint.newest_checkpoint(places, lambda text: say(f"warning: {text}"))
    if found is None:
        say(f"{places}: no checkpoint yet, starting at step 0")
        return Progress()
    path, state = found
    _check_changes(path, state, config, data, say)
    step.load_state_dict(state["training"], path)
    processes = step.processes.world_size
    if len(state["rng"]) != processes:
        say(f"warning: saved by {len(state['rng'])} processes, goes on with {processes}: new dropout draws")
    if rank < len(state["rng"]):
        checkpoint.restore_rng_state(state["rng"][rank], step.device)
    say(f"resumed from {path} at step {state['step']}")
    skipped = int(state["training"]["skips"][0])
    return Progress(state["step"], state["step"], skipped, state["bad_samples"], state["best"])


def _check_changes(
    path: Path, state: dict[str, Any], config: TrainConfig, data: Data, say: Callable[[str], object]
) -> None:
    """Refuse a checkpoint of another architecture; warn of other settings and data that it was trained with."""
    changes = TrainConfig.from_dict(state["config"]).differences(config)
    wrong = [f"{name} {changes[name][0]} (now {changes[name][1]})" for name in config.architecture() if name in changes]
    if wrong:
        raise ScscoError(f"{path}: trained with {', '.join(wrong)}; resume with its own architecture")
    for name in changes.keys() - {"resume", "output"}:
        say(f"warning: {name} was {changes[name][0]}, goes on with {changes[name][1]}")
    if state["samples"] != data.samples:
        say(f"warning: there were {state['samples']} samples and are {data.samples}: the order of samples changes")
    before, now = state.get("data"), data.fingerprint
    if before is not None and now is not None and before != now:
        say(
            f"warning: the training data are not those of {path}: there were {before}, here are {now}; "
            "the run goes on with these"
        )
