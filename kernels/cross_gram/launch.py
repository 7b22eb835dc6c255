"""The Gram matrix of two feature maps: split over pixels, the splits summed in a fixed order."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from scsco_fast.kernels import refusal
from scsco_fast.kernels.launch import (
    COMPUTE,
    common_dtype,
    empty,
    is_ragged,
    on_device,
    pointers,
    precision,
    require,
    rows,
    split,
)
from scsco_fast.kernels.products import (
    FEATURE_TILES,
    GRAM_TILES,
    dot_precision,
    feature_tile,
    launch_options,
    operand,
    product_cases,
    product_with_features,
    store_features,
    tile_of,
    typed,
)
from scsco_fast.kernels.resources import Case

PROGRAMS = 264  # wanted: two for each of an H100's 132 SMs
SPLITS = 16  # at most


@triton.jit
def cross_gram_fwd_kernel(
    a_ptr,
    b_ptr,
    part_ptr,  # (splits, B, Ca, Cb)
    stride_ab,
    stride_ac,
    stride_an,
    stride_bb,
    stride_bc,
    stride_bn,
    a_channels,
    b_channels,
    pixels,
    images,
    columns,  # tiles in a row of the matrix
    blocks,  # of pixels in one split
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tile = tl.program_id(0)
    part = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    m = tile // columns * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tile % columns * BLOCK_N + tl.arange(0, BLOCK_N)
    a_ptr += image * stride_ab
    b_ptr += image * stride_bb
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for block in range(part * blocks, (part + 1) * blocks):
        n = block * BLOCK_K + tl.arange(0, BLOCK_K)
        a = operand(feature_tile(a_ptr, stride_ac, stride_an, m, n, a_channels, pixels), COMPUTE, PRECISION)
        b = operand(feature_tile(b_ptr, stride_bc, stride_bn, k, n, b_channels, pixels), COMPUTE, PRECISION)
        total = tl.dot(a, tl.trans(b), total, input_precision=PRECISION)
    part_ptr += (part * images + image) * a_channels * b_channels
    at = m.to(tl.int64)[:, None] * b_channels + k[None, :]
    tl.store(part_ptr + at, total / pixels, mask=(m < a_channels)[:, None] & (k < b_channels)[None, :])


@triton.jit
def cross_gram_bwd_kernel(
    g_ptr,
    f_ptr,
    out_ptr,  # (B, rows, N)
    stride_gb,
    stride_gm,
    stride_gk,
    stride_fb,
    stride_fc,
    stride_fn,
    rows,
    depth,
    pixels,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    image = tl.program_id(2).to(tl.int64)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    out = product_with_features(
        g_ptr + image * stride_gb,
        stride_gm,
        stride_gk,
        f_ptr + image * stride_fb,
        stride_fc,
        stride_fn,
        m,
        n,
        n < pixels,
        rows,
        depth,
        pixels,
        False,
        COMPUTE,
        PRECISION,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )
    store_features(out_ptr + image * rows * pixels, out / pixels, m, n, rows, pixels)


def supports(a: Tensor, b: Tensor) -> str | None:
    """Why `forward` cannot serve the maps, or None."""
    return refusal("cross_gram", a, b)


def forward(a: Tensor, b: Tensor) -> Tensor:
    """a b^T / (H W): (B, Ca, Cb), float32."""
    require(supports(a, b))
    left, right = rows(a), rows(b)
    batch, height, pixels = left.shape
    width = right.shape[1]
    if batch == 0:
        return empty((batch, height, width), a)
    dtype = common_dtype(a, b)
    kind = precision(dtype)
    tile = tile_of(GRAM_TILES, kind, max(height, width), is_ragged(left, right))
    columns, blocks = triton.cdiv(width, tile.block_n), triton.cdiv(pixels, tile.block_k)
    tiles = triton.cdiv(height, tile.block_m) * columns
    each = triton.cdiv(blocks, split(tiles * batch, blocks, PROGRAMS, SPLITS, least_blocks=4))
    splits = triton.cdiv(blocks, each)
    parts = empty((splits, batch, height, width), a)
    with on_device(a):
        cross_gram_fwd_kernel[(tiles, splits, batch)](
            *(left, right, parts, *left.stride(), *right.stride(), height, width, pixels, batch, columns, each),
            COMPUTE=COMPUTE[dtype],
            PRECISION=dot_precision(kind),
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            BLOCK_K=tile.block_k,
            **launch_options(tile),
        )
    return parts[0] if splits == 1 else parts.sum(0)


def backward(grad: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """da = dG b / (H W), db = dG^T a / (H W)."""
    return _times(grad, b, a), _times(grad.transpose(1, 2), a, b)


def _times(grad: Tensor, features: Tensor, like: Tensor) -> Tensor:
    """grad @ features / (H W) in the dtype and shape of `like`."""
    out = torch.empty_like(like, memory_format=torch.contiguous_format)
    f = rows(features)
    batch, depth, pixels = f.shape
    if batch == 0:
        return out
    # A float32 gradient is worth float32 products, whatever the other map is.
    dtype = common_dtype(features, like)
    kind = precision(dtype)
    tile = tile_of(FEATURE_TILES, kind, depth, is_ragged(f))
    height = like.shape[1]
    grid = (triton.cdiv(pixels, tile.block_n), triton.cdiv(height, tile.block_m), batch)
    with on_device(like):
        cross_gram_bwd_kernel[grid](
            *(grad, f, out, *grad.stride(), *f.stride(), height, depth, pixels),
            COMPUTE=COMPUTE[dtype],
            PRECISION=dot_precision(kind),
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            BLOCK_K=tile.block_k,
            **launch_options(tile),
        )
    return out


def compile_cases() -> list[Case]:
    """Every tile of both tables for every dtype it serves."""
    cases = []
    for kernel, table in ((cross_gram_fwd_kernel, GRAM_TILES), (cross_gram_bwd_kernel, FEATURE_TILES)):
        for (kind, width), tile in table.items():
            for dtype, name in typed(kind):
                constants = {"COMPUTE": COMPUTE[dtype], "PRECISION": dot_precision(kind), "stride_gk": 1}
                types = pointers("a b f out", name) | pointers("part g")
                cases += product_cases(
                    f"C<={width} {name if kind == 'half' else kind}", kernel, types, constants, tile, kind
                )
    return cases
