"""Distances of Gram matrices in Triton, and what their forward keeps for their backward; needs only torch."""

import torch
from torch import Tensor


def empty_signs(anchor: Tensor, background: Tensor, others: Tensor) -> Tensor:
    """Uninitialised, of the products (f - o_j) b^T: (B, J, Cf, Cb), int8."""
    shape = (*others.shape[:2], anchor.shape[1], background.shape[1])
    return torch.empty(shape, dtype=torch.int8, device=anchor.device)
