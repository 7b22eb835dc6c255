"""The kernels of the gradients of distances of Gram matrices: products with the signs that the forward kept."""

import triton
import triton.language as tl

from scsco_fast.kernels.gram_distances.forward import half_difference
from scsco_fast.kernels.products import feature_tile, map_block, operand, store_block


@triton.jit
def gram_distances_bwd_features_kernel(
    sign_ptr, b_ptr,
    grad_ptr,  # (B, J): of each distance
    df_ptr,  # (B, Cf, N)
    do_ptr,  # (B, J, Cf, N)
    ANCHOR_ONLY: tl.constexpr,  # leaves do out
    stride_gb, stride_gj, stride_bb, stride_bc, stride_bn,
    channels, b_channels, pixels, others, factor,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    image, m, n = map_block(BLOCK_M, BLOCK_N)
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
            store_block(do_ptr + pair * channels * pixels, -flow, m, n, channels, pixels)
        df += flow
    store_block(df_ptr + image * channels * pixels, df, m, n, channels, pixels)


@triton.jit
def gram_distances_bwd_background_kernel(
    sign_ptr, f_ptr, o_ptr, grad_ptr,
    db_ptr,  # (B, Cb, N)
    stride_gb, stride_gj, stride_fb, stride_fc, stride_fn, stride_ob, stride_oj, stride_oc, stride_on,
    channels, b_channels, pixels, others, factor,
    COMPUTE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    image, m, n = map_block(BLOCK_M, BLOCK_N)
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
            d = half_difference(f_ptr, stride_fc, stride_fn, o_ptr, stride_oc, stride_on, c, n, channels, pixels)
            d = operand(d, COMPUTE, PRECISION)
            flow = tl.dot(sign.to(COMPUTE), d, flow, input_precision=PRECISION)
        db += flow * (2.0 * factor * tl.load(grad_ptr + image * stride_gb + other * stride_gj))
        o_ptr += stride_oj
    store_block(db_ptr + image * b_channels * pixels, db, m, n, b_channels, pixels)
