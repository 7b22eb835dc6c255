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
from scsco_fast.eager.products import add_product, product

BLOCK_ELEMENTS = 1 << 18  # 1 MiB of float32 logits stays in the cache
# With fewer rows than this the backward adds to the keys' gradients too often, and oneDNN starves: at 64x64, C = 128,
# with 78 rows 16.6 ms and not 14.
MIN_ROWS = 128
# The number of keys is rounded up to one of this many at each resolution (by 1/32 of its pixels on average), and that
# of a block's rows to a multiple of `ROW_STEP`: each new shape would have six products compiled (see `product`).
KEY_STEPS = 16
ROW_STEP = 8
# Up to so many pixels a CPU too takes the whole batch at once: at 6x6, B = 32, 3.2 ms and not 12.4, at 12x12 as many.
SMALL_MAP = 128

Places = slice | Tensor  # of columns: a range, or a mask (b, 1, columns)


@dataclass
class _Packed:
    """One group of images as columns, `queries_at` and `keys_at` naming the pixels they came from.

    Columns beside the queries and keys hold zeros, and those beside the keys have no part in the softmax. In an image
    without keys it gives NaN, which the results do not get: all their columns are beside.
    """

    images: slice
    queries_at: Tensor  # (b, Q) pixel of each query
    keys_at: Tensor  # (b, K) pixel of each key
    beside_queries: Places
    beside_keys: Places
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
        logits = product(self.query[:, :, rows].transpose(1, 2), self.key)
        return torch.softmax(_fill(logits, self.beside_keys, -torch.inf), dim=2, out=logits)


