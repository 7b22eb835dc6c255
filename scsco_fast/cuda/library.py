"""Finds, builds at first use and loads the compiled library, and says why it cannot be used."""

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scsco_fast.cuda import architectures, build, compilers, emulated

logger = logging.getLogger("scsco_fast")

AHEAD_OF_TIME = Path(__file__).resolve().parent / "built"  # where setup.py puts the library

_loaded: dict[str, Path] = {}  # by target, at most one: both register the same operations


@dataclass(frozen=True)
class Library:
    """A compiled library and what build.py wrote beside it."""

    path: Path
    facts: dict[str, str]


def operations() -> Any:
    """`torch.ops.scsco_fast_cuda`, with the library behind it.

    Raises:
        RuntimeError: it cannot be built or loaded.
    """
    load(_target())
    return torch.ops.scsco_fast_cuda


def load(target: str) -> Path:
    """Load the library of "cuda" or "emulated" into this process, and build it before if there is none.

    Raises:
        RuntimeError: it cannot be built (`BuildError`) or loaded.
    """
    if target in _loaded:
        return _loaded[target]
    if _loaded:
        other = next(iter(_loaded))
        raise RuntimeError(f"the {other} library is loaded already, and a process can hold one: start another process")
    if target == "cuda" and torch.version.cuda is None:
        raise RuntimeError(NO_CUDA)
    found = find(target)
    path = found.path if found else build.build(build.plan(target), logger.warning)
    try:
        torch.ops.load_library(path)
    except OSError as error:
        reason = str(error.__cause__ or error).splitlines()[0]  # torch's own message leaves the linker's out
        raise RuntimeError(f"the library cannot be loaded ({reason}); scsco build makes another") from error
    _loaded[target] = path
    return path


def find(target: str) -> Library | None:
    """The library built ahead of time, else the newest in the cache, that is of these sources and serves these GPUs."""
    return next((library for library in _libraries(target) if not _mismatch(library)), None)


def why_not(target: str) -> str | None:
    """Why the library cannot serve here, in one line, or None; nothing is built or loaded to find out."""
    reason = _no_device() if target == "cuda" else None
    if reason or find(target):
        return reason
    built = _libraries(target)
    state = f"the library that is built cannot be used ({_mismatch(built[0])})" if built else "no library is built"
    if os.environ.get("SCSCO_BUILD_CUDA") == "0":
        return f"{state}, and SCSCO_BUILD_CUDA=0 forbids building one at first use; run scsco build"
    try:
        facts = build.plan(target).facts()
        return _without_code(facts) or _beyond_driver(facts)
    except compilers.BuildError as error:
        return f"{state}, and none can be built: {error}"


def load_failure() -> str | None:
    """Load the library, which builds it if need be; why that failed, in one line, or None."""
    try:
        load(_target())
    except compilers.BuildError as error:
        return error.headline
    except RuntimeError as error:
        return str(error)
    return None


def describe() -> dict[str, str]:
    """For `scsco doctor`: what was built, for what, with what, where, and whether it is used."""
    target = _target()
    reason = why_not(target)
    built = _libraries(target)
    if not built:
        used = f"no: {reason}" if reason else "yes: built at first use, or by scsco build"
        return {"built": "nothing yet", "compiler": _compiler(target), "used": used}
    chosen = find(target) or built[0]
    stale = _mismatch(chosen)
    where = "ahead of time" if AHEAD_OF_TIME in chosen.path.parents else "in the cache"
    if reason or stale:
        used = f"no: {reason}" if reason else f"no: {stale}; another is built at first use, or by scsco build"
    else:
        used = "yes"
    return {
        "built": f"{chosen.path} ({where})",
        "architectures": chosen.facts["architectures"],
        "compiler": chosen.facts["compiler"],
        "torch": f"compiled with the headers of {chosen.facts['torch']}, runs with 2.10 and later",
        "used": used,
    }


NO_CUDA = "this torch is a CPU build, and CUDA code cannot be loaded without torch's CUDA functions"


def _compiler(target: str) -> str:
    """What would compile the library, or what is missing."""
    try:
        return build.plan(target).compiler_version
    except compilers.BuildError as error:
        return str(error)


def _target() -> str:
    return "emulated" if emulated() else "cuda"


def _libraries(target: str) -> list[Library]:
    """All that were built, ahead of time first, then the newest first."""
    cached = build.cache_folder().glob(f"{target}-*/{build.LIBRARY[target]}")
    paths = [AHEAD_OF_TIME / build.LIBRARY[target], *sorted(cached, key=lambda path: -path.stat().st_mtime)]
    facts = [path.parent / build.FACTS for path in paths]
    return [
        Library(path, json.loads(fact.read_text())) for path, fact in zip(paths, facts, strict=True) if fact.exists()
    ]


def _mismatch(library: Library) -> str | None:
    """Why a library is not for this package or these GPUs, or None."""
    target = library.facts["target"]
    try:
        if library.facts["sources"] != build.source_digest(target, build.source_folder()):
            return "it was built from other sources"
    except compilers.BuildError as error:
        return str(error)
    return _without_code(library.facts) or _beyond_driver(library.facts)


def _without_code(facts: dict[str, str]) -> str | None:
    """For which GPU a library has no code, or None: one without it would fail, or leave results unwritten."""
    for capability in _capabilities() if facts["target"] == "cuda" else []:
        if not architectures.serves(facts["architectures"], capability):
            return f"it was built for {facts['architectures']}, a GPU has {capability[0]}.{capability[1]}"
    return None


def _beyond_driver(facts: dict[str, str]) -> str | None:
    """Why the driver cannot run what this compiler makes, or None: nvcc may be no newer, in its major version."""
    if facts["target"] != "cuda" or torch.version.cuda is None or not torch.cuda.is_available():
        return None
    supported = vars(torch._C)["_cuda_getDriverVersion"]() // 1000
    made_by = compilers.cuda_of(facts["compiler"])
    if made_by <= supported:
        return None
    versions = f"nvcc is of CUDA {made_by}, the driver supports CUDA {supported}"
    return f"{versions}: use an older nvcc (CUDA_HOME) or a newer driver"


def _no_device() -> str | None:
    if torch.version.cuda is None:
        return NO_CUDA
    if not torch.cuda.is_available():
        return "no CUDA device: torch.cuda.is_available() is False"
    for major, minor in _capabilities():
        if (major, minor) < architectures.OLDEST_CAPABILITY:
            return (
                f"a GPU has compute capability {major}.{minor}, 7.5 or newer is needed (hide it: CUDA_VISIBLE_DEVICES)"
            )
    return None


def _capabilities() -> list[tuple[int, int]]:
    if torch.version.cuda is None:
        return []
    return sorted({torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())})
