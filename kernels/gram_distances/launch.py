"""Distances of Gram matrices that share one factor, without a Gram matrix in memory.

G(f, b) - G(o, b) = G(f - o, b): one product for each pair, whose entries are added up in absolute value where they
arise, or, where too few programs would run, after parts of the pixels were added in a fixed order. The forward keeps
their signs, one byte each, and the backward multiplies by them; see docs/kernels/gram_distances.md.
"""

import dataclasses
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from scsco_fast.kernels import refusal
from scsco_fast.kernels.launch import (
    COMPUTE,
    FROM_SHARED_MEMORY,
    case,
    common_dtype,
    empty,
    is_ragged,
    multiplies_from_shared_memory,
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
    Tile,
    dot_precision,
    feature_tile,
    launch_options,
    operand,
    product_cases,
    store_features,
    tile_of,
    typed,
)
from scsco_fast.kernels.resources import Case
from scsco_fast.kernels.sums import sum_parts

PROGRAMS = 264  # wanted: two for each of an H100's 132 SMs
SPLITS, LEAST = 16, 256  # of the pixels, at most; pixels of each, at least
# A matrix of more tiles is not split: one program a pair adds the splits up, and takes longer than splitting saves.
SPLIT_TILES = 4
MERGED, MERGE_WARPS = 4096, 8  # entries that are added up at once
# Three operands: with the blocks of a plain Gram, 255 registers.
DIFFERENCE_TILES = GRAM_TILES | {
    ("half", 64): Tile(64, 64, 64, 8, 3),
    ("half", 512): Tile(128, 128, 32, 8, 3),
    ("tf32", 64): Tile(64, 64, 32, 8, 4),
    ("tf32", 512): Tile(128, 64, 32, 8, 3),
}
# Where the matrix instructions take both operands from registers, the wide block spills up to 152 bytes.
REGISTER_TILES = DIFFERENCE_TILES | {("half", 512): Tile(128, 64, 32, 8, 3)}


@triton.jit
def _half_difference(f_ptr, stride_fc, stride_fn, o_ptr, stride_oc, stride_on, c, n, channels, pixels):
    """(f - o) / 2 in float32: halved, because two float16 values may differ by more than float16 holds."""
    f = feature_tile(f_ptr, stride_fc, stride_fn, c, n, channels, pixels).to(tl.float32)
    return f * 0.5 - feature_tile(o_ptr, stride_oc, stride_on, c, n, channels, pixels).to(tl.float32) * 0.5


