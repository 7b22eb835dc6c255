"""BAIN's attention on the compiled kernels of csrc/bain_attention.cu and csrc/bain_attention_backward.cu."""

import torch
from torch import Tensor

from scsco_fast.cuda.launch import rows, tf32
from scsco_fast.cuda.library import operations


def allocate(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What `forward` returns, uninitialised, as the library allocates it."""
    (batch, channels), pixels = value.shape[:2], value.shape[2] * value.shape[3]
    first = value.new_empty((batch, pixels, channels), dtype=torch.float32)
    saved = first, torch.empty_like(first), first.new_empty((batch, pixels))
    return value.new_empty(value.shape), value.new_empty(value.shape), *saved


def allocate_gradients(grad: Tensor, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `backward` returns, uninitialised."""
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def kept(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the backward is given of the maps: all that they hold."""
    return query, key, value


def forward(
    query: Tensor, key: Tensor, value: Tensor, order: Tensor, counts: Tensor, scale: float, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Mean and deviation (B, C, H, W) in the dtype of value, and what the backward needs in float32.

    Matrices are multiplied in the dtype of query and key, so a float32 value under float16 or bfloat16 queries is
    centred in float32 and then rounded to that dtype. float32 ones follow `torch.get_float32_matmul_precision()`.

    Returns:
        mean, std, first (B, N, C): sum_j A_ij (v_j - pivot), variance (B, N, C) before the clamp, and lse (B, N), the
        logits' log-sum-exp; the last three by pixel, 0 outside the foreground.
    """
    mean, std, *saved = operations().bain_attention_forward(
        *_inputs(query, key, value, order, counts), scale, eps, tf32(value)
    )
    first, variance, lse = saved
    return mean.view(value.shape), std.view(value.shape), first, variance, lse


def backward(
    grad_mean: Tensor,
    grad_std: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    order: Tensor,
    counts: Tensor,
    first: Tensor,
    variance: Tensor,
    lse: Tensor,
    scale: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, contiguous and in their dtypes, from what `forward` saved."""
    saved = (t.contiguous() for t in (first, variance, lse))
    grads = operations().bain_attention_backward(
        *(rows(grad_mean), rows(grad_std), *_inputs(query, key, value, order, counts), *saved),
        *(scale, eps, tf32(value)),
    )
    d_query, d_key, d_value = (g.view(t.shape).to(t.dtype) for g, t in zip(grads, (query, key, value), strict=True))
    return d_query, d_key, d_value


def _inputs(query: Tensor, key: Tensor, value: Tensor, order: Tensor, counts: Tensor) -> tuple[Tensor, ...]:
    """Queries and keys meet in one dtype."""
    dtype = torch.promote_types(query.dtype, key.dtype)
    return rows(query.to(dtype)), rows(key.to(dtype)), rows(value), order.contiguous(), counts.contiguous()
