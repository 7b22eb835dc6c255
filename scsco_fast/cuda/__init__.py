"""CUDA C++ kernels (csrc/), compiled on torch's stable ABI: one module per operation. Knows torch and its own files.

Importing this package imports no torch and builds nothing.
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

DTYPES = ("float32", "bfloat16", "float16")
BFLOAT16_CAPABILITY = (8, 0)
MAX_IMAGES = 65535  # of a grid's second and third dimension

_unavailable: dict[bool, str | None] = {}
_failed: dict[bool, str | None] = {}


def emulated() -> bool:
    """True where SCSCO_CUDA_EMULATION=1 has the kernels' code run on the CPU, as plain C++."""
    return os.environ.get("SCSCO_CUDA_EMULATION", "0").lower() in ("1", "true", "on", "yes", "y")


def unavailable() -> str | None:
    """Why the kernels cannot serve on this machine, in one line; None if they can, built already or at first use.

    Examples:
        >>> from scsco_fast import cuda
        >>> reason = cuda.unavailable()
        >>> reason is None or isinstance(reason, str)
        True
    """
    from scsco_fast.cuda import library

    wanted = emulated()
    if wanted not in _unavailable:
        _unavailable[wanted] = library.why_not("emulated" if wanted else "cuda")
    return _unavailable[wanted]


def refusal(*tensors: "Tensor") -> str | None:
    """Why the kernels cannot serve floating maps (..., C, H, W), in one line; None if they can.

    Where all else is well it loads the library, so that one that cannot be built or loaded is a reason too.
    """
    return _unfit_device(tensors[0]) or unavailable() or _unfit(*tensors) or _load_failure()


def _unfit_device(tensor: "Tensor") -> str | None:
    served = "cpu" if emulated() else "cuda"
    if tensor.device.type == served:
        return None
    emulation = " under SCSCO_CUDA_EMULATION" if emulated() else ""
    return f"the inputs are on {tensor.device.type}, the library serves {served}{emulation}"


def _unfit(*tensors: "Tensor") -> str | None:
    for tensor in tensors:
        name = str(tensor.dtype).removeprefix("torch.")
        if name not in DTYPES:
            return f"{name} inputs: the CUDA kernels serve {', '.join(DTYPES)}"
        if max(tensor.shape[:-3]) > MAX_IMAGES:
            return f"{max(tensor.shape[:-3])} images: the CUDA kernels serve at most {MAX_IMAGES}"
        if name == "bfloat16" and tensor.is_cuda and _capability(tensor) < BFLOAT16_CAPABILITY:
            return "bfloat16 inputs: the GPU is older than compute capability 8.0"
    return None


def _capability(tensor: "Tensor") -> tuple[int, int]:
    import torch

    return torch.cuda.get_device_capability(tensor.device)


def _load_failure() -> str | None:
    from scsco_fast.cuda import library

    wanted = emulated()
    if wanted not in _failed:
        _failed[wanted] = library.load_failure()
    return _failed[wanted]


# What torch.compiler.assume_constant_result does, without importing torch: these read files, which cannot be traced.
for _function in (unavailable, _load_failure):
    vars(_function)["_dynamo_marked_constant"] = True
