"""Triton kernels, installed as `scsco_fast.kernels`: one file per operation. Imports torch and triton, nothing else.

Importing this package imports neither; the modules of the operations import both.
"""

import os
from functools import cache

OLDEST, NEWEST = (3, 6), (3, 9)  # Triton releases the kernels are written for
CAPABILITY = (8, 0)


def interpreted() -> bool:
    """True where Triton runs its kernels in its interpreter on the CPU (TRITON_INTERPRET=1 before Triton is imported)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def unavailable() -> str | None:
    """Why the kernels cannot serve on this machine, in one line; None if they can.

    Example:
        >>> from scsco_fast import kernels
        >>> reason = kernels.unavailable()
        >>> reason is None or isinstance(reason, str)
        True
    """
    return _no_triton() or (None if interpreted() else _no_device())


@cache
def _no_triton() -> str | None:
    try:
        import triton
    except ImportError as error:
        return f"Triton cannot be imported ({error}): pip install 'triton>={_text(OLDEST)}'"
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if not OLDEST <= version <= NEWEST:
        return f"Triton {triton.__version__} is installed, {_text(OLDEST)} to {_text(NEWEST)} is needed"
    return None


@cache
def _no_device() -> str | None:
    import torch

    if torch.version.cuda is None or not torch.cuda.is_available():
        return "no CUDA device: torch.cuda.is_available() is False"
    capability = torch.cuda.get_device_capability()
    if capability < CAPABILITY:
        return f"the GPU has compute capability {_text(capability)}, {_text(CAPABILITY)} or newer is needed"
    return None


def _text(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)