def allocate(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What `forward` returns, uninitialised."""
    return value.new_empty(value.shape), value.new_empty(value.shape), *_saved(query, key, value)


def allocate_gradients(grad: Tensor, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `backward` returns, uninitialised."""
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def kept(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the backward is given of the maps: all that they hold."""
    return query, key, value


def _saved(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Uninitialised moments (B, 2C, N), and two empty tensors, as every backend saves three.

    To fill of the moments what nobody reads takes 5 % at 32x32.
    """
    (batch, channels), pixels = value.shape[:2], value.shape[2] * value.shape[3]
    moments = value.new_empty((batch, 2 * channels, pixels), dtype=accumulate_dtype(query, key, value))
    return moments, moments.new_empty(0), moments.new_empty(0)


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
        static: compute at the mask-independent shape instead of the exact one; None: on every device but the CPU, and
            there for maps of up to `SMALL_MAP` pixels.

    Returns:
        mean, std, moments (B, 2C, N): a = sum_j A_ij (v_j - pivot) above b = sum_j A_ij (v_j - pivot)^2, by the
        queries' places in `order` and anything behind them, and two empty tensors: every backend's forward returns
        three for its backward, and this one needs no more.
    """
    dtype = accumulate_dtype(query, key, value)
    batch, channels, height, width = value.shape
    mean = value.new_zeros((batch, channels, height * width), dtype=dtype)
    std = torch.ones_like(mean)
    saved = _saved(query, key, value)
    moments = saved[0]
    for packed in _pack(query, key, value, order, counts, scale, dtype, static):
        found = moments[packed.images, :, : packed.queries_at.shape[1]]
        for rows in packed.blocks():
            found[:, :, rows] = product(packed.moments, packed.weights(rows).transpose(1, 2))
        a, b = found.chunk(2, dim=1)
        _put(mean[packed.images], packed.queries_at, _fill(a + packed.pivot, packed.beside_queries, 0))
        deviation = (b - a.square()).clamp_(min=0).add_(eps).sqrt_()
        _put(std[packed.images], packed.queries_at, _fill(deviation, packed.beside_queries, 1))
    return _to_map(mean, value), _to_map(std, value), *saved


def backward(
    grad_mean: Tensor,
    grad_std: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    order: Tensor,
    counts: Tensor,
    moments: Tensor,
    _second: Tensor,
    _third: Tensor,
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
    dtype = moments.dtype
    d_mean, d_std = (_columns(g, dtype) for g in (grad_mean, grad_std))
    d_query, d_key, d_value = (moments.new_zeros((*t.shape[:2], t.shape[2] * t.shape[3])) for t in (query, key, value))
    for packed in _pack(query, key, value, order, counts, scale, dtype, static):
        found = moments[packed.images, :, : packed.queries_at.shape[1]]
        dm, ds = (_gather(gradient[packed.images], packed.queries_at) for gradient in (d_mean, d_std))
        d_moments = _fill(_moments_gradient(dm, ds, found, eps), packed.beside_queries, 0)
        dk, weighted = torch.zeros_like(packed.key), torch.zeros_like(packed.moments)
        for rows in packed.blocks():
            _add_block(packed, rows, d_moments, scale, dk, weighted)
        first, second = weighted.chunk(2, dim=1)
        dv = (packed.moments.chunk(2, dim=1)[0] * second).mul_(2).add_(first)
        _put(d_query[packed.images], packed.queries_at, _fill(packed.query, packed.beside_queries, 0))
        _put(d_key[packed.images], packed.keys_at, _fill(dk, packed.beside_keys, 0))
        _put(d_value[packed.images], packed.keys_at, _fill(dv, packed.beside_keys, 0))
    return _to_map(d_query, query), _to_map(d_key, key), _to_map(d_value, value)


def _add_block(packed: _Packed, rows: slice, d_moments: Tensor, scale: float, dk: Tensor, weighted: Tensor) -> None:
    """Add the rows' part of dk and of A^T da above A^T db (b, 2C, K); their dq takes the place of their queries."""
    weights, d_rows = packed.weights(rows), d_moments[:, :, rows]
    d_logits = product(d_rows.transpose(1, 2), packed.moments)  # dA, and from the next line on dS
    torch.ops.aten._softmax_backward_data.out(d_logits, weights, 2, weights.dtype, grad_input=d_logits)
    add_product(weighted, d_rows, weights)
    add_product(dk, packed.query[:, :, rows], d_logits)
    packed.query[:, :, rows] = product(d_logits, packed.key.transpose(1, 2)).mul_(scale).transpose(1, 2)


def _moments_gradient(d_mean: Tensor, d_std: Tensor, moments: Tensor, eps: float) -> Tensor:
    """da above db, (b, 2C, Q).

    Products and sums are rounded one by one, as in dv: where v' equals a they cancel there, and a fused multiplication
    would leave the rounding of values of 1e4.
    """
    a, b = moments.chunk(2, dim=1)
    var = b - a.square()
    gradient = torch.empty_like(moments)
    da, db = gradient.chunk(2, dim=1)
    torch.mul(d_std, (var.clamp(min=0) + eps).rsqrt_().mul_(0.5), out=db).masked_fill_(var < 0, 0)
    torch.mul(a, db, out=da).mul_(-2).add_(d_mean)
    return gradient


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
    if (order.device.type != "cpu" or pixels <= SMALL_MAP) if static is None else static:
        place = torch.arange(pixels, device=order.device)
        n_fg, n_bg = counts[:, :1], counts[:, 1:]
        # An image without queries has no keys: its gradients are 0, and 0 times a key that is NaN would not be.
        is_query, is_key = (place < n_fg) & (n_bg > 0), (place >= pixels - n_bg) & (n_fg > 0)
        no_query, no_key = (~is_query).unsqueeze(1), (~is_key).unsqueeze(1)
        number = is_key.sum(dim=1).clamp(min=1).reshape(-1, 1, 1)
        yield _packed(slice(None), order, order, q, k, v, no_query, no_key, number, scale)
        return
    for image, (n_fg, n_bg) in enumerate(counts.tolist()):
        if not (n_fg and n_bg):
            continue
        queries = min(_round_up(n_fg, ROW_STEP), pixels)
        keys = min(_round_up(n_bg, max(1, pixels // KEY_STEPS)), pixels)
        of, beside_queries, beside_keys = slice(image, image + 1), slice(n_fg, queries), slice(0, keys - n_bg)
        at = order[of, :queries], order[of, pixels - keys :]
        yield _packed(of, *at, q[of], k[of], v[of], beside_queries, beside_keys, n_bg, scale)


def _packed(
    images: slice,
    queries_at: Tensor,
    keys_at: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beside_queries: Places,
    beside_keys: Places,
    number: int | Tensor,
    scale: float,
) -> _Packed:
    q = _fill(_gather(query, queries_at).mul_(scale), beside_queries, 0)
    k = _fill(_gather(key, keys_at), beside_keys, 0)
    moments = value.new_empty((value.shape[0], 2 * value.shape[1], keys_at.shape[1]))
    centred, squares = moments.chunk(2, dim=1)
    torch.gather(value, 2, _as_index(keys_at, value), out=centred)
    pivot = _fill(centred, beside_keys, 0).sum(dim=2, keepdim=True) / number
    _fill(centred.sub_(pivot), beside_keys, 0)
    torch.square(centred, out=squares)
    return _Packed(images, queries_at, keys_at, beside_queries, beside_keys, q, k, moments, pivot)


def _round_up(count: int, step: int) -> int:
    return -(-count // step) * step


def _columns(features: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, C, H, W) as (B, C, N); a view where dtype and layout allow."""
    return features.to(dtype).flatten(2)


def _to_map(columns: Tensor, like: Tensor) -> Tensor:
    """Contiguous (B, C, N) as a map with the shape and dtype of `like`."""
    return columns.view(like.shape).to(like.dtype)


def _gather(columns: Tensor, pixels: Tensor) -> Tensor:
    return columns.gather(2, _as_index(pixels, columns))


def _put(target: Tensor, pixels: Tensor, columns: Tensor) -> None:
    target.scatter_(2, _as_index(pixels, target), columns)


def _as_index(pixels: Tensor, columns: Tensor) -> Tensor:
    """(b, n) pixels for each channel of (b, C, N)."""
    return pixels.unsqueeze(1).expand(-1, columns.shape[1], -1)


def _fill(columns: Tensor, places: Places, value: float) -> Tensor:
    """The columns (b, n, K), with `value` at these places whatever they held: NaN times 0 would be NaN."""
    if isinstance(places, Tensor):
        return columns.masked_fill_(places, value)
    if places.start < places.stop:
        columns[:, :, places] = value
    return columns
