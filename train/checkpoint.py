"""Checkpoints: written whole or not at all, checked when read, and never read partially."""

import pickle
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from scsco_fast.errors import ScscoError
from scsco_fast.system.files import write_durably

FORMAT = 2  # 1 had the random state of one process, and neither the number of samples nor a best validation
LAST, BEST = "last.pt", "best.pt"
CONTENTS = frozenset({"format", "step", "config", "versions", "training", "rng", "bad_samples", "samples", "best"})
OPTIONAL = frozenset({"data"})  # not in earlier checkpoints of this format


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (the keys of `CONTENTS` but "format", and those of `OPTIONAL`) to `path` atomically."""
    with telling_what_to_do():
        try:
            write_durably(path, lambda file: torch.save({"format": FORMAT, **state}, file))
        except RuntimeError as error:  # torch.save turns a full disk into one
            raise ScscoError(f"{path}: cannot be written ({' '.join(str(error).split())})") from error


@contextmanager
def telling_what_to_do() -> Iterator[None]:
    """A file of a run cannot be written, on a full disk for one: the error says how to go on."""
    advice = "older checkpoints are intact: make room, then scsco train resume"
    try:
        yield
    except ScscoError as error:
        if advice in str(error):
            raise
        raise ScscoError(f"{error}; {advice}") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; a damaged or foreign file is a `ScscoError` that names it."""
    try:
        # torch.load does not check the archive's checksums: a flipped bit in a weight would pass.
        with zipfile.ZipFile(path) as archive:
            if (damaged := archive.testzip()) is not None:
                raise ScscoError(f"{path}: damaged checkpoint (checksum of {damaged}); use an older one")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ScscoError(f"{path}: no such checkpoint") from error
    except ScscoError:
        raise
    except pickle.UnpicklingError as error:  # its text recommends to run what the file holds
        raise ScscoError(
            f"{path}: holds more than numbers, text and tensors, such as code, which is never run; "
            "use a checkpoint that scsco train wrote"
        ) from error
    except Exception as error:  # a damaged archive fails in many ways: zip, pickle, storage sizes
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ScscoError(f"{path}: truncated or not a checkpoint ({reason}); use an older one") from error
    if isinstance(state, dict) and state.get("format") == 1:
        raise ScscoError(
            f"{path}: written by an earlier version (format 1, this one reads {FORMAT}); resume it with that version"
        )
    if not isinstance(state, dict) or set(state) - OPTIONAL != CONTENTS or state["format"] != FORMAT:
        raise ScscoError(f"{path}: not a training checkpoint of format {FORMAT}; use one that scsco train wrote")
    return state


def save_rotating(folder: Path, state: dict[str, Any], *, keep: int = 3, numbered: bool = True) -> None:
    """Write last.pt and, if `numbered`, a separate step_XXXXXXX.pt, of which the newest `keep` stay."""
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(folder / LAST, state)
    if not numbered:
        return
    # Written again, not a hard link: damage to one file must leave the other to fall back on.
    save_checkpoint(folder / f"step_{state['step']:07d}.pt", state)
    for old in numbered_checkpoints(folder)[keep:]:
        old.unlink()


def numbered_checkpoints(folder: Path) -> list[Path]:
    """The step_*.pt files, newest step first."""
    found = {path: path.stem.removeprefix("step_") for path in folder.glob("step_*.pt")}
    return sorted((path for path, step in found.items() if step.isdigit()), key=lambda path: -int(found[path]))


def newest_checkpoint(folder: Path, warn: Callable[[str], object]) -> tuple[Path, dict[str, Any]] | None:
    """The newest complete checkpoint of a run, or None where there is none at all.

    last.pt is tried first, then the numbered ones from the newest, and best.pt where none of those is newer; each
    unreadable one is passed to `warn`. A folder with checkpoints of which none can be read is a `ScscoError`.
    """
    candidates = [path for path in (folder / LAST, *numbered_checkpoints(folder)) if path.exists()]
    best = [path for path in [folder / BEST] if path.exists()]
    found = _first_readable(candidates, warn)
    if found is None or found[0].name != LAST:  # best.pt is often old, but may be newer than what is left
        other = _first_readable(best, warn)
        if other is not None and (found is None or other[1]["step"] > found[1]["step"]):
            found = other
    if found is None and candidates + best:
        count = len(candidates + best)
        raise ScscoError(f"{folder}: none of its {count} checkpoints can be read; train in a new folder")
    return found


def _first_readable(paths: list[Path], warn: Callable[[str], object]) -> tuple[Path, dict[str, Any]] | None:
    for path in paths:
        try:
            return path, load_checkpoint(path)
        except ScscoError as error:
            warn(f"skipped: {error}")
    return None


def remove_temporary_files(folder: Path) -> None:
    """Delete what a killed writer left behind in `folder`."""
    for path in folder.glob(".*.tmp.*"):
        path.unlink(missing_ok=True)


def rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """States of the default generators that dropout draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_rng_state(states: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def load_strictly(module: torch.nn.Module, state: dict[str, torch.Tensor], source: Path | str) -> None:
    """`load_state_dict` that names, in one line, the tensors that do not match, and then changes nothing."""
    own = module.state_dict()
    wrong = sorted(
        key
        for key in own.keys() | state.keys()
        if key not in own or key not in state or own[key].shape != state[key].shape
    )
    if wrong:
        shown = ", ".join(wrong[:3]) + (" ..." if len(wrong) > 3 else "")
        raise ScscoError(f"{source}: {len(wrong)} weights do not fit this model ({shown}); use its own configuration")
    module.load_state_dict(state, strict=True)
