"""Which implementation serves an operation: explicit argument > `use_backend` > SCSCO_BACKEND > automatic choice."""

import importlib
import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from scsco_fast import cuda, kernels

logger = logging.getLogger("scsco_fast")

ORDER = ("triton", "cuda", "eager", "reference")
AUTOMATIC = ("triton", "cuda", "eager")  # what auto tries, in this order; the last serves everything
# Where a backend's modules are, by the operation's name. All have `forward` and `backward` with the same arguments, and
# results of the same structure. The reference has none: it is plain PyTorch, which autograd differentiates.
MODULES = {"triton": "scsco_fast.kernels.{}.launch", "cuda": "scsco_fast.cuda.{}", "eager": "scsco_fast.eager.{}"}
# Where they say what they allocate, in modules that need torch alone: fake tensors are given what that says.
MEMORY = MODULES | {"triton": "scsco_fast.kernels.{}"}

_override: list[str] = []
_told: set[str] = set()
_implements: dict[tuple[str, str], bool] = {}


def backends() -> dict[str, str]:
    """Every backend with "yes", or the reason why it cannot serve here.

    Examples:
        >>> import scsco_fast as sf
        >>> sf.ops.backends()["eager"]
        'yes'
    """
    return {name: unavailable(name) or "yes" for name in ORDER}


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within the block every operation without a `backend` of its own uses `name` (for the whole process).

    "auto" leaves the choice to an enclosing block, to SCSCO_BACKEND, or to the automatic one.

    Raises:
        ValueError: no such backend.
        RuntimeError: the backend cannot serve here; the message says why.

    Examples:
        >>> import scsco_fast as sf
        >>> with sf.use_backend("reference"):
        ...     pass
    """
    _check_name(name, "use_backend")
    if name != "auto":
        _require(name, "use_backend", unavailable(name))
    _override.append(name)
    try:
        yield
    finally:
        _override.pop()


def choose(requested: str, operation: str, *tensors: Tensor) -> str:
    """The backend, never "auto", that serves a call of `operation` with these floating inputs.

    Raises:
        ValueError: no such backend.
        RuntimeError: the backend that was asked for cannot serve; the message says why.
    """
    where = "backend"
    if requested == "auto":
        requested = next((name for name in reversed(_override) if name != "auto"), "auto")
    if requested == "auto":
        requested, where = os.environ.get("SCSCO_BACKEND", "auto"), "SCSCO_BACKEND"
    _check_name(requested, where)
    if requested != "auto":
        _require(requested, where, refusal(requested, operation, *tensors))
        return requested
    for name in AUTOMATIC:
        reason = refusal(name, operation, *tensors)
        if reason is None:
            return name
        if tensors[0].is_cuda:
            _tell(name, operation, reason)
    raise AssertionError("the eager backend serves everything")


def is_reference(backend: str) -> bool:
    """Whether a backend is the reference, whose operations decompose into plain PyTorch."""
    return backend not in MODULES


def is_compiled(backend: str) -> bool:
    """Whether a backend runs kernels, which read 16-bit maps in half the time; others make 32-bit copies of them."""
    return backend in ("triton", "cuda")


def implementation(backend: str, operation: str) -> ModuleType:
    """The module that computes `operation` (`forward`, `backward`) for a backend that is not the reference."""
    return importlib.import_module(MODULES[backend].format(operation))


def memory(backend: str, operation: str) -> ModuleType:
    """The module that says what the backend's implementation allocates for `operation`, and what it keeps."""
    return importlib.import_module(MEMORY[backend].format(operation))


def implements(backend: str, operation: str) -> bool:
    """Whether a backend has a module of its own for `operation`; the reference has none."""
    if is_reference(backend):
        return False
    if (backend, operation) not in _implements:
        package, module = MODULES[backend].format(operation).rsplit(".", 1)
        found = importlib.util.find_spec(package)
        folders = found.submodule_search_locations if found is not None else None
        _implements[backend, operation] = any(Path(folder, f"{module}.py").is_file() for folder in folders or ())
    return _implements[backend, operation]


def refusal(name: str, operation: str, *tensors: Tensor) -> str | None:
    """Why a backend cannot serve these inputs, or None; implementations do not ask again."""
    if not (is_reference(name) or implements(name, operation)):
        return f"the {name} backend has no kernel of {operation}"
    if name == "cuda":
        return cuda.refusal(*tensors)
    if name != "triton":
        return unavailable(name)
    if not (tensors[0].is_cuda or kernels.interpreted()):  # before Triton is imported, which takes a second
        return f"the inputs are on {tensors[0].device.type}, Triton serves CUDA devices"
    return unavailable(name) or kernels.refusal(operation, *tensors)


def unavailable(name: str) -> str | None:
    """Why a backend cannot serve on this machine, or None."""
    if name == "triton":
        return kernels.unavailable()
    return cuda.unavailable() if name == "cuda" else None


# What torch.compiler.assume_constant_result sets, without its import of torch._dynamo (about a second): under
# torch.compile the answer is asked for once, and the imports and device queries behind it are not traced.
for _function in (unavailable, implements):
    _function.__dict__["_dynamo_marked_constant"] = True


def _check_name(name: str, where: str) -> None:
    if name not in (*ORDER, "auto"):
        raise ValueError(f"{where} {name!r} is not one of auto, {', '.join(ORDER)}")


def _require(name: str, where: str, reason: str | None) -> None:
    if reason is not None:
        raise RuntimeError(f"{where} {name!r} cannot be used: {reason}")


def _tell(name: str, operation: str, reason: str) -> None:
    text = f"backend {name} is not used for {operation}: {reason}"
    if torch.compiler.is_compiling() or text in _told:
        return
    _told.add(text)
    logger.info(text)
