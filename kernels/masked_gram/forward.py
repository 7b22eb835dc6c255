"""The kernels of a foreground's Gram matrix: list the blocks that hold any of it, multiply them, add the splits."""

import triton
import triton.language as tl

from scsco_fast.kernels.products import feature_tile, operand

LISTED = tl.constexpr(8192)  # of the mask's elements that are examined at once: words of 8 pixels, or bytes


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
    f_ptr, mask_ptr, list_ptr, count_ptr,
    part_ptr,  # (splits, B, tiles of the upper triangle, BLOCK_M, BLOCK_M); of one split, out (B, C, C)
    stride_fb, stride_fc, stride_fn, stride_mb, stride_mn,
    channels, pixels, blocks,
    tiles,  # in a row of the matrix
    HAS_MASK: tl.constexpr, SPLIT: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
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
