"""The kernel of the Gram matrix of two feature maps."""

import triton
import triton.language as tl

from scsco_fast.kernels.products import feature_tile, matrix_block, operand, store_block


@triton.jit
def cross_gram_fwd_kernel(
    a_ptr, b_ptr,
    part_ptr,  # (splits, B, Ca, Cb)
    stride_ab, stride_ac, stride_an, stride_bb, stride_bc, stride_bn,
    a_channels, b_channels, pixels, images,
    columns,  # tiles in a row of the matrix
    blocks,  # of pixels in one split
    COMPUTE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    m, k = matrix_block(tl.program_id(0), columns, BLOCK_M, BLOCK_N)
    a_ptr += image * stride_ab
    b_ptr += image * stride_bb
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for block in range(part * blocks, (part + 1) * blocks):
        n = block * BLOCK_K + tl.arange(0, BLOCK_K)
        a = operand(feature_tile(a_ptr, stride_ac, stride_an, m, n, a_channels, pixels), COMPUTE, PRECISION)
        b = operand(feature_tile(b_ptr, stride_bc, stride_bn, k, n, b_channels, pixels), COMPUTE, PRECISION)
        total = tl.dot(a, tl.trans(b), total, input_precision=PRECISION)
    part_ptr += (part * images + image) * a_channels * b_channels
    store_block(part_ptr, total / pixels, m, k, a_channels, b_channels)
