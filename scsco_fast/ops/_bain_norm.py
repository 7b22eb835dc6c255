"""BAIN's output: `bain_attention`'s statistics given to a normalised map, with the affine of each region."""

from typing import Any

import torch
from torch import Tensor

from scsco_fast.ops._bain_attention import bain_attention, check_attention, logit_operands
from scsco_fast.ops.backend import choose, implementation, implements, is_compiled, memory
from scsco_fast.ops.checks import check_affine, check_device, check_map, check_same
from scsco_fast.ops.registration import register_operation, statistics_dtype
from scsco_fast.reference.bain_norm import bain_norm as reference
from scsco_fast.regions import RegionLevel, Regions


def bain_norm(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    normalised: Tensor,
    regions_or_mask: Regions | RegionLevel | Tensor,
    fg_weight: Tensor | None = None,
    fg_bias: Tensor | None = None,
    bg_weight: Tensor | None = None,
    bg_bias: Tensor | None = None,
    scale: float | None = None,
    eps: float = 1e-5,
    backend: str = "auto",
) -> Tensor:
    """The foreground with the deviation and mean of the background that each of its pixels resembles.

        mean_i, std_i = bain_attention(query, key, value, regions)
        foreground:  y = (std_i * n_i + mean_i) * fg_weight + fg_bias
        background:  y = n_i * bg_weight + bg_bias
        excluded:    y = 0

    Only the `triton` backend computes this in the attention's own pass; the others write mean and std first.

    Args:
        query, key, value, regions_or_mask, scale, eps: as of `bain_attention`.
        normalised: n (B, C, H, W), each pixel normalised by its own region's moments, as
            `region_norm(x, regions, adapt=False)` returns it.
        fg_weight, bg_weight: (C,) gains; None: 1.
        fg_bias, bg_bias: (C,) offsets; None: 0.
        backend: "auto" or one of `scsco_fast.ops.backends()`.

    Returns:
        (B, C, H, W) in the dtype of normalised; float32 or wider in between, but that the `cuda` backend rounds mean
        and std to the dtype of value.

    Raises:
        TypeError, ValueError: an argument's type, shape or device; the message names it.
        RuntimeError: an explicit backend cannot serve.

    Source: SCS-Co (Hang et al., CVPR 2022), BAIN.

    Examples:
        >>> import torch, scsco_fast as sf
        >>> x, mask = torch.randn(1, 8, 6, 6), torch.zeros(1, 1, 6, 6)
        >>> mask[..., :3] = 1
        >>> n = sf.ops.region_norm(x, mask, adapt=False)
        >>> y = sf.ops.bain_norm(torch.zeros_like(x), n, x, n, mask)  # uniform attention: RAIN
        >>> torch.allclose(y, sf.ops.region_norm(x, mask), atol=1e-5)
        True
    """
    level = check_attention(query, key, value, regions_or_mask)
    check_map("normalised", normalised)
    check_same("the shape of normalised", tuple(normalised.shape), "value", tuple(value.shape))
    check_device("normalised", normalised, "value is", value.device)
    affine = check_affine(value, fg_weight, fg_bias, bg_weight, bg_bias)
    chosen = choose(backend, "bain_attention", value, query, key, normalised)
    if not implements(chosen, "bain_norm"):
        return _composed(query, key, value, normalised, level, affine, scale, eps, chosen)
    query, key, scale = logit_operands(query, key, scale)
    maps = (query, key, value, normalised)
    return _bain_norm(*maps, level.order, level.counts, affine, scale, eps, chosen)[0]


def _composed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    normalised: Tensor,
    level: RegionLevel,
    affine: Tensor,
    scale: float | None,
    eps: float,
    backend: str,
) -> Tensor:
    """The attention's maps first, then the formula, for backends without one pass for both."""
    dtype = statistics_dtype(value, normalised)
    if not is_compiled(backend):
        value = value.to(dtype)
    mean, std = bain_attention(query, key, value, level, scale, eps, backend)
    y = reference(normalised.to(dtype), mean.to(dtype), std.to(dtype), level.foreground, level.valid, affine)
    return y.to(normalised.dtype)


def _fake(query: Tensor, key: Tensor, value: Tensor, normalised: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return memory(rest[-1], "bain_norm").allocate(query, key, value, normalised)


@register_operation("bain_norm", _fake)
def _bain_norm(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    normalised: Tensor,
    order: Tensor,
    counts: Tensor,
    affine: Tensor,
    scale: float,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    maps = (query, key, value, normalised)
    return implementation(backend, "bain_norm").forward(*maps, order, counts, affine, scale, eps)


def _fake_backward(grad: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return memory(rest[-1], "bain_norm").allocate_gradients(grad, *rest[:4])


@register_operation("bain_norm_backward", _fake_backward, differentiable=False)
def _bain_norm_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    normalised: Tensor,
    order: Tensor,
    counts: Tensor,
    affine: Tensor,
    saved_0: Tensor,
    saved_1: Tensor,
    saved_2: Tensor,
    scale: float,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    saved = (query, key, value, normalised, order, counts, affine, saved_0, saved_1, saved_2)
    return implementation(backend, "bain_norm").backward(grad, *saved, scale, eps)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    query, key, value, *tensors, ctx.scale, ctx.eps, ctx.backend = inputs
    maps = memory(ctx.backend, "bain_norm").kept(query, key, value)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*maps, *tensors, *output[1:])


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 10
    *maps, d_affine = _bain_norm_backward(grad, *ctx.saved_tensors, ctx.scale, ctx.eps, ctx.backend)
    return *maps, None, None, d_affine, None, None, None


torch.library.register_autograd(_bain_norm, _backward, setup_context=_setup_context)
