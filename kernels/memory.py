"""Memory as several operations allocate it, in their launchers and for fake tensors; needs only torch."""

import torch
from torch import Tensor


def contiguous_like(tensor: Tensor) -> Tensor:
    """An uninitialised map with the shape and dtype of `tensor`, in raster order whatever the layout of `tensor`."""
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def map_like(tensor: Tensor, layout: Tensor | None = None) -> Tensor:
    """An uninitialised map with the shape and dtype of `tensor`, channels last where `layout` or else `tensor` is."""
    layout = tensor if layout is None else layout
    last = layout.is_contiguous(memory_format=torch.channels_last) and not layout.is_contiguous()
    memory_format = torch.channels_last if last else torch.contiguous_format
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device, memory_format=memory_format)


def shape_only(tensor: Tensor) -> Tensor:
    """One element with the shape and dtype of `tensor`: what a backward keeps of a map that it does not read."""
    return tensor.new_empty(1).expand(tensor.shape)
