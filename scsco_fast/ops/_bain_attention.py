"""BAIN's statistics: every foreground pixel's mean and deviation of the background pixels it resembles."""

from typing import Any

import torch
from torch import Tensor

from scsco_fast.ops.backend import choose, implementation, is_reference, memory
from scsco_fast.ops.checks import check_device, check_map, check_regions, check_same
from scsco_fast.ops.registration import autocasts, register_operation, register_reference
from scsco_fast.reference import bain_attention as reference
from scsco_fast.regions import RegionLevel, Regions


def bain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    regions_or_mask: Regions | RegionLevel | Tensor,
    scale: float | None = None,
    eps: float = 1e-5,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Attention-weighted mean and standard deviation of the background, for every foreground pixel.

        A_ij = softmax_j(scale * q_i . k_j)          i in the foreground, j over the background
        mean_i = sum_j A_ij v_j,   std_i = sqrt(max(sum_j A_ij v_j^2 - mean_i^2, 0) + eps)

    Args:
        query, key: (B, D, H, W). Under autocast both take the autocast dtype; value keeps its own.
        value: (B, C, H, W). Centred per image and channel by the background's mean before it is squared.
        regions_or_mask: `Regions`, or a mask (B, 1, H', W') of any resolution, 1 = foreground.
        scale: of the logits; None: 1 / sqrt(D).
        eps: added to each variance.
        backend: "auto" or one of `scsco_fast.ops.backends()`.

    Returns:
        mean and std, (B, C, H, W) each, in the dtype of value; 0 and 1 outside the foreground and in images without
        background, where no gradient flows. float32 or wider in between. The same inputs give the same bits on one
        machine with as many threads.

    Raises:
        TypeError, ValueError: an argument's type, shape or device; the message names it.
        RuntimeError: an explicit backend cannot serve.

    Source: SCS-Co (Hang et al., CVPR 2022) for the idea; AdaAttN (Liu et al., ICCV 2021) for the statistics.

    Examples:
        >>> import torch, scsco_fast as sf
        >>> x, mask = torch.randn(1, 8, 6, 6), torch.zeros(1, 1, 6, 6)
        >>> mask[..., :3] = 1
        >>> mean, std = sf.ops.bain_attention(torch.zeros_like(x), x, x, mask)  # uniform attention
        >>> torch.allclose(mean[..., 0, 0], x[..., 3:].mean(dim=(2, 3)), atol=1e-6)
        True
    """
    level = check_attention(query, key, value, regions_or_mask)
    query, key, scale = logit_operands(query, key, scale)
    chosen = choose(backend, "bain_attention", value, query, key)
    if is_reference(chosen):
        function = torch.ops.scsco_fast.bain_attention_reference
        return function(query, key, value, level.foreground, level.valid, scale, eps)
    mean, std, *_ = _bain_attention(query, key, value, level.order, level.counts, scale, eps, chosen)
    return mean, std


def check_attention(
    query: Tensor, key: Tensor, value: Tensor, regions_or_mask: Regions | RegionLevel | Tensor
) -> RegionLevel:
    """The regions at the size of value, after the checks of what an attention is given."""
    for name, tensor in {"query": query, "key": key, "value": value}.items():
        check_map(name, tensor)
        check_device(name, tensor, "value is", value.device)
    check_same("the shape of key", tuple(key.shape), "query", tuple(query.shape))
    check_same("batch and size of value", value.shape[:1] + value.shape[2:], "query", query.shape[:1] + query.shape[2:])
    return check_regions(regions_or_mask, value)


def logit_operands(query: Tensor, key: Tensor, scale: float | None) -> tuple[Tensor, Tensor, float]:
    """query and key in the autocast dtype where autocast is on, and the scale of their products."""
    if autocasts(query):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key = query.to(dtype), key.to(dtype)
    return query, key, query.shape[1] ** -0.5 if scale is None else float(scale)


register_reference(
    "bain_attention_reference(Tensor query, Tensor key, Tensor value, Tensor foreground, Tensor? valid, float scale, "
    "float eps) -> (Tensor, Tensor)",
    reference.bain_attention,
    like=2,
)


def _fake(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return memory(rest[-1], "bain_attention").allocate(query, key, value)


@register_operation("bain_attention", _fake)
def _bain_attention(
    query: Tensor, key: Tensor, value: Tensor, order: Tensor, counts: Tensor, scale: float, eps: float, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return implementation(backend, "bain_attention").forward(query, key, value, order, counts, scale, eps)


def _fake_backward(
    grad: Tensor, _: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    return memory(rest[-1], "bain_attention").allocate_gradients(grad, query, key, value)


@register_operation("bain_attention_backward", _fake_backward, differentiable=False)
def _bain_attention_backward(
    grad_mean: Tensor,
    grad_std: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    order: Tensor,
    counts: Tensor,
    saved_0: Tensor,
    saved_1: Tensor,
    saved_2: Tensor,
    scale: float,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    saved = (query, key, value, order, counts, saved_0, saved_1, saved_2)
    return implementation(backend, "bain_attention").backward(grad_mean, grad_std, *saved, scale, eps)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    query, key, value, order, counts, ctx.scale, ctx.eps, ctx.backend = inputs
    maps = memory(ctx.backend, "bain_attention").kept(query, key, value)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*maps, order, counts, *output[2:])


def _backward(ctx: Any, grad_mean: Tensor | None, grad_std: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_mean is None:
        if grad_std is None:
            return (None,) * 8
        grad_mean = torch.zeros_like(grad_std)
    grad_std = torch.zeros_like(grad_mean) if grad_std is None else grad_std
    grads = _bain_attention_backward(grad_mean, grad_std, *ctx.saved_tensors, ctx.scale, ctx.eps, ctx.backend)
    return *grads, None, None, None, None, None


torch.library.register_autograd(_bain_attention, _backward, setup_context=_setup_context)
