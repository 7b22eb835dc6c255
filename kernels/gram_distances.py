"""Distances of Gram matrices that share one factor, without a Gram matrix in memory.

G(f, b) - G(o, b) = G(f - o, b): one product for each pair, whose entries are added up in absolute value where they
arise. The backward recomputes their signs, one byte each, and multiplies by them; see docs/kernels/gram_distances.md.
"""

from typing import NamedTuple

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
)
from scsco_fast.kernels.products import (
    FEATURE_TILES,
    GRAM_TILES,
    Tile,
    dot_precision,
    feature_tile,
    product_cases,
    store_features,
    tile_of,
    typed,
)
from scsco_fast.kernels.resources import Case

# Three operands: with the blocks of a plain Gram, 255 registers.
DIFFERENCE_TILES = GRAM_TILES | {
    ("half", 64): Tile(64, 64, 64, 8, 3),
    ("half", 512): Tile(128, 128, 32, 8, 3),
    ("tf32", 64): Tile(64, 64, 32, 8, 4),
    ("tf32", 512): Tile(128, 64, 32, 8, 3),
}


@triton.jit
def _half_difference(f_ptr, stride_fc, stride_fn, o_ptr, stride_oc, stride_on, c, n, channels, pixels):
    """(f - o) / 2 in float32: halved, because two float16 values may differ by more than float16 holds."""
    f = feature_tile(f_ptr, stride_fc, stride_fn, c, n, channels, pixels).to(tl.float32)
    return f * 0.5 - feature_tile(o_ptr, stride_oc, stride_on, c, n, channels, pixels).to(tl.float32) * 0.5


@triton.jit
def _gram_tile(
    f_ptr,
    b_ptr,
    o_ptr,
    stride_fb,
    stride_fc,
    stride_fn,
    stride_bb,
    stride_bc,
    stride_bn,
    stride_ob,
    stride_oj,
    stride_oc,
    stride_on,
    m,
    k,
    channels,
    b_channels,
    pixels,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Half of the entries [m, k] of (f - o_j) b^T for this program's j and image."""
    other = tl.program_id(1).to(tl.int64)
    image = tl.program_id(2).to(tl.int64)
    f_ptr += image * stride_fb
    b_ptr += image * stride_bb
    o_ptr += image * stride_ob + other * stride_oj
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, pixels, BLOCK_K):
        n = first + tl.arange(0, BLOCK_K)
        d = _half_difference(f_ptr, stride_fc, stride_fn, o_ptr, stride_oc, stride_on, m, n, channels, pixels)
        b = feature_tile(b_ptr, stride_bc, stride_bn, k, n, b_channels, pixels).to(COMPUTE)
        total = tl.dot(d.to(COMPUTE), tl.trans(b), total, input_precision=PRECISION)
    return total


