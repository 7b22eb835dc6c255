"""The kernel of the gradients of a Gram matrix of two feature maps: a small matrix times a map."""

import triton
import triton.language as tl

from scsco_fast.kernels.products import map_block, product_with_features, store_block


@triton.jit
def cross_gram_bwd_kernel(
    g_ptr, f_ptr,
    out_ptr,  # (B, rows, N)
    stride_gb, stride_gm, stride_gk, stride_fb, stride_fc, stride_fn,
    rows, depth, pixels,
    COMPUTE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    image, m, n = map_block(BLOCK_M, BLOCK_N)
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
    store_block(out_ptr + image * rows * pixels, out / pixels, m, n, rows, pixels)
