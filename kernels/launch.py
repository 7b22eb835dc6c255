"""What the launchers share: who is served, how pixels are addressed, how float32 matrices are multiplied."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from scsco_fast.kernels.cases import ARCHITECTURES, Case

FROM_SHARED_MEMORY = (90, 100, 103)  # compute capabilities with warpgroup products
COMPUTE = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


def rows(tensor: Tensor) -> Tensor:
    """(..., H, W) as (..., H * W): a view, or a copy where H and W have no common stride."""
    return tensor.flatten(-2)


def mask_rows(mask: Tensor) -> Tensor:
    """A bool mask (B, 1, H, W) as (B, H * W) bytes."""
    return rows(mask.view(torch.uint8)).squeeze(1)


def empty(shape: tuple[int, ...], like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=like.device)


def precision(dtype: torch.dtype) -> str:
    """How `tl.dot` multiplies: "half", or for float32 "tf32" or "ieee" as torch's own products on the device do."""
    if dtype != torch.float32:
        return "half"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def is_ragged(*tensors: Tensor) -> bool:
    """True where Triton cannot use 16-byte loads: a size, stride or address that 16 does not divide."""
    return any(
        tensor.shape[-1] % 16
        or tensor.data_ptr() % 16
        or any(stride % 16 and stride != 1 for stride in tensor.stride())
        for tensor in tensors
    )


def multiplies_from_shared_memory(device: torch.device) -> bool:
    """True where the matrix instructions read operands from shared memory, so that registers hold larger blocks."""
    if device.type != "cuda":
        return False
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor in FROM_SHARED_MEMORY


def common_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype in which operands of a product meet: their own if they agree."""
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def split(programs: int, blocks: int, wanted: int, most: int, least_blocks: int = 1) -> int:
    """Into how many parts a sum over `blocks` blocks is cut so that about `wanted` programs run.

    It depends on shapes only: the order of every sum, and so every bit, is the same on every device.
    """
    return max(1, min(triton.cdiv(wanted, max(programs, 1)), most, blocks // least_blocks))


def pointers(names: str, dtype: str = "fp32") -> dict[str, str]:
    """Types of a kernel's pointers for `compile_cases`: {"x_ptr": "*fp32", ...} of "x ..."."""
    return {f"{name}_ptr": f"*{dtype}" for name in names.split()}


def case(
    label: str,
    kernel: Any,
    types: dict[str, str],
    constants: dict[str, Any],
    warps: int,
    stages: int = 3,
    tensor_cores: bool = False,
    ragged: bool = False,
) -> Case:
    """A case from pointer types and constants of several kernels: only what this one has; the rest are 32-bit integers.

    Strides, channels and pixels are divisible by 16 as in a network's maps, or, if `ragged`, none is.
    """
    names = list(kernel.arg_names)
    constexprs = {name: value for name, value in constants.items() if name in names}
    signature = {name: types.get(name, "i32") for name in names if name not in constexprs}
    sized = ("pixels", "rows", "depth", "channels")
    sixteen = [name for name in signature if not ragged and (name.startswith("stride") or name.endswith(sized))]
    aligned = (*(name for name in signature if name.endswith("_ptr")), *sixteen)
    label += " ragged" if ragged else ""
    core = not (ragged or "bf16" in label or "channels last" in label)
    # bfloat16 differs from float16 in conversions only: it is compiled for one architecture beside it.
    architectures = (90,) if "bf16" in label else ARCHITECTURES
    return Case(
        label, kernel, signature, constexprs, warps, stages, tensor_cores, architectures, aligned=aligned, core=core
    )
