"""Which implementation serves an operation: explicit argument > `use_backend` > SCSCO_BACKEND > automatic choice."""

import importlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor

logger = logging.getLogger("scsco_fast")

ORDER = ("triton", "cuda", "eager", "reference")  # auto takes the first that can serve

_override: list[str] = []
_told: set[str] = set()


def backends() -> dict[str, str]:
    """Every backend with "yes", or the reason why it cannot serve here.

    Example:
        >>> import scsco_fast as sf
        >>> sf.ops.backends()["eager"]
        'yes'
    """
    return {name: _unavailable(name) or "yes" for name in ORDER}


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within the block every operation without a `backend` of its own uses `name` (for the whole process).

    "auto" leaves the choice to an enclosing block, to SCSCO_BACKEND, or to the automatic one.

    Raises:
        ValueError: no such backend.
        RuntimeError: the backend cannot serve here; the message says why.

    Example:
        >>> import scsco_fast as sf
        >>> with sf.use_backend("reference"):
        ...     pass
    """
    _checked(name, "use_backend")
    _override.append(name)
    try:
        yield
    finally:
        _override.pop()


def choose(requested: str, tensor: Tensor) -> str:
    """The backend that serves a call whose inputs live where `tensor` does; never "auto"."""
    where = "backend"
    if requested == "auto":
        requested = next((name for name in reversed(_override) if name != "auto"), "auto")
    if requested == "auto":
        requested, where = os.environ.get("SCSCO_BACKEND", "auto"), "SCSCO_BACKEND"
    _checked(requested, where)
    if requested != "auto":
        return requested
    for name in ORDER:
        reason = _unavailable(name)
        if reason is None:
            return name
        if tensor.is_cuda:
            _tell(name, reason)
    raise AssertionError("the eager backend serves everything")


def implementation(backend: str, operation: str) -> ModuleType:
    """The module that computes `operation` (`forward`, `backward`) for a backend that is not the reference."""
    return importlib.import_module(f"scsco_fast.{backend}.{operation}")


def _checked(name: str, where: str) -> None:
    if name not in (*ORDER, "auto"):
        raise ValueError(f"{where} {name!r} is not one of auto, {', '.join(ORDER)}")
    reason = None if name == "auto" else _unavailable(name)
    if reason is not None:
        raise RuntimeError(f"{where} {name!r} cannot be used: {reason}")


def _unavailable(name: str) -> str | None:
    """Why a backend cannot serve on this machine, or None."""
    if name in ("triton", "cuda"):
        return f"this version has no {name} kernels yet"
    return None


def _tell(name: str, reason: str) -> None:
    if torch.compiler.is_compiling() or name in _told:
        return
    _told.add(name)
    logger.info("backend %s is not used: %s", name, reason)
