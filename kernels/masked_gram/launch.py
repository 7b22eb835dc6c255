"""The Gram matrix of a feature map's foreground, split over the pixel blocks that hold any of it.

A first kernel lists each image's blocks with foreground, so that the splits of the product share out the blocks that
count and never load the others. Only the tiles on and above the diagonal are computed; the kernel that adds the splits
mirrors them.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from scsco_fast.kernels import refusal
from scsco_fast.kernels.launch import (
    COMPUTE,
    case,
    empty,
    is_ragged,
    mask_rows,
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
    product_with_features,
    store_features,
    tile_of,
    typed,
)
from scsco_fast.kernels.resources import Case

PROGRAMS = 264  # wanted: two for each of an H100's 132 SMs
SPLITS = 16  # at most
LISTED = tl.constexpr(8192)  # of the mask's elements that are examined at once: words of 8 pixels, or bytes
# With 3 stages sm_100's compiler spills 12 bytes where channels are contiguous.
PLAIN_TILES = GRAM_TILES | {("half", 512): Tile(128, 128, 64, 16, 2)}
# Masking in registers takes as many again: with the blocks of a plain Gram, sm_80 spills.
MASKED_TILES = GRAM_TILES | {
    ("half", 512): Tile(128, 128, 32, 8, 4),
    ("tf32", 512): Tile(128, 128, 16, 8, 4),
}
# The sum of a matrix and its transpose: with 4 warps, sm_90 spills 8 bytes.
SYMMETRIC_TILES = FEATURE_TILES | {("ieee", 512): Tile(64, 32, 16, 8, 3)}
LISTING_WARPS = 16  # with 4 or 8, sm_100's compiler spills 16 bytes
SUMMED = 16  # rows of a tile that one program adds up


@triton.jit
def masked_gram_blocks_kernel(
    mask_ptr,  # words of 8 pixels, or bytes
    list_ptr,  # (B, blocks): the blocks with foreground, in raster order
    count_ptr,  # (B,): how many
    stride_mb,
    stride_mn,
    words,
    blocks,
    BLOCK_W: tl.constexpr,  # words of a block
):
    image = tl.program_id(0).to(tl.int64)
    count = 0
    for first in range(0, blocks, LISTED // BLOCK_W):
        block = first + tl.arange(0, LISTED // BLOCK_W)
        n = block[:, None] * BLOCK_W + tl.arange(0, BLOCK_W)[None, :]
        fg = tl.load(mask_ptr + image * stride_mb + n.to(tl.int64) * stride_mn, mask=n < words, other=0)
        hit = tl.max((fg != 0).to(tl.int32), 1)
        place = count + tl.cumsum(hit, 0) - hit
        tl.store(list_ptr + image * blocks + place, block, mask=hit != 0)
        count += tl.sum(hit, 0)
    tl.store(count_ptr + image, count)


@triton.jit
def _upper(tile, tiles):
    """Row and column of the tile-th tile on or above the diagonal."""
    row = 0
    width = tiles
    while tile >= width:
        tile -= width
        width -= 1
        row += 1
    return row, row + tile


@triton.jit
def _store_both(out_ptr, total, i, j, channels):
    """The entries [i, j] on and above the diagonal, and their mirror image: symmetric to the bit."""
    inside = (i < channels)[:, None] & (j < channels)[None, :]
    tl.store(out_ptr + i[:, None] * channels + j[None, :], total, mask=inside & (i[:, None] <= j[None, :]))
    tl.store(out_ptr + i[:, None] + j[None, :] * channels, total, mask=inside & (i[:, None] < j[None, :]))


@triton.jit
def masked_gram_fwd_kernel(
    f_ptr,
    mask_ptr,
    list_ptr,
    count_ptr,
    part_ptr,  # (splits, B, tiles of the upper triangle, BLOCK_M, BLOCK_M); of one split, out (B, C, C)
    stride_fb,
    stride_fc,
    stride_fn,
    stride_mb,
    stride_mn,
    channels,
    pixels,
    blocks,
    tiles,  # in a row of the matrix
    HAS_MASK: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tile = tl.program_id(0)
    part = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    row, column = _upper(tile, tiles)
    a_channels = row * BLOCK_M + tl.arange(0, BLOCK_M)
    b_channels = column * BLOCK_M + tl.arange(0, BLOCK_M)
    f_ptr += image * stride_fb
    mask_ptr += image * stride_mb
    used = tl.load(count_ptr + image) if HAS_MASK else blocks
    share = tl.cdiv(used, tl.num_programs(1))
    total = tl.zeros((BLOCK_M, BLOCK_M), tl.float32)
    for index in range(part * share, tl.minimum((part + 1) * share, used)):
        block = tl.load(list_ptr + image * blocks + index) if HAS_MASK else index
        n = block * BLOCK_K + tl.arange(0, BLOCK_K)
        a = feature_tile(f_ptr, stride_fc, stride_fn, a_channels, n, channels, pixels)
        b = feature_tile(f_ptr, stride_fc, stride_fn, b_channels, n, channels, pixels)
        if HAS_MASK:
            # Both: a pixel outside may hold NaN, and 0 * NaN is NaN.
            inside = tl.load(mask_ptr + n.to(tl.int64) * stride_mn, mask=n < pixels, other=0) != 0
            a = tl.where(inside[None, :], a, 0.0)
            b = tl.where(inside[None, :], b, 0.0)
        a, b = operand(a, a.dtype, PRECISION), operand(b, b.dtype, PRECISION)
        total = tl.dot(a, tl.trans(b), total, input_precision=PRECISION)
    if SPLIT:
        at = (part * tl.num_programs(2) + image) * tl.num_programs(0) + tile
        offsets = tl.arange(0, BLOCK_M)[:, None] * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
        tl.store(part_ptr + at * BLOCK_M * BLOCK_M + offsets, total)
    else:
        _store_both(part_ptr + image * channels * channels, total / pixels, a_channels, b_channels, channels)


@triton.jit
def masked_gram_fwd_sum_kernel(
    part_ptr,
    out_ptr,  # (B, C, C)
    channels,
    pixels,
    tiles,
    splits,
    BLOCK_M: tl.constexpr,
    SUMMED: tl.constexpr,
):
    tile = tl.program_id(0)
    image = tl.program_id(2).to(tl.int64)
    row, column = _upper(tile, tiles)
    i = tl.program_id(1) * SUMMED + tl.arange(0, SUMMED)
    j = tl.arange(0, BLOCK_M)
    total = tl.zeros((SUMMED, BLOCK_M), tl.float32)
    for part in range(splits):
        at = (part * tl.num_programs(2) + image) * tl.num_programs(0) + tile
        total += tl.load(part_ptr + at * BLOCK_M * BLOCK_M + i[:, None] * BLOCK_M + j[None, :])
    total = total / pixels
    i += row * BLOCK_M
    j += column * BLOCK_M
    _store_both(out_ptr + image * channels * channels, total, i, j, channels)


@triton.jit
def masked_gram_bwd_kernel(
    g_ptr,
    f_ptr,
    mask_ptr,
    out_ptr,  # (B, C, N)
    stride_gb,
    stride_gm,
    stride_gk,
    stride_fb,
    stride_fc,
    stride_fn,
    stride_mb,
    stride_mn,
    channels,
    pixels,
    HAS_MASK: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    image = tl.program_id(2).to(tl.int64)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = n < pixels
    if HAS_MASK:
        fg = tl.load(mask_ptr + image * stride_mb + n.to(tl.int64) * stride_mn, mask=inside, other=0)
        inside = inside & (fg != 0)
    out = product_with_features(
        g_ptr + image * stride_gb,
        stride_gm,
        stride_gk,
        f_ptr + image * stride_fb,
        stride_fc,
        stride_fn,
        m,
        n,
        inside,
        channels,
        channels,
        pixels,
        True,
        COMPUTE,
        PRECISION,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )
    out = tl.where(inside[None, :], out / pixels, 0.0)
    store_features(out_ptr + image * channels * pixels, out, m, n, channels, pixels)


def supports(features: Tensor) -> str | None:
    """Why `forward` cannot serve the features, or None."""
    return refusal("masked_gram", features)


def forward(features: Tensor, foreground: Tensor | None) -> Tensor:
    """F_m F_m^T / (H W): (B, C, C), float32."""
    require(supports(features))
    f = rows(features)
    batch, channels, pixels = f.shape
    gram = empty((batch, channels, channels), features)
    if batch == 0:
        return gram
    kind = precision(f.dtype)
    tile = tile_of(PLAIN_TILES if foreground is None else MASKED_TILES, kind, channels, is_ragged(f))
    tiles, blocks = triton.cdiv(channels, tile.block_m), triton.cdiv(pixels, tile.block_k)
    upper = tiles * (tiles + 1) // 2
    splits = split(upper * batch, blocks, PROGRAMS, SPLITS, least_blocks=4)
    parts = empty((splits, batch, upper, tile.block_m, tile.block_m), f) if splits > 1 else gram
    listed = blocks if foreground is not None else 0
    used, counts = empty((batch, listed), f, torch.int32), empty((batch,), f, torch.int32)
    mask = used if foreground is None else mask_rows(foreground)
    with on_device(f):
        if foreground is not None:
            words, pixels_each = _words(mask)
            masked_gram_blocks_kernel[(batch,)](
                *(words, used, counts, *words.stride(), words.shape[1], blocks),
                BLOCK_W=tile.block_k // pixels_each,
                num_warps=LISTING_WARPS,
            )
        masked_gram_fwd_kernel[(upper, splits, batch)](
            *(f, mask, used, counts, parts, *f.stride(), *mask.stride(), channels, pixels, blocks, tiles),
            HAS_MASK=foreground is not None,
            SPLIT=splits > 1,
            PRECISION=dot_precision(kind),
            BLOCK_M=tile.block_m,
            BLOCK_K=tile.block_k,
            **launch_options(tile),
        )
        if splits > 1:
            masked_gram_fwd_sum_kernel[(upper, tile.block_m // SUMMED, batch)](
                *(parts, gram, channels, pixels, tiles, splits), BLOCK_M=tile.block_m, SUMMED=SUMMED, num_warps=4
            )
    return gram


def _words(mask: Tensor) -> tuple[Tensor, int]:
    """The mask's rows in words, and the pixels of each: 8 where words lie in one row and at multiples of 8 bytes.

    All of 256 x 256 is then examined in one step; byte by byte it takes eight, one after the other.
    """
    apart = (mask.shape[1], mask.stride(0), mask.storage_offset(), mask.data_ptr())
    if mask.stride(1) != 1 or any(number % 8 for number in apart):
        return mask, 1
    return mask.view(torch.int64), 8


def backward(grad: Tensor, features: Tensor, foreground: Tensor | None) -> Tensor:
    """dF = m (dG + dG^T) F_m / (H W)."""
    out = torch.empty_like(features, memory_format=torch.contiguous_format)
    f = rows(features)
    batch, channels, pixels = f.shape
    if batch == 0:
        return out
    kind = precision(f.dtype)
    tile = tile_of(SYMMETRIC_TILES, kind, channels, is_ragged(f))
    mask = grad[:, :, 0] if foreground is None else mask_rows(foreground)
    grid = (triton.cdiv(pixels, tile.block_n), triton.cdiv(channels, tile.block_m), batch)
    with on_device(f):
        masked_gram_bwd_kernel[grid](
            *(grad, f, mask, out, *grad.stride(), *f.stride(), *mask.stride(), channels, pixels),
            HAS_MASK=foreground is not None,
            COMPUTE=COMPUTE[f.dtype],
            PRECISION=dot_precision(kind),
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            BLOCK_K=tile.block_k,
            **launch_options(tile),
        )
    return out


def compile_cases() -> list[Case]:
    """Every tile of both tables for every dtype it serves, with and without a mask."""
    cases = []
    base = pointers("mask", "u8") | pointers("list count", "i32") | pointers("part g")
    tables = [(masked_gram_fwd_kernel, MASKED_TILES, True, split_up) for split_up in (True, False)]
    tables += [(masked_gram_fwd_kernel, PLAIN_TILES, False, split_up) for split_up in (True, False)]
    tables += [(masked_gram_bwd_kernel, SYMMETRIC_TILES, masked, False) for masked in (True, False)]
    for kernel, table, masked, split_up in tables:
        for (kind, width), tile in table.items():
            for dtype, name in typed(kind):
                constants: dict[str, Any] = {"HAS_MASK": masked, "SPLIT": split_up, "stride_gk": 1, "stride_mn": 1}
                constants |= {"COMPUTE": COMPUTE[dtype], "PRECISION": dot_precision(kind)}
                label = f"C<={width} {name if kind == 'half' else kind}{' masked' if masked else ''}"
                label += " split" if split_up else ""
                cases += product_cases(label, kernel, base | pointers("f out", name), constants, tile, kind)
    for kind, each in (("i64", 8), ("u8", 1)):
        for block_k in (16, 32, 64):
            constants = {"BLOCK_W": block_k // each, "stride_mn": 1}
            types = base | pointers("mask", kind)
            cases.append(
                case(f"blocks of {block_k} {kind}", masked_gram_blocks_kernel, types, constants, LISTING_WARPS)
            )
    for block in sorted({tile.block_m for tile in GRAM_TILES.values()}):
        constants = {"BLOCK_M": block, "SUMMED": SUMMED}
        cases.append(case(f"tiles of {block}", masked_gram_fwd_sum_kernel, base | pointers("out"), constants, 4))
    return cases
