"""BAIN's output in the attention's own pass: mean and deviation are never written, no pass over the map follows.

The kernels are `bain_attention`'s with another epilogue: packing writes the background's pixels, the attention the
foreground's. In the backward the pass that packs the gradients of mean and deviation forms them from those of the
output, and gives the gradients of the normalised map and of the affine as well.
"""

import torch
from torch import Tensor

from scsco_fast.kernels.bain_attention.launch import attend, attend_backward
from scsco_fast.kernels.bain_attention.pack_gradients import NormGradient
from scsco_fast.kernels.bain_norm import allocate, allocate_gradients
from scsco_fast.kernels.cases import Case


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    normalised: Tensor,
    order: Tensor,
    counts: Tensor,
    affine: Tensor,
    scale: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """BAIN's output y (B, C, H, W) in the dtype of normalised, in its memory format, and what `bain_attention` saves.

        foreground: y = (std * normalised + mean) * fg_weight + fg_bias
        background: y = normalised * bg_weight + bg_bias
        excluded:   y = 0

    Args:
        normalised: (B, C, H, W) of any layout, each pixel normalised by its own region's moments.
        affine: (4, C), the rows fg_weight, fg_bias, bg_weight and bg_bias.
    """
    y, packed, moments, scalars = results = allocate(query, key, value, normalised)
    saved, norm = (packed, moments, scalars), (normalised, _read(affine))
    attend(query, key, value, order, counts, scale, eps, (y, None), saved, norm)
    return results


def backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    normalised: Tensor,
    order: Tensor,
    counts: Tensor,
    affine: Tensor,
    packed: Tensor,
    moments: Tensor,
    scalars: Tensor,
    scale: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and normalised, and of affine (4, C) in float32.

    Of query, key and value only shapes and dtypes are read.
    """
    results = allocate_gradients(grad, query, key, value, normalised)
    dq, dk, dv, d_normalised, d_affine = results
    norm, saved = NormGradient(_read(affine), d_normalised, d_affine), (packed, moments, scalars)
    attend_backward((grad, normalised), query, key, value, order, counts, saved, scale, eps, (dq, dk, dv), norm)
    return results


def _read(affine: Tensor) -> Tensor:
    """As the kernels read it."""
    return affine.to(torch.float32).contiguous()


def compile_cases() -> list[Case]:
    """None: the kernels are `bain_attention`'s, whose cases have both epilogues."""
    return []
