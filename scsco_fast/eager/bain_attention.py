"""BAIN's attention in blocks of foreground rows: no attention matrix is kept, the backward recomputes it.

Pixels are packed as rows, foreground queries against background keys. A block holds at most `BLOCK_ELEMENTS` logits (or
`MIN_ROWS` rows), so memory grows with the number of pixels and not with its square, and its rows are complete: the
softmax needs no second pass.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from scsco_fast.eager.dtypes import accumulate_dtype

BLOCK_ELEMENTS = 1 << 18  # 1 MiB of float32 logits stays in the cache: at B = 8, 64x64, C = 16 up to 1.8x faster than 4
MIN_ROWS = 64  # fewer rows than this starve the matrix product


@dataclass
class _Packed:
    """One group of images as rows, `index` naming the pixels they came from."""

    images: slice
    queries_at: Tensor  # (b, Q) pixel of each query
    keys_at: Tensor  # (b, K) pixel of each key
    query: Tensor  # (b, Q, dk)
    key: Tensor  # (b, K, dk)
    value: Tensor  # (b, K, C), minus the pivot
    pivot: Tensor  # (b, 1, C), the background's mean
    is_query: Tensor | None  # (b, Q, 1) bool; None: every row is one
    is_key: Tensor | None  # (b, 1, K) bool; None: every row is one

    def blocks(self) -> Iterator[slice]:
        batch, keys = self.keys_at.shape
        rows = max(MIN_ROWS, BLOCK_ELEMENTS // max(batch * keys, 1))
        for start in range(0, self.queries_at.shape[1], rows):
            yield slice(start, start + rows)

    def logits(self, rows: slice, scale: float) -> Tensor:
        logits = (self.query[:, rows] * scale) @ self.key.transpose(1, 2)
        return logits if self.is_key is None else logits.masked_fill_(~self.is_key, -torch.inf)


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    order: Tensor,
    counts: Tensor,
    scale: float,
    eps: float,
    static: bool | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Mean and deviation (B, C, H, W) in the dtype of value, and what the backward needs in float32 or wider.

    Args:
        static: compute at the mask-independent shape instead of the exact one; None: on every device but the CPU.

    Returns:
        mean, std, first (B, N, C): sum_j A_ij (v_j - pivot), variance (B, N, C) before the clamp, and lse (B, N), the
        logits' log-sum-exp; the last three by pixel, 0 outside the foreground.
    """
    dtype = accumulate_dtype(query, key, value)
    batch, channels, height, width = value.shape
    pixels = height * width
    mean = value.new_zeros((batch, pixels, channels), dtype=dtype)
    std = torch.ones_like(mean)
    first, variance = torch.zeros_like(mean), torch.zeros_like(mean)
    lse = mean.new_zeros((batch, pixels))
    for packed in _pack(query, key, value, order, counts, dtype, static):
        moments_of = torch.cat([packed.value, packed.value.square()], dim=2)  # (b, K, 2C)
        for rows in packed.blocks():
            weights = packed.logits(rows, scale)
            peak = weights.amax(dim=2, keepdim=True)
            if packed.is_key is not None:
                peak = torch.where(peak.isfinite(), peak, 0)  # a row without keys
            weights = weights.sub_(peak).exp_()
            total = weights.sum(dim=2, keepdim=True)
            if packed.is_key is not None:
                total = total.clamp(min=torch.finfo(dtype).tiny)
            a, b = ((weights @ moments_of) / total).chunk(2, dim=2)
            var = b - a.square()
            block = (a + packed.pivot, (var.clamp(min=0) + eps).sqrt(), a, var, (total.log() + peak))
            for target, source in zip((mean, std, first, variance, lse.unsqueeze(2)), block, strict=True):
                _scatter(target[packed.images], packed, rows, source)
    return _to_map(mean, value), _to_map(std, value), first, variance, lse


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
    static: bool | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, in their dtypes.

    With v' = v - pivot, a = A v', b = A v'^2, var = b - a^2, P = A recomputed from the saved log-sum-exp:

        dvar = dstd / (2 std), 0 where var was clamped;  da = dmean - 2 a dvar;  db = dvar
        dP = da v'^T + db v'^2^T;  dS = P (dP - rowsum(P dP))
        dq = scale dS k;  dk = scale dS^T q;  dv = P^T da + 2 v' (P^T db)

    The pivot cancels and needs no gradient. rowsum(P dP) equals rowsum(da a + db b), but only the sum of the same
    products cancels against them: where a query has one key, dS is then 0 and not the rounding of dP, which is 1e10 for
    values of 1e4. For the same reason P's rows are divided by their sum, as the log-sum-exp of logits above 1e4 is
    rounded by 1e-3 and more.
    """
    dtype = first.dtype
    d_mean, d_std = (g.to(dtype).flatten(2).transpose(1, 2) for g in (grad_mean, grad_std))  # (B, N, C)
    d_query, d_key, d_value = (torch.zeros_like(_rows(t, dtype)) for t in (query, key, value))
    for packed in _pack(query, key, value, order, counts, dtype, static):
        channels = packed.value.shape[2]
        moments_of = torch.cat([packed.value, packed.value.square()], dim=2)
        dk, weighted = torch.zeros_like(packed.key), torch.zeros_like(moments_of)
        for rows in packed.blocks():
            pixels = packed.queries_at[:, rows]
            a, var, dm, ds = (_gather(t[packed.images], pixels) for t in (first, variance, d_mean, d_std))
            peak = lse[packed.images].gather(1, pixels).unsqueeze(2)
            weights = packed.logits(rows, scale).sub_(peak).exp_()  # P, before the division
            d_var = torch.where(var >= 0, 0.5 * ds * (var.clamp(min=0) + eps).rsqrt(), 0)
            d_moments = torch.cat([dm - 2 * a * d_var, d_var], dim=2)  # (b, rows, 2C)
            if packed.is_query is not None:
                # Rows that are no queries hold logits no log-sum-exp belongs to: their weights may be infinite.
                weights = torch.where(packed.is_query[:, rows], weights, 0)
                d_moments = torch.where(packed.is_query[:, rows], d_moments, 0)
            total = weights.sum(dim=2, keepdim=True).clamp(min=torch.finfo(dtype).tiny)
            d_moments /= total
            d_logits = (d_moments @ moments_of.transpose(1, 2)).mul_(weights)
            d_logits.addcmul_(weights, d_logits.sum(dim=2, keepdim=True) / total, value=-1)
            _scatter(d_query[packed.images], packed, rows, (d_logits @ packed.key).mul_(scale))
            dk += d_logits.transpose(1, 2) @ packed.query[:, rows]
            weighted += weights.transpose(1, 2) @ d_moments
        dv = weighted[..., :channels] + 2 * packed.value * weighted[..., channels:]
        if packed.is_key is not None:
            keep = packed.is_key.transpose(1, 2)
            dk, dv = torch.where(keep, dk, 0), torch.where(keep, dv, 0)
        _put(d_key[packed.images], packed.keys_at, dk.mul_(scale))
        _put(d_value[packed.images], packed.keys_at, dv)
    return _to_map(d_query, query), _to_map(d_key, key), _to_map(d_value, value)


def _pack(
    query: Tensor, key: Tensor, value: Tensor, order: Tensor, counts: Tensor, dtype: torch.dtype, static: bool | None
) -> Iterator[_Packed]:
    """Groups of images as packed rows: each image at its exact counts, or the whole batch at its static shape."""
    pixels = order.shape[1]
    q, k, v = (_rows(t, dtype) for t in (query, key, value))
    if order.device.type != "cpu" if static is None else static:
        place = torch.arange(pixels, device=order.device)
        n_fg, n_bg = counts[:, :1], counts[:, 1:]
        is_query = ((place < n_fg) & (n_bg > 0)).unsqueeze(2)
        # An image without queries has no keys: its gradients are 0, and 0 times a key that is NaN would not be.
        is_key = ((place >= pixels - n_bg) & (n_fg > 0)).unsqueeze(1)
        yield _packed(slice(None), order, order, q, k, v, is_query, is_key)
        return
    for image, (n_fg, n_bg) in enumerate(counts.tolist()):
        if n_fg and n_bg:
            of = slice(image, image + 1)
            yield _packed(of, order[of, :n_fg], order[of, pixels - n_bg :], q[of], k[of], v[of], None, None)


def _packed(
    images: slice,
    queries_at: Tensor,
    keys_at: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    is_query: Tensor | None,
    is_key: Tensor | None,
) -> _Packed:
    k, v = _gather(key, keys_at), _gather(value, keys_at)
    if is_key is None:
        pivot = v.mean(dim=1, keepdim=True)
        v = v - pivot
    else:
        keep = is_key.transpose(1, 2)
        v = torch.where(keep, v, 0)
        pivot = v.sum(dim=1, keepdim=True) / keep.sum(dim=1, keepdim=True).clamp(min=1)
        k, v = torch.where(keep, k, 0), torch.where(keep, v - pivot, 0)
    q = _gather(query, queries_at)
    q = q if is_query is None else torch.where(is_query, q, 0)
    return _Packed(images, queries_at, keys_at, q, k, v, pivot, is_query, is_key)


def _rows(features: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, C, H, W) as (B, N, C) rows; a view where dtype and layout allow."""
    return features.to(dtype).flatten(2).transpose(1, 2)


def _to_map(rows: Tensor, like: Tensor) -> Tensor:
    """(B, N, C) rows as a contiguous map with the shape and dtype of `like`."""
    return rows.transpose(1, 2).reshape(like.shape).to(like.dtype).contiguous()


def _gather(rows: Tensor, pixels: Tensor) -> Tensor:
    return rows.gather(1, pixels.unsqueeze(2).expand(-1, -1, rows.shape[2]))


def _put(target: Tensor, pixels: Tensor, rows: Tensor) -> None:
    target.scatter_(1, pixels.unsqueeze(2).expand(-1, -1, rows.shape[2]), rows)


def _scatter(target: Tensor, packed: _Packed, rows: slice, source: Tensor) -> None:
    """Write a block's rows to their pixels; rows that are no queries leave what stands there."""
    pixels = packed.queries_at[:, rows]
    if packed.is_query is not None:
        source = torch.where(packed.is_query[:, rows], source, _gather(target, pixels))
    _put(target, pixels, source)
