"""BAIN's attention in blocks of foreground rows: no attention matrix is kept, the backward recomputes it.

Foreground queries and background keys are packed as columns. A block holds at most `BLOCK_ELEMENTS` logits (or
`MIN_ROWS` rows), so memory grows with the number of pixels and not with its square, and its rows are complete: the
softmax needs no second pass.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from scsco_fast.eager.dtypes import accumulate_dtype
from scsco_fast.eager.products import product

# 4 MiB of float32 logits. A quarter of it leaves a core's cache alone, but the backward then adds to the keys' gradients
# four times as often: at 128x128, C = 64, 197 ms and not 155.
BLOCK_ELEMENTS = 1 << 20
MIN_ROWS = 64  # fewer rows than this starve the matrix product
# Of how many numbers of keys one is chosen at each size: rounding up costs 1/32 of the work on average, a new shape the
# compilation of seven products (see `product`).
KEY_STEPS = 16
ROW_STEP = 32  # likewise for the rows of a block


@dataclass
class _Packed:
    """One group of images as columns, `queries_at` and `keys_at` naming the pixels they came from.

    Columns that are no queries or no keys hold zeros. The logits' `bias` takes the keys among them out of the softmax;
    in an image without keys it leaves them all in, for rows without a number would spoil the sums.
    """

    images: slice
    queries_at: Tensor  # (b, Q) pixel of each query
    keys_at: Tensor  # (b, K) pixel of each key
    is_query: Tensor  # (b, 1, Q) bool
    is_key: Tensor  # (b, 1, K) bool
    bias: Tensor  # (b, 1, K): 0, or minus infinity where there is no key
    query: Tensor  # (b, D, Q), times the scale
    key: Tensor  # (b, D, K)
    moments: Tensor  # (b, 2C, K): the values less their pivot, and their squares
    pivot: Tensor  # (b, C, 1), the background's mean

    def blocks(self) -> Iterator[slice]:
        batch, keys = self.keys_at.shape
        queries = self.queries_at.shape[1]
        rows = max(MIN_ROWS, BLOCK_ELEMENTS // max(batch * keys, 1) // ROW_STEP * ROW_STEP)
        for start in range(0, queries, rows):
            yield slice(start, min(start + rows, queries))

    def weights(self, rows: slice) -> Tensor:
        """A's rows: softmax(scale q k^T), (b, rows, K)."""
        logits = product(self.query[:, :, rows].transpose(1, 2), self.key, self.bias)
        return torch.softmax(logits, dim=2, out=logits)


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
        mean, std, first (B, C, N): sum_j A_ij (v_j - pivot), variance (B, C, N) before the clamp, both by the queries'
        places in `order` and 0 behind them, and an empty tensor: the backward needs no log-sum-exp.
    """
    dtype = accumulate_dtype(query, key, value)
    batch, channels, height, width = value.shape
    mean = value.new_zeros((batch, channels, height * width), dtype=dtype)
    std = torch.ones_like(mean)
    first, variance = torch.zeros_like(mean), torch.zeros_like(mean)
    for packed in _pack(query, key, value, order, counts, scale, dtype, static):
        queries = packed.queries_at.shape[1]
        moments = packed.moments.new_empty((*packed.moments.shape[:2], queries))
        for rows in packed.blocks():
            moments[:, :, rows] = product(packed.moments, packed.weights(rows).transpose(1, 2))
        a, b = torch.where(packed.is_query, moments, 0).chunk(2, dim=1)
        var = b - a.square()
        first[packed.images, :, :queries], variance[packed.images, :, :queries] = a, var
        _put(mean[packed.images], packed.queries_at, torch.where(packed.is_query, a + packed.pivot, 0))
        deviation = (var.clamp(min=0) + eps).sqrt()
        _put(std[packed.images], packed.queries_at, torch.where(packed.is_query, deviation, 1))
    return _to_map(mean, value), _to_map(std, value), first, variance, mean.new_empty((batch, 0))


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
    nothing: Tensor,
    scale: float,
    eps: float,
    static: bool | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, in their dtypes.

    With v' = v - pivot, a = A v', b = A v'^2, var = b - a^2, and A recomputed:

        dvar = dstd / (2 std), 0 where var was clamped;  da = dmean - 2 a dvar;  db = dvar
        dA = da v'^T + db v'^2^T;  dS = A (dA - rowsum(A dA))
        dq = scale dS k;  dk = scale dS^T q;  dv = A^T da + 2 v' (A^T db)

    The pivot cancels and needs no gradient. rowsum(A dA) equals rowsum(da a + db b), but only the sum of the same
    products cancels against them: where a query has one key, dS is then 0 and not the rounding of dA, which is 1e10 for
    values of 1e4.
    """
    dtype = first.dtype
    d_mean, d_std = (_columns(g, dtype) for g in (grad_mean, grad_std))
    d_query, d_key, d_value = (torch.zeros_like(_columns(t, dtype)) for t in (query, key, value))
    for packed in _pack(query, key, value, order, counts, scale, dtype, static):
        channels = value.shape[1]
        d_moments = _moments_gradient(packed, d_mean, d_std, first, variance, eps)
        dq = torch.empty_like(packed.query)
        dk, weighted = torch.zeros_like(packed.key), torch.zeros_like(packed.moments)
        for rows in packed.blocks():
            weights, d_rows = packed.weights(rows), d_moments[:, :, rows]
            d_weights = product(d_rows.transpose(1, 2), packed.moments)
            d_logits = torch.ops.aten._softmax_backward_data(d_weights, weights, 2, dtype)
            dq[:, :, rows] = product(d_logits, packed.key.transpose(1, 2)).transpose(1, 2)
            dk += product(packed.query[:, :, rows], d_logits)
            weighted += product(d_rows, weights)
        dv = weighted[:, :channels] + 2 * packed.moments[:, :channels] * weighted[:, channels:]
        _put(d_query[packed.images], packed.queries_at, torch.where(packed.is_query, dq.mul_(scale), 0))
        _put(d_key[packed.images], packed.keys_at, torch.where(packed.is_key, dk, 0))
        _put(d_value[packed.images], packed.keys_at, torch.where(packed.is_key, dv, 0))
    return _to_map(d_query, query), _to_map(d_key, key), _to_map(d_value, value)


