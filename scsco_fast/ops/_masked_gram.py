"""The Gram matrix of a feature map's foreground."""

from typing import Any

import torch
from torch import Tensor

from scsco_fast.kernels.masked_gram import allocate
from scsco_fast.kernels.memory import contiguous_like
from scsco_fast.ops.backend import choose, implementation, is_reference
from scsco_fast.ops.checks import check_map, check_regions
from scsco_fast.ops.registration import (
    register_operation,
    register_reference,
    statistics_dtype,
)
from scsco_fast.reference import masked_gram as reference
from scsco_fast.regions import RegionLevel, Regions


def masked_gram(features: Tensor, mask: Regions | RegionLevel | Tensor | None = None, backend: str = "auto") -> Tensor:
    """Gram matrix over the foreground: G_cd = sum over foreground pixels of F_c F_d / (H W).

    It equals `cross_gram(F * m, F * m)` with the binary mask m: divided by all pixels, not by the foreground's.

    Args:
        features: (B, C, H, W), float16 to float64.
        mask: `Regions`, a mask (B, 1, H', W') of any resolution, 1 = foreground, or None: every pixel.
        backend: "auto" or one of `scsco_fast.ops.backends()`.

    Returns:
        (B, C, C), symmetric, float32 (float64 for float64 features); 0 where the foreground is empty.

    Raises:
        TypeError, ValueError: an argument's type, shape or device; the message names it.
        RuntimeError: an explicit backend cannot serve.

    Source: Gatys et al., CVPR 2016; masked as in SCS-Co's self-style term.

    Examples:
        >>> import torch, scsco_fast as sf
        >>> sf.ops.masked_gram(torch.ones(1, 2, 4, 4)).tolist()
        [[[1.0, 1.0], [1.0, 1.0]]]
    """
    check_map("features", features)
    foreground = None if mask is None else check_regions(mask, features).foreground
    chosen = choose(backend, "masked_gram", features)
    if is_reference(chosen):
        return torch.ops.scsco_fast.masked_gram_reference(features, foreground)
    return _masked_gram(features, foreground, chosen)


register_reference("masked_gram_reference(Tensor features, Tensor? foreground) -> Tensor", reference.masked_gram)


def _fake(features: Tensor, foreground: Tensor | None, backend: str) -> Tensor:
    return allocate(features, statistics_dtype(features))


@register_operation("masked_gram", _fake)
def _masked_gram(features: Tensor, foreground: Tensor | None, backend: str) -> Tensor:
    return implementation(backend, "masked_gram").forward(features, foreground)


def _fake_backward(grad: Tensor, features: Tensor, foreground: Tensor | None, backend: str) -> Tensor:
    return contiguous_like(features)


@register_operation("masked_gram_backward", _fake_backward, differentiable=False)
def _masked_gram_backward(grad: Tensor, features: Tensor, foreground: Tensor | None, backend: str) -> Tensor:
    return implementation(backend, "masked_gram").backward(grad, features, foreground)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    features, foreground, ctx.backend = inputs
    ctx.save_for_backward(features, foreground)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _masked_gram_backward(grad, *ctx.saved_tensors, ctx.backend), None, None


torch.library.register_autograd(_masked_gram, _backward, setup_context=_setup_context)
