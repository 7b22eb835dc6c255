"""BAIN's output in its attention's pass. Here: what the launcher allocates, and fake tensors take; needs only torch."""

import torch
from torch import Tensor

from scsco_fast.kernels.bain_attention import allocate_gradients as attention_gradients
from scsco_fast.kernels.bain_attention import buffers, kept
from scsco_fast.kernels.memory import map_like

__all__ = ["allocate", "allocate_gradients", "kept"]


def allocate(query: Tensor, key: Tensor, value: Tensor, normalised: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The output, in the memory format of normalised, and the attention's buffers."""
    return map_like(normalised), *buffers(query, key, value)


def allocate_gradients(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, normalised: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of query, key, value and normalised, and of the affine (4, C)."""
    d_affine = value.new_empty((4, value.shape[1]), dtype=torch.float32)
    return *attention_gradients(grad, query, key, value), map_like(normalised), d_affine