@triton.jit
def gram_distances_fwd_kernel(
    f_ptr,
    b_ptr,
    o_ptr,
    sign_ptr,  # (B, J, Cf, Cb) int8
    part_ptr,  # (B, J, tiles): each tile's sum of absolute values; if SPLIT, (splits, B, J, Cf, Cb): half differences
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
    splits,
    share,  # of the pixels, a multiple of BLOCK_K
    factor,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tile, part = tl.program_id(0) // splits, tl.program_id(0) % splits
    other, image = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    m = tile // columns * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tile % columns * BLOCK_N + tl.arange(0, BLOCK_N)
    f_ptr += image * stride_fb
    b_ptr += image * stride_bb
    o_ptr += image * stride_ob + other * stride_oj
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(part * share, tl.minimum((part + 1) * share, pixels), BLOCK_K):
        n = first + tl.arange(0, BLOCK_K)
        d = _half_difference(f_ptr, stride_fc, stride_fn, o_ptr, stride_oc, stride_on, m, n, channels, pixels)
        b = operand(feature_tile(b_ptr, stride_bc, stride_bn, k, n, b_channels, pixels), COMPUTE, PRECISION)
        total = tl.dot(operand(d, COMPUTE, PRECISION), tl.trans(b), total, input_precision=PRECISION)

    pair = image * tl.num_programs(1) + other
    inside = (m < channels)[:, None] & (k < b_channels)[None, :]
    if SPLIT:
        pair += part * tl.num_programs(1).to(tl.int64) * tl.num_programs(2)
        tl.store(part_ptr + (pair * channels + m[:, None]) * b_channels + k[None, :], total, mask=inside)
    else:
        sign = (total > 0).to(tl.int8) - (total < 0).to(tl.int8)
        tl.store(sign_ptr + (pair * channels + m[:, None]) * b_channels + k[None, :], sign, mask=inside)
        # Summed at once: one axis after the other, Triton 3.6 and 3.7 cannot compile it from sm_100's tensor memory.
        tl.store(part_ptr + pair * (tl.num_programs(0) // splits) + tile, tl.sum(tl.abs(total)) * factor)


@triton.jit
def gram_distances_fwd_merge_kernel(
    part_ptr,  # (splits, B, J, Cf, Cb)
    sign_ptr,  # (B, J, Cf, Cb) int8
    out_ptr,  # (B, J)
    entries,  # Cf Cb
    splits,
    factor,
    BLOCK: tl.constexpr,
):
    pair, pairs = tl.program_id(0).to(tl.int64), tl.num_programs(0).to(tl.int64)
    distance = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, entries, BLOCK):
        at = first + tl.arange(0, BLOCK)
        total = tl.zeros((BLOCK,), tl.float32)
        for part in range(splits):
            total += tl.load(part_ptr + (part * pairs + pair) * entries + at, mask=at < entries, other=0.0)
        sign = (total > 0).to(tl.int8) - (total < 0).to(tl.int8)
        tl.store(sign_ptr + pair * entries + at, sign, mask=at < entries)
        distance += tl.abs(total)
    tl.store(out_ptr + pair, tl.sum(distance, 0) * factor)


@triton.jit
def gram_distances_bwd_features_kernel(
    sign_ptr,
    b_ptr,
    grad_ptr,  # (B, J): of each distance
    df_ptr,  # (B, Cf, N)
    do_ptr,  # (B, J, Cf, N)
    stride_gb,
    stride_gj,
    stride_bb,
    stride_bc,
    stride_bn,
    channels,
    b_channels,
    pixels,
    others,
    factor,
    ANCHOR_ONLY: tl.constexpr,
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
            b = operand(b, b.dtype, PRECISION)
            flow = tl.dot(sign.to(b.dtype), b, flow, input_precision=PRECISION)
        flow *= tl.load(grad_ptr + image * stride_gb + other * stride_gj) * factor
        if not ANCHOR_ONLY:
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
    stride_gb,
    stride_gj,
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
    factor,
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
            d = operand(d, COMPUTE, PRECISION)
            flow = tl.dot(sign.to(COMPUTE), d, flow, input_precision=PRECISION)
        db += flow * (2.0 * factor * tl.load(grad_ptr + image * stride_gb + other * stride_gj))
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
    return blocks | launch_options(tile)


def supports(anchor: Tensor, background: Tensor, others: Tensor) -> str | None:
    """Why `forward` cannot serve the maps, or None."""
    return refusal("gram_distances", anchor, background, others)


def forward(anchor: Tensor, background: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """mean |(f - o_j) b^T| / (H W): (B, J), float32; and the signs of the products (B, J, Cf, Cb), int8."""
    require(supports(anchor, background, others))
    inputs = _operands(anchor, background, others)
    (height, pixels), width, (batch, count) = inputs.f.shape[1:], inputs.b.shape[1], inputs.o.shape[:2]
    signs = empty((batch, count, height, width), anchor, torch.int8)
    if 0 in (batch, count):
        return empty((batch, count), anchor), signs
    table = DIFFERENCE_TILES if multiplies_from_shared_memory(anchor.device) else REGISTER_TILES
    tile = tile_of(table, inputs.kind, max(height, width), inputs.ragged)
    columns, blocks = triton.cdiv(width, tile.block_n), triton.cdiv(pixels, tile.block_k)
    tiles = triton.cdiv(height, tile.block_m) * columns
    most = SPLITS if tiles <= SPLIT_TILES else 1
    each = triton.cdiv(blocks, split(tiles * count * batch, blocks, PROGRAMS, most, LEAST // tile.block_k))
    splits = triton.cdiv(blocks, each)
    parts = empty((splits, batch, count, height, width) if splits > 1 else (batch, count, tiles), anchor)
    factor = 2 / inputs.size()
    with on_device(anchor):
        gram_distances_fwd_kernel[(tiles * splits, count, batch)](
            *(inputs.f, inputs.b, inputs.o, signs, parts),
            *(*inputs.f.stride(), *inputs.b.stride(), *inputs.o.stride()),
            *(height, width, pixels, columns, splits, each * tile.block_k, factor),
            COMPUTE=COMPUTE[inputs.dtype],
            PRECISION=dot_precision(inputs.kind),
            SPLIT=splits > 1,
            **_blocks(tile),
        )
        if splits == 1:
            return sum_parts(parts), signs
        distances = empty((batch, count), anchor)
        gram_distances_fwd_merge_kernel[(batch * count,)](
            parts, signs, distances, height * width, splits, factor, BLOCK=MERGED, num_warps=MERGE_WARPS
        )
    return distances, signs


def backward(
    grad: Tensor, signs: Tensor, anchor: Tensor, background: Tensor, others: Tensor, anchor_only: bool = False
) -> tuple[Tensor, ...]:
    """With s_j = g_j sign((f - o_j) b^T) / n: df = sum_j s_j b, do_j = -s_j b, db = sum_j s_j^T (f - o_j).

    With `anchor_only` df alone, without a launch for the background.
    """
    wanted = (anchor,) if anchor_only else (anchor, background, others)
    grads = tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in wanted)
    if 0 in others.shape[:2]:
        return tuple(t.zero_() for t in grads)
    inputs = _operands(anchor, background, others)
    f, b, o = inputs.f, inputs.b, inputs.o
    (height, pixels), (batch, width), count = f.shape[1:], b.shape[:2], o.shape[1]
    sizes = (height, width, pixels, count, 1 / inputs.size())
    with on_device(f):
        own = precision(b.dtype)
        tile = tile_of(FEATURE_TILES, own, width, inputs.ragged)
        grid = (triton.cdiv(pixels, tile.block_n), triton.cdiv(height, tile.block_m), batch)
        gram_distances_bwd_features_kernel[grid](
            *(signs, b, grad, grads[0], grads[-1], *grad.stride(), *b.stride(), *sizes),
            ANCHOR_ONLY=anchor_only,
            PRECISION=dot_precision(own),
            **_blocks(tile),
        )
        if anchor_only:
            return grads
        tile = tile_of(FEATURE_TILES, inputs.kind, height, inputs.ragged)
        grid = (triton.cdiv(pixels, tile.block_n), triton.cdiv(width, tile.block_m), batch)
        gram_distances_bwd_background_kernel[grid](
            *(signs, f, o, grad, grads[1], *grad.stride(), *f.stride(), *o.stride(), *sizes),
            COMPUTE=COMPUTE[inputs.dtype],
            PRECISION=dot_precision(inputs.kind),
            **_blocks(tile),
        )
    return grads


def compile_cases() -> list[Case]:
    """Every tile of both tables for every dtype it serves, in one split and in several, for all gradients and one."""
    cases = []
    for form, split_up in (("", False), (" split", True)):
        for table, others in ((DIFFERENCE_TILES, False), (REGISTER_TILES, True)):
            made = _product_cases(gram_distances_fwd_kernel, table, form, {"SPLIT": split_up})
            for found in made:
                on = tuple(sm for sm in found.architectures if (sm not in FROM_SHARED_MEMORY) == others)
                if on:
                    cases.append(dataclasses.replace(found, architectures=on))
    for form, only in (("", False), (" anchor", True)):
        cases += _product_cases(gram_distances_bwd_features_kernel, FEATURE_TILES, form, {"ANCHOR_ONLY": only})
    cases += _product_cases(gram_distances_bwd_background_kernel, FEATURE_TILES, "", {})
    types = pointers("part out") | pointers("sign", "i8") | {"factor": "fp32"}
    for ragged in (False, True):
        cases.append(
            case("pairs", gram_distances_fwd_merge_kernel, types, {"BLOCK": MERGED}, MERGE_WARPS, ragged=ragged)
        )
    return cases


def _product_cases(kernel: Any, table: dict[tuple[str, int], Tile], form: str, flags: dict[str, bool]) -> list[Case]:
    cases = []
    for (kind, width), tile in table.items():
        for dtype, name in typed(kind):
            constants = {"COMPUTE": COMPUTE[dtype], "PRECISION": dot_precision(kind), "stride_gj": 1, **flags}
            types = pointers("f b o df db do", name) | pointers("part grad") | pointers("sign", "i8")
            label = f"C<={width} {name if kind == 'half' else kind}{form}"
            cases += product_cases(label, kernel, types | {"factor": "fp32"}, constants, tile, kind)
    return cases
