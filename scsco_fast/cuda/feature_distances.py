"""Mean absolute differences of feature maps on the compiled kernels of csrc/feature_distances.cu."""

import torch
from torch import Tensor

from scsco_fast.cuda.launch import rows
from scsco_fast.cuda.library import operations


def forward(anchor: Tensor, others: Tensor) -> Tensor:
    """mean |f - o_j|: (B, J), float32."""
    parts = operations().feature_distances_forward(*_maps(anchor, others))
    return parts.sum(2) / anchor.shape[1:].numel()


def backward(grad: Tensor, anchor: Tensor, others: Tensor, anchor_only: bool) -> tuple[Tensor, ...]:
    """df = sum_j g_j sign(f - o_j) / n, do_j = -g_j sign(f - o_j) / n, with n = C H W; with `anchor_only` df alone."""
    scaled = (grad / anchor.shape[1:].numel()).contiguous()
    d_anchor, d_others = operations().feature_distances_backward(scaled, *_maps(anchor, others))
    d_anchor = d_anchor.view(anchor.shape).to(anchor.dtype)
    return (d_anchor,) if anchor_only else (d_anchor, d_others.view(others.shape).to(others.dtype))


def _maps(anchor: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C, N) and (B, J, C, N), in one dtype that holds both."""
    dtype = torch.promote_types(anchor.dtype, others.dtype)
    return rows(anchor).to(dtype), rows(others).to(dtype)
