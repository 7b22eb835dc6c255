"""BAIN's output in the attention's own pass: mean and deviation are never written, no pass over the map follows.

The kernels are `bain_attention`'s with another epilogue: packing writes the background's pixels, the attention the
foreground's. In the backward the pass that packs the gradients of mean and deviation forms them from those of the
output, and gives the gradients of the normalised map and of the affine as well.
"""

from torch import Tensor

from scsco_fast.kernels.bain_attention.launch import attend, attend_backward, supports
from scsco_fast.kernels.bain_attention.pack import Affine
from scsco_fast.kernels.memory import map_like
from scsco_fast.kernels.resources import Case

__all__ = ["backward", "compile_cases", "forward", "supports"]


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    normalised: Tensor,
    order: Tensor,
    counts: Tensor,
    fg_weight: Tensor,
    fg_bias: Tensor,
    bg_weight: Tensor,
    bg_bias: Tensor,
    scale: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """BAIN's output y (B, C, H, W) in the dtype of normalised, in its memory format, and what `bain_attention` saves.

        foreground: y = (std * normalised + mean) * fg_weight + fg_bias
        background: y = normalised * bg_weight + bg_bias
        excluded:   y = 0

    Args:
        normalised: (B, C, H, W) of any layout, each pixel normalised by its own region's moments.
        fg_weight, fg_bias, bg_weight, bg_bias: (C,) gains and offsets.

    Raises:
        ValueError: `supports` has a reason.
    """
    y = map_like(normalised)
    affine = Affine(*(p.contiguous() for p in (fg_weight, fg_bias, bg_weight, bg_bias)))
    return y, *attend(query, key, value, order, counts, scale, eps, (y, None), (normalised, affine))


def backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    normalised: Tensor,
    order: Tensor,
    counts: Tensor,
    fg_weight: Tensor,
    bg_weight: Tensor,
    packed: Tensor,
    moments: Tensor,
    scalars: Tensor,
    scale: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and normalised, and (4, C) float32 of fg_weight, fg_bias, bg_weight, bg_bias.

    Of query, key and value only shapes and dtypes are read.
    """
    dx = map_like(normalised)
    norm = (fg_weight.contiguous(), bg_weight.contiguous(), dx)
    saved = (packed, moments, scalars)
    grads, d_affine = attend_backward((grad, normalised), query, key, value, order, counts, saved, scale, eps, norm)
    assert d_affine is not None
    return *grads, dx, d_affine


def compile_cases() -> list[Case]:
    """None: the kernels are `bain_attention`'s, whose cases have both epilogues."""
    return []
