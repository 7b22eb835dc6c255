"""Region normalisation: RAIN, and each region by its own statistics."""

from typing import Any

import torch
from torch import Tensor

from scsco_fast.ops.backend import choose, implementation
from scsco_fast.ops.checks import check_map, check_parameters, check_regions
from scsco_fast.ops.registration import (
    empty_like,
    register_operation,
    register_reference,
    statistics_dtype,
)
from scsco_fast.reference import region_norm as reference
from scsco_fast.regions import RegionLevel, Regions


def region_norm(
    x: Tensor,
    regions_or_mask: Regions | RegionLevel | Tensor,
    fg_weight: Tensor | None = None,
    fg_bias: Tensor | None = None,
    bg_weight: Tensor | None = None,
    bg_bias: Tensor | None = None,
    eps: float = 1e-5,
    backend: str = "auto",
    adapt: bool = True,
) -> Tensor:
    """Normalise foreground and background apart; by default give the foreground the background's moments (RAIN).

    With mu_r and sigma_r = sqrt(var_r + eps) per image, channel and region (biased; an empty region has 0 and 1):

        background: y = (x - mu_b) / sigma_b * bg_weight + bg_bias
        foreground: y = ((x - mu_f) / sigma_f * sigma_b + mu_b) * fg_weight + fg_bias
        excluded:   y = 0

    Args:
        x: (B, C, H, W), float16 to float64; statistics are taken in float32 or wider.
        regions_or_mask: `Regions`, or a mask (B, 1, H', W') of any resolution, 1 = foreground.
        fg_weight, fg_bias, bg_weight, bg_bias: (C,) gains and offsets; None: 1 and 0. A module's gamma is gain - 1.
        eps: added to each variance.
        backend: "auto" or one of `scsco_fast.ops.backends()`.
        adapt: False leaves out sigma_b and mu_b, so that each region is normalised by its own moments only.

    Returns:
        (B, C, H, W) in the dtype of x. The same inputs give the same bits on one machine
        with as many threads.

    Raises:
        TypeError, ValueError: an argument's type, shape or device; the message names it.
        RuntimeError: an explicit backend cannot serve.

    Source: RAIN (Ling et al., CVPR 2021, equations 4 to 6).

    Examples:
        >>> import torch, scsco_fast as sf
        >>> x, mask = torch.randn(1, 3, 8, 8), torch.zeros(1, 1, 8, 8)
        >>> mask[..., :4] = 1
        >>> y = sf.ops.region_norm(x, mask, adapt=False)
        >>> bool(y[..., :4].mean().abs() < 1e-5)
        True
    """
    check_map("x", x)
    level = check_regions(regions_or_mask, x)
    parameters = check_parameters(x, fg_weight, fg_bias, bg_weight, bg_bias)
    chosen = choose(backend, "region_norm", x)
    if chosen == "reference":
        function = torch.ops.scsco_fast.region_norm_reference
        return function(x, level.foreground, level.valid, *parameters, eps, adapt)
    return _region_norm(x, level.foreground, level.valid, *parameters, eps, adapt, chosen)[0]


register_reference(
    "region_norm_reference(Tensor x, Tensor foreground, Tensor? valid, Tensor fg_weight, Tensor fg_bias, "
    "Tensor bg_weight, Tensor bg_bias, float eps, bool adapt) -> Tensor",
    reference.region_norm,
    like=0,
)


@register_operation("region_norm")
def _region_norm(
    x: Tensor,
    foreground: Tensor,
    valid: Tensor | None,
    fg_weight: Tensor,
    fg_bias: Tensor,
    bg_weight: Tensor,
    bg_bias: Tensor,
    eps: float,
    adapt: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    module = implementation(backend, "region_norm")
    return module.forward(x, foreground, valid, fg_weight, fg_bias, bg_weight, bg_bias, eps, adapt)


@torch.library.register_fake(_region_norm)
def _(
    x: Tensor,
    foreground: Tensor,
    valid: Tensor | None,
    fg_weight: Tensor,
    fg_bias: Tensor,
    bg_weight: Tensor,
    bg_bias: Tensor,
    eps: float,
    adapt: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    moments = x.new_empty((x.shape[0], x.shape[1], 2), dtype=statistics_dtype(x))
    return empty_like(x), moments, torch.empty_like(moments)


@register_operation("region_norm_backward", differentiable=False)
def _region_norm_backward(
    grad: Tensor,
    x: Tensor,
    foreground: Tensor,
    valid: Tensor | None,
    fg_weight: Tensor,
    bg_weight: Tensor,
    mean: Tensor,
    std: Tensor,
    adapt: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    module = implementation(backend, "region_norm")
    return module.backward(grad, x, foreground, valid, fg_weight, bg_weight, mean, std, adapt)


@torch.library.register_fake(_region_norm_backward)
def _(
    grad: Tensor,
    x: Tensor,
    foreground: Tensor,
    valid: Tensor | None,
    fg_weight: Tensor,
    bg_weight: Tensor,
    mean: Tensor,
    std: Tensor,
    adapt: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return empty_like(x), mean.new_empty((4, x.shape[1]))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, foreground, valid, fg_weight, _, bg_weight, _, _, ctx.adapt, ctx.backend = inputs
    _, mean, std = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, foreground, valid, fg_weight, bg_weight, mean, std)


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 10
    dx, d_parameters = _region_norm_backward(grad, *ctx.saved_tensors, ctx.adapt, ctx.backend)
    d_fg_weight, d_fg_bias, d_bg_weight, d_bg_bias = d_parameters.unbind()
    return dx, None, None, d_fg_weight, d_fg_bias, d_bg_weight, d_bg_bias, None, None, None


torch.library.register_autograd(_region_norm, _backward, setup_context=_setup_context)
