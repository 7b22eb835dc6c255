"""What the operations' modules share: how pixels are addressed, how float32 matrices are multiplied."""

import torch
from torch import Tensor


def rows(tensor: Tensor) -> Tensor:
    """(..., H, W) as (..., H * W): a view, or a copy where H and W have no common stride."""
    return tensor.flatten(-2)


def mask_rows(mask: Tensor) -> Tensor:
    """A bool mask (B, 1, H, W) as (B, H * W) bytes."""
    return rows(mask.view(torch.uint8)).squeeze(1)


def common_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype in which operands of a product meet: their own if they agree."""
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def turing(tensor: Tensor) -> bool:
    """Whether the tensor is on a GPU before compute capability 8.0: no TF32, 64 KiB of shared memory."""
    return tensor.is_cuda and torch.cuda.get_device_capability(tensor.device) < (8, 0)


def tf32(tensor: Tensor) -> bool:
    """Whether torch's own products of float32 matrices on the tensor's device use TF32; the kernels follow it."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32" and not turing(tensor)
