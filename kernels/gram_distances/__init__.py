"""Distances of Gram matrices. Here: what is allocated, by the launcher and for fake tensors; needs only torch."""

import torch
from torch import Tensor

from scsco_fast.kernels.memory import contiguous_like


def allocate_signs(anchor: Tensor, background: Tensor, others: Tensor) -> Tensor:
    """Of the products (f - o_j) b^T, for the backward: (B, J, Cf, Cb), int8."""
    shape = (*others.shape[:2], anchor.shape[1], background.shape[1])
    return torch.empty(shape, dtype=torch.int8, device=anchor.device)


def allocate_gradients(anchor: Tensor, background: Tensor, others: Tensor, anchor_only: bool) -> tuple[Tensor, ...]:
    """Of the anchor alone or of all three, contiguous."""
    wanted = (anchor,) if anchor_only else (anchor, background, others)
    return tuple(contiguous_like(tensor) for tensor in wanted)