def _moments_gradient(
    packed: _Packed, d_mean: Tensor, d_std: Tensor, first: Tensor, variance: Tensor, eps: float
) -> Tensor:
    """da above db, (b, 2C, Q), 0 for columns that are no queries."""
    queries = packed.queries_at.shape[1]
    a, var = (saved[packed.images, :, :queries] for saved in (first, variance))
    dm, ds = (_gather(gradient[packed.images], packed.queries_at) for gradient in (d_mean, d_std))
    d_var = torch.where(var >= 0, 0.5 * ds * (var.clamp(min=0) + eps).rsqrt(), 0)
    return torch.where(packed.is_query, torch.cat([dm - 2 * a * d_var, d_var], dim=1), 0)


def _pack(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    order: Tensor,
    counts: Tensor,
    scale: float,
    dtype: torch.dtype,
    static: bool | None,
) -> Iterator[_Packed]:
    """Groups of images as packed columns: each image at its counts, rounded up, or the whole batch at its static shape.

    `order` has the queries in front and the keys at its end, so that rounding up takes in pixels beside them.
    """
    pixels = order.shape[1]
    q, k, v = (_columns(t, dtype) for t in (query, key, value))
    if order.device.type != "cpu" if static is None else static:
        place = torch.arange(pixels, device=order.device)
        n_fg, n_bg = counts[:, :1], counts[:, 1:]
        # An image without queries has no keys: its gradients are 0, and 0 times a key that is NaN would not be.
        is_query, is_key = (place < n_fg) & (n_bg > 0), (place >= pixels - n_bg) & (n_fg > 0)
        yield _packed(slice(None), order, order, q, k, v, is_query, is_key, scale)
        return
    for image, (n_fg, n_bg) in enumerate(counts.tolist()):
        if not (n_fg and n_bg):
            continue
        queries = min(_round_up(n_fg, ROW_STEP), pixels)
        keys = min(_round_up(n_bg, max(1, pixels // KEY_STEPS)), pixels)
        of = slice(image, image + 1)
        at = order[of, :queries], order[of, pixels - keys :]
        is_query, is_key = torch.arange(queries)[None] < n_fg, torch.arange(keys)[None] >= keys - n_bg
        yield _packed(of, *at, q[of], k[of], v[of], is_query, is_key, scale)


def _packed(
    images: slice,
    queries_at: Tensor,
    keys_at: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    is_query: Tensor,
    is_key: Tensor,
    scale: float,
) -> _Packed:
    is_query, is_key = is_query.unsqueeze(1), is_key.unsqueeze(1)
    q = torch.where(is_query, _gather(query, queries_at) * scale, 0)
    k, v = (torch.where(is_key, _gather(t, keys_at), 0) for t in (key, value))
    pivot = v.sum(dim=2, keepdim=True) / is_key.sum(dim=2, keepdim=True).clamp(min=1)
    v = torch.where(is_key, v - pivot, 0)
    bias = torch.where(is_key | ~is_key.any(dim=2, keepdim=True), 0.0, -torch.inf).to(q.dtype)
    moments = torch.cat([v, v.square()], dim=1)
    return _Packed(images, queries_at, keys_at, is_query, is_key, bias, q, k, moments, pivot)


def _round_up(count: int, step: int) -> int:
    return -(-count // step) * step


def _columns(features: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, C, H, W) as (B, C, N); a view where dtype and layout allow."""
    return features.to(dtype).flatten(2)


def _to_map(columns: Tensor, like: Tensor) -> Tensor:
    """(B, C, N) as a contiguous map with the shape and dtype of `like`."""
    return columns.reshape(like.shape).to(like.dtype).contiguous()


def _gather(columns: Tensor, pixels: Tensor) -> Tensor:
    return columns.gather(2, pixels.unsqueeze(1).expand(-1, columns.shape[1], -1))


def _put(target: Tensor, pixels: Tensor, columns: Tensor) -> None:
    target.scatter_(2, pixels.unsqueeze(1).expand(-1, target.shape[1], -1), columns)
