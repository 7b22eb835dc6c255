"""Distances of feature maps. Here: what is allocated, by the launcher and for fake tensors; needs only torch."""

from torch import Tensor

from scsco_fast.kernels.memory import contiguous_like


def allocate_gradients(anchor: Tensor, others: Tensor, anchor_only: bool) -> tuple[Tensor, ...]:
    """Of the anchor alone or of both, contiguous."""
    return tuple(contiguous_like(tensor) for tensor in ((anchor,) if anchor_only else (anchor, others)))
