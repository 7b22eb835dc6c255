"""The kernels of the distances of Gram matrices: products of differences, and their sums where they are split."""

import triton
import triton.language as tl

from scsco_fast.kernels.products import feature_tile, matrix_block, operand, store_block


@triton.jit
def half_difference(f_ptr, stride_fc, stride_fn, o_ptr, stride_oc, stride_on, c, n, channels, pixels):
    """(f - o) / 2 in float32: halved, because two float16 values may differ by more than float16 holds."""
    f = feature_tile(f_ptr, stride_fc, stride_fn, c, n, channels, pixels).to(tl.float32)
    return f * 0.5 - feature_tile(o_ptr, stride_oc, stride_on, c, n, channels, pixels).to(tl.float32) * 0.5


@triton.jit
def _sign(x):
    return (x > 0).to(tl.int8) - (x < 0).to(tl.int8)


@triton.jit
def gram_distances_fwd_kernel(
    f_ptr, b_ptr, o_ptr,
    sign_ptr,  # (B, J, Cf, Cb) int8
    part_ptr,  # (B, J, tiles): each tile's sum of absolute values; if SPLIT, (splits, B, J, Cf, Cb): half differences
    stride_fb, stride_fc, stride_fn, stride_bb, stride_bc, stride_bn, stride_ob, stride_oj, stride_oc, stride_on,
    channels, b_channels, pixels, columns, splits,
    share,  # of the pixels, a multiple of BLOCK_K
    factor,
    COMPUTE: tl.constexpr, PRECISION: tl.constexpr, SPLIT: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tile, part = tl.program_id(0) // splits, tl.program_id(0) % splits
    other, image = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    m, k = matrix_block(tile, columns, BLOCK_M, BLOCK_N)
    f_ptr += image * stride_fb
    b_ptr += image * stride_bb
    o_ptr += image * stride_ob + other * stride_oj
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(part * share, tl.minimum((part + 1) * share, pixels), BLOCK_K):
        n = first + tl.arange(0, BLOCK_K)
        d = half_difference(f_ptr, stride_fc, stride_fn, o_ptr, stride_oc, stride_on, m, n, channels, pixels)
        b = operand(feature_tile(b_ptr, stride_bc, stride_bn, k, n, b_channels, pixels), COMPUTE, PRECISION)
        total = tl.dot(operand(d, COMPUTE, PRECISION), tl.trans(b), total, input_precision=PRECISION)

    pair = image * tl.num_programs(1) + other
    if SPLIT:
        pair += part * tl.num_programs(1).to(tl.int64) * tl.num_programs(2)
        store_block(part_ptr + pair * channels * b_channels, total, m, k, channels, b_channels)
    else:
        store_block(sign_ptr + pair * channels * b_channels, _sign(total), m, k, channels, b_channels)
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
        tl.store(sign_ptr + pair * entries + at, _sign(total), mask=at < entries)
        distance += tl.abs(total)
    tl.store(out_ptr + pair, tl.sum(distance, 0) * factor)
