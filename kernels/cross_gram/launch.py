"""The Gram matrix of two feature maps: split over pixels, the splits summed in a fixed order."""

import triton
from torch import Tensor

from scsco_fast.kernels.cases import Case
from scsco_fast.kernels.cross_gram.backward import cross_gram_bwd_kernel
from scsco_fast.kernels.cross_gram.forward import cross_gram_fwd_kernel
from scsco_fast.kernels.launch import COMPUTE, common_dtype, empty, is_ragged, on_device, pointers, precision, rows
from scsco_fast.kernels.memory import contiguous_like
from scsco_fast.kernels.products import (
    FEATURE_TILES,
    GRAM_TILES,
    blocks_of,
    dot_precision,
    map_grid,
    table_cases,
    tile_of,
)
from scsco_fast.kernels.sums import shares

PROGRAMS = 264  # wanted: two for each of an H100's 132 SMs
SPLITS = 16  # at most


def forward(a: Tensor, b: Tensor) -> Tensor:
    """a b^T / (H W): (B, Ca, Cb), float32."""
    left, right = rows(a), rows(b)
    (batch, height, pixels), width = left.shape, right.shape[1]
    if batch == 0:
        return empty((batch, height, width), a)
    dtype = common_dtype(a, b)
    kind = precision(dtype)
    tile = tile_of(GRAM_TILES, kind, max(height, width), is_ragged(left, right))
    columns, blocks = triton.cdiv(width, tile.block_n), triton.cdiv(pixels, tile.block_k)
    tiles = triton.cdiv(height, tile.block_m) * columns
    splits, each = shares(tiles * batch, blocks, PROGRAMS, SPLITS, least_blocks=4)
    parts = empty((splits, batch, height, width), a)
    with on_device(a):
        cross_gram_fwd_kernel[(tiles, splits, batch)](
            *(left, right, parts, *left.stride(), *right.stride(), height, width, pixels, batch, columns, each),
            COMPUTE=COMPUTE[dtype],
            PRECISION=dot_precision(kind),
            **blocks_of(tile),
        )
    return parts[0] if splits == 1 else parts.sum(0)


def backward(grad: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """da = dG b / (H W), db = dG^T a / (H W)."""
    return _times(grad, b, a), _times(grad.transpose(1, 2), a, b)


def _times(grad: Tensor, features: Tensor, like: Tensor) -> Tensor:
    """grad @ features / (H W) in the dtype and shape of `like`."""
    out = contiguous_like(like)
    f = rows(features)
    (batch, depth, pixels), height = f.shape, like.shape[1]
    if batch == 0:
        return out
    # A float32 gradient is worth float32 products, whatever the other map is.
    dtype = common_dtype(features, like)
    kind = precision(dtype)
    tile = tile_of(FEATURE_TILES, kind, depth, is_ragged(f))
    with on_device(like):
        cross_gram_bwd_kernel[map_grid(tile, height, pixels, batch)](
            *(grad, f, out, *grad.stride(), *f.stride(), height, depth, pixels),
            COMPUTE=COMPUTE[dtype],
            PRECISION=dot_precision(kind),
            **blocks_of(tile),
        )
    return out


def compile_cases() -> list[Case]:
    """Every tile of both tables for every dtype it serves."""
    return [
        *table_cases(cross_gram_fwd_kernel, GRAM_TILES, "a b", pointers("part"), {}),
        *table_cases(cross_gram_bwd_kernel, FEATURE_TILES, "f out", pointers("g"), {"stride_gk": 1}),
    ]
