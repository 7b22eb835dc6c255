"""Triton kernels, installed as `scsco_fast.kernels`: one file per operation. Imports torch and triton, nothing else.

Importing this package imports neither; the modules of the operations import both.
"""

import os
import re
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

OLDEST, NEWEST = (3, 6), (3, 9)  # Triton releases the kernels are written for
CAPABILITY = (8, 0)
DTYPES = ("float32", "bfloat16", "float16")
MAX_CHANNELS = 512
MAX_KEY_CHANNELS = 256
MAX_IMAGES = 65535  # of a grid's second and third dimension
MAX_PIXELS = 2**31 - 8192  # a pixel's number is 32 bits wide, and a block may begin before the last and end past it


def interpreted() -> bool:
    """True where Triton interprets its kernels on the CPU (TRITON_INTERPRET=1 before Triton is imported)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def unavailable() -> str | None:
    """Why the kernels cannot serve on this machine, in one line; None if they can.

    Examples:
        >>> from scsco_fast import kernels
        >>> reason = kernels.unavailable()
        >>> reason is None or isinstance(reason, str)
        True
    """
    return no_triton() or (None if interpreted() else _no_device())


@cache
def no_triton() -> str | None:
    try:
        import triton
    except ImportError as error:
        return f"Triton cannot be imported ({error}): pip install 'triton>={_text(OLDEST)}'"
    version = re.match(r"(\d+)\.(\d+)", triton.__version__)  # of "3.10+git1a2b" too
    if version is None or not OLDEST <= (int(version[1]), int(version[2])) <= NEWEST:
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


def refusal(operation: str, *tensors: "Tensor") -> str | None:
    """Why the kernels cannot serve floating maps (..., C, H, W) of an operation, in one line; None if they can.

    For `bain_attention` the tensors are value, query and key.
    """
    for tensor in tensors:
        name = str(tensor.dtype).removeprefix("torch.")
        if name not in DTYPES:
            return f"{name} inputs: the Triton kernels serve {', '.join(DTYPES)}"
        if max(tensor.shape[:-3]) > MAX_IMAGES:
            return f"{max(tensor.shape[:-3])} images: the Triton kernels serve at most {MAX_IMAGES}"
        pixels = tensor.shape[-2] * tensor.shape[-1]
        if pixels > MAX_PIXELS:
            return f"{pixels} pixels in an image: the Triton kernels serve at most {MAX_PIXELS}"
    channels = max(tensor.shape[-3] for tensor in tensors)
    if channels > MAX_CHANNELS:
        return f"{channels} channels: the Triton kernels serve at most {MAX_CHANNELS}"
    if operation == "bain_attention" and tensors[1].shape[-3] > MAX_KEY_CHANNELS:
        return f"{tensors[1].shape[-3]} query channels: the Triton kernels serve at most {MAX_KEY_CHANNELS}"
    return None
