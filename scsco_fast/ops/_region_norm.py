"""Region normalisation: RAIN, and each region by its own statistics."""

from typing import Any

import torch
from torch import Tensor

from scsco_fast.kernels.region_norm import allocate, allocate_gradients
from scsco_fast.ops.backend import choose, implementation, is_reference
from scsco_fast.ops.checks import check_affine, check_map, check_regions
from scsco_fast.ops.registration import register_operation, register_reference, statistics_dtype
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
    affine = check_affine(x, fg_weight, fg_bias, bg_weight, bg_bias)
    chosen = choose(backend, "region_norm", x)
    if is_reference(chosen):
        function = torch.ops.scsco_fast.region_norm_reference
        return function(x, level.foreground, level.valid, affine, eps, adapt)
    return _region_norm(x, level.foreground, level.valid, affine, eps, adapt, chosen)[0]


register_reference(
    "region_norm_reference(Tensor x, Tensor foreground, Tensor? valid, Tensor affine, float eps, bool adapt) -> Tensor",
    reference.region_norm,
    like=0,
)


def _fake(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return allocate(x, statistics_dtype(x))


@register_operation("region_norm", _fake)
def _region_norm(
    x: Tensor, foreground: Tensor, valid: Tensor | None, affine: Tensor, eps: float, adapt: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return implementation(backend, "region_norm").forward(x, foreground, valid, affine, eps, adapt)


def _fake_backward(grad: Tensor, x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return allocate_gradients(x, statistics_dtype(x))


@register_operation("region_norm_backward", _fake_backward, differentiable=False)
def _region_norm_backward(
    grad: Tensor,
    x: Tensor,
    foreground: Tensor,
    valid: Tensor | None,
    affine: Tensor,
    mean: Tensor,
    std: Tensor,
    adapt: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return implementation(backend, "region_norm").backward(grad, x, foreground, valid, affine, mean, std, adapt)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, _, ctx.adapt, ctx.backend = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output[1:])


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 7
    dx, d_affine = _region_norm_backward(grad, *ctx.saved_tensors, ctx.adapt, ctx.backend)
    return dx, None, None, d_affine, None, None, None


torch.library.register_autograd(_region_norm, _backward, setup_context=_setup_context)
