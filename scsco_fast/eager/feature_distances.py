"""Mean absolute differences of feature maps, one pair at a time: the differences are never held together."""

import math

import torch
from torch import Tensor

from scsco_fast.eager.dtypes import accumulate_dtype


def forward(anchor: Tensor, others: Tensor) -> Tensor:
    """mean |f - o_j|: (B, J)."""
    f = anchor.to(accumulate_dtype(anchor, others))
    distances = f.new_empty(others.shape[:2])
    for j, other in enumerate(others.unbind(1)):
        distances[:, j] = (f - other).abs_().mean(dim=(1, 2, 3))
    return distances


def backward(grad: Tensor, anchor: Tensor, others: Tensor, anchor_only: bool) -> tuple[Tensor, ...]:
    """df = sum_j g_j sign(f - o_j) / n, do_j = -g_j sign(f - o_j) / n, with n = C H W; with `anchor_only` df alone."""
    f = anchor.to(grad.dtype)
    scaled = grad / math.prod(anchor.shape[1:])
    d_anchor = torch.zeros_like(f, memory_format=torch.contiguous_format)
    d_others = None if anchor_only else torch.empty_like(others, memory_format=torch.contiguous_format)
    for j, other in enumerate(others.unbind(1)):
        flow = (f - other).sign_().mul_(scaled[:, j].reshape(-1, 1, 1, 1))
        d_anchor += flow
        if d_others is not None:
            d_others[:, j] = -flow
    d_anchor = d_anchor.to(anchor.dtype)
    return (d_anchor,) if d_others is None else (d_anchor, d_others)