@triton.jit
def gram_distances_fwd_kernel(
    f_ptr,
    b_ptr,
    o_ptr,
    part_ptr,  # (B, J, tiles): sum of the absolute values in each tile, halved
    stride_fb,
    stride_fc,
    stride_fn,
    stride_bb,
    stride_bc,
    stride_bn,
    stride_ob,
    stride_oj,
    stride_oc,
    stride_on,
    channels,
    b_channels,
    pixels,
    columns,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tile = tl.program_id(0)
    m = tile // columns * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tile % columns * BLOCK_N + tl.arange(0, BLOCK_N)
    total = _gram_tile(
        f_ptr,
        b_ptr,
        o_ptr,
        stride_fb,
        stride_fc,
        stride_fn,
        stride_bb,
        stride_bc,
        stride_bn,
        stride_ob,
        stride_oj,
        stride_oc,
        stride_on,
        m,
        k,
        channels,
        b_channels,
        pixels,
        COMPUTE,
        PRECISION,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )
    at = (tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0) + tile
    # Summed at once: one axis after the other, Triton 3.6 and 3.7 cannot compile it from sm_100's tensor memory.
    tl.store(part_ptr + at, tl.sum(tl.abs(total)))


@triton.jit
def gram_distances_bwd_signs_kernel(
    f_ptr,
    b_ptr,
    o_ptr,
    sign_ptr,  # (B, J, Cf, Cb) int8
    stride_fb,
    stride_fc,
    stride_fn,
    stride_bb,
    stride_bc,
    stride_bn,
    stride_ob,
    stride_oj,
    stride_oc,
    stride_on,
    channels,
    b_channels,
    pixels,
    columns,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tile = tl.program_id(0)
    m = tile // columns * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tile % columns * BLOCK_N + tl.arange(0, BLOCK_N)
    total = _gram_tile(
        f_ptr,
        b_ptr,
        o_ptr,
        stride_fb,
        stride_fc,
        stride_fn,
        stride_bb,
        stride_bc,
        stride_bn,
        stride_ob,
        stride_oj,
        stride_oc,
        stride_on,
        m,
        k,
        channels,
        b_channels,
        pixels,
        COMPUTE,
        PRECISION,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )
    sign = (total > 0).to(tl.int8) - (total < 0).to(tl.int8)
    pair = tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    at = (pair * channels + m[:, None]) * b_channels + k[None, :]
    tl.store(sign_ptr + at, sign, mask=(m < channels)[:, None] & (k < b_channels)[None, :])


@triton.jit
def gram_distances_bwd_features_kernel(
    sign_ptr,
    b_ptr,
    grad_ptr,  # (B, J): of each distance, divided by the entries and pixels of a Gram matrix
    df_ptr,  # (B, Cf, N)
    do_ptr,  # (B, J, Cf, N)
    stride_bb,
    stride_bc,
    stride_bn,
    channels,
    b_channels,
    pixels,
    others,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    image = tl.program_id(2).to(tl.int64)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    b_ptr += image * stride_bb
    df = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for other in range(others):
        pair = image * others + other
        flow = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for first in range(0, b_channels, BLOCK_K):
            k = first + tl.arange(0, BLOCK_K)
            at = (pair * channels + m[:, None]) * b_channels + k[None, :]
            sign = tl.load(sign_ptr + at, mask=(m < channels)[:, None] & (k < b_channels)[None, :], other=0)
            b = feature_tile(b_ptr, stride_bc, stride_bn, k, n, b_channels, pixels)
            flow = tl.dot(sign.to(b.dtype), b, flow, input_precision=PRECISION)
        flow *= tl.load(grad_ptr + pair)
        store_features(do_ptr + pair * channels * pixels, -flow, m, n, channels, pixels)
        df += flow
    store_features(df_ptr + image * channels * pixels, df, m, n, channels, pixels)


@triton.jit
def gram_distances_bwd_background_kernel(
    sign_ptr,
    f_ptr,
    o_ptr,
    grad_ptr,
    db_ptr,  # (B, Cb, N)
    stride_fb,
    stride_fc,
    stride_fn,
    stride_ob,
    stride_oj,
    stride_oc,
    stride_on,
    channels,
    b_channels,
    pixels,
    others,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    image = tl.program_id(2).to(tl.int64)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    f_ptr += image * stride_fb
    o_ptr += image * stride_ob
    db = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for other in range(others):
        pair = image * others + other
        flow = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for first in range(0, channels, BLOCK_K):
            c = first + tl.arange(0, BLOCK_K)
            at = (pair * channels + c[None, :]) * b_channels + m[:, None]
            sign = tl.load(sign_ptr + at, mask=(m < b_channels)[:, None] & (c < channels)[None, :], other=0)
            d = _half_difference(f_ptr, stride_fc, stride_fn, o_ptr, stride_oc, stride_on, c, n, channels, pixels)
            flow = tl.dot(sign.to(COMPUTE), d.to(COMPUTE), flow, input_precision=PRECISION)
        db += flow * (2.0 * tl.load(grad_ptr + pair))
        o_ptr += stride_oj
    store_features(db_ptr + image * b_channels * pixels, db, m, n, b_channels, pixels)


class Operands(NamedTuple):
    """The three inputs as rows of pixels, and the precision of their products."""

    f: Tensor
    b: Tensor
    o: Tensor
    dtype: torch.dtype
    kind: str
    ragged: bool

    def size(self) -> int:
        """Entries of one Gram matrix times the pixels it is divided by."""
        return self.f.shape[1] * self.b.shape[1] * self.f.shape[2]


def _operands(anchor: Tensor, background: Tensor, others: Tensor) -> Operands:
    f, b, o = rows(anchor), rows(background), rows(others)
    dtype = common_dtype(f, b, o)
    return Operands(f, b, o, dtype, precision(dtype), is_ragged(f, b, o))


def _blocks(tile: Tile) -> dict[str, int]:
    blocks = {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k}
    return blocks | {"num_warps": tile.warps, "num_stages": tile.stages}


def supports(anchor: Tensor, background: Tensor, others: Tensor) -> str | None:
    """Why `forward` cannot serve the maps, or None."""
    return refusal("gram_distances", anchor, background, others)


def forward(anchor: Tensor, background: Tensor, others: Tensor) -> Tensor:
    """mean |(f - o_j) b^T| / (H W): (B, J), float32."""
    require(supports(anchor, background, others))
    inputs = _operands(anchor, background, others)
    if 0 in others.shape[:2]:
        return empty(tuple(others.shape[:2]), anchor)
    tile, grid, columns = _gram_launch(inputs)
    parts = empty((*others.shape[:2], grid[0]), anchor)
    with on_device(anchor):
        gram_distances_fwd_kernel[grid](
            *(inputs.f, inputs.b, inputs.o, parts, *inputs.f.stride(), *inputs.b.stride(), *inputs.o.stride()),
            *(*inputs.f.shape[1:2], *inputs.b.shape[1:], columns),
            COMPUTE=COMPUTE[inputs.dtype],
            PRECISION=dot_precision(inputs.kind),
            **_blocks(tile),
        )
    return parts.sum(2) * (2 / inputs.size())


def _gram_launch(inputs: Operands) -> tuple[Tile, tuple[int, int, int], int]:
    height, width = inputs.f.shape[1], inputs.b.shape[1]
    tile = tile_of(DIFFERENCE_TILES, inputs.kind, max(height, width), inputs.ragged)
    columns = triton.cdiv(width, tile.block_n)
    batch, others = inputs.o.shape[:2]
    return tile, (triton.cdiv(height, tile.block_m) * columns, others, batch), columns


def backward(
    grad: Tensor, anchor: Tensor, background: Tensor, others: Tensor, anchor_only: bool = False
) -> tuple[Tensor, ...]:
    """With s_j = g_j sign((f - o_j) b^T) / n: df = sum_j s_j b, do_j = -s_j b, db = sum_j s_j^T (f - o_j).

    With `anchor_only` df alone, without a launch for the background.
    """
    d_anchor, d_background, d_others = (
        torch.empty_like(t, memory_format=torch.contiguous_format) for t in (anchor, background, others)
    )
    if 0 in others.shape[:2]:
        return (d_anchor.zero_(),) if anchor_only else (d_anchor.zero_(), d_background.zero_(), d_others)
    inputs = _operands(anchor, background, others)
    f, b, o = inputs.f, inputs.b, inputs.o
    (height, pixels), (batch, width), count = f.shape[1:], b.shape[:2], o.shape[1]
    scaled = (grad / inputs.size()).contiguous()
    signs = empty((batch, count, height, width), f, torch.int8)
    tile, grid, columns = _gram_launch(inputs)
    strides = (*f.stride(), *b.stride(), *o.stride())
    modes = {"COMPUTE": COMPUTE[inputs.dtype], "PRECISION": dot_precision(inputs.kind)}
    with on_device(f):
        gram_distances_bwd_signs_kernel[grid](
            *(f, b, o, signs, *strides, height, width, pixels, columns), **modes, **_blocks(tile)
        )
        own = precision(b.dtype)
        tile = tile_of(FEATURE_TILES, own, width, inputs.ragged)
        grid = (triton.cdiv(pixels, tile.block_n), triton.cdiv(height, tile.block_m), batch)
        gram_distances_bwd_features_kernel[grid](
            *(signs, b, scaled, d_anchor, d_others, *b.stride(), height, width, pixels, count),
            PRECISION=dot_precision(own),
            **_blocks(tile),
        )
        if anchor_only:
            return (d_anchor,)
        tile = tile_of(FEATURE_TILES, inputs.kind, height, inputs.ragged)
        grid = (triton.cdiv(pixels, tile.block_n), triton.cdiv(width, tile.block_m), batch)
        gram_distances_bwd_background_kernel[grid](
            *(signs, f, o, scaled, d_background, *f.stride(), *o.stride(), height, width, pixels, count),
            **modes,
            **_blocks(tile),
        )
    return d_anchor, d_background, d_others


def compile_cases() -> list[Case]:
    """Every tile of both tables for every dtype it serves."""
    cases = []
    grams = [(kernel, DIFFERENCE_TILES) for kernel in (gram_distances_fwd_kernel, gram_distances_bwd_signs_kernel)]
    features = (gram_distances_bwd_features_kernel, gram_distances_bwd_background_kernel)
    for kernel, table in (*grams, *((kernel, FEATURE_TILES) for kernel in features)):
        for (kind, width), tile in table.items():
            for dtype, name in typed(kind):
                constants = {"COMPUTE": COMPUTE[dtype], "PRECISION": dot_precision(kind)}
                types = pointers("f b o df db do", name) | pointers("part grad") | pointers("sign", "i8")
                label = f"C<={width} {name if kind == 'half' else kind}"
                cases += product_cases(label, kernel, types, constants, tile, kind)
    return cases
