"""Distances of Gram matrices that share one factor, on the compiled kernels of csrc/gram_distances.cu."""

import torch
from torch import Tensor

from scsco_fast.cuda.launch import common_dtype, rows, tf32
from scsco_fast.cuda.library import operations


def allocate_signs(anchor: Tensor, background: Tensor, others: Tensor) -> Tensor:
    """No element: the backward computes the signs of the products anew."""
    return torch.empty(0, dtype=torch.int8, device=anchor.device)


def forward(anchor: Tensor, background: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """mean |(f - o_j) b^T| / (H W): (B, J), float32; and `allocate_signs`."""
    parts: Tensor = operations().gram_distances_forward(*_operands(anchor, background, others), tf32(anchor))
    return parts.sum(2) * (2 / _size(anchor, background)), allocate_signs(anchor, background, others)


def backward(
    grad: Tensor, signs: Tensor, anchor: Tensor, background: Tensor, others: Tensor, anchor_only: bool
) -> tuple[Tensor, ...]:
    """With s_j = g_j sign((f - o_j) b^T) / n: df = sum_j s_j b, do_j = -s_j b, db = sum_j s_j^T (f - o_j).

    With `anchor_only` df alone is returned; all are computed.
    """
    if 0 in others.shape[:2]:
        inputs = (anchor,) if anchor_only else (anchor, background, others)
        return tuple(torch.zeros_like(t, memory_format=torch.contiguous_format) for t in inputs)
    scaled = (grad / _size(anchor, background)).contiguous()
    grads = operations().gram_distances_backward(scaled, *_operands(anchor, background, others), tf32(anchor))
    pairs = zip(grads, (anchor, background, others), strict=True)
    return tuple(d.to(t.dtype).view(t.shape) for d, t in pairs)[: 1 if anchor_only else 3]


def _operands(anchor: Tensor, background: Tensor, others: Tensor) -> list[Tensor]:
    """As rows of pixels, in the dtype in which they meet."""
    dtype = common_dtype(anchor, background, others)
    return [rows(t.to(dtype)) for t in (anchor, background, others)]


def _size(anchor: Tensor, background: Tensor) -> int:
    """Entries of one Gram matrix times the pixels it is divided by."""
    return anchor.shape[1] * background.shape[1] * anchor.shape[2] * anchor.shape[3]
