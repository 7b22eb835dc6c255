"""The kernel of the gradient of a foreground's Gram matrix: a small matrix and its transpose, times the map."""

import triton
import triton.language as tl

from scsco_fast.kernels.products import map_block, product_with_features, store_block


@triton.jit
def masked_gram_bwd_kernel(
    g_ptr, f_ptr, mask_ptr,
    out_ptr,  # (B, C, N)
    stride_gb, stride_gm, stride_gk, stride_fb, stride_fc, stride_fn, stride_mb, stride_mn,
    channels, pixels,
    HAS_MASK: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    image, m, n = map_block(BLOCK_M, BLOCK_N)
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
    store_block(out_ptr + image * channels * pixels, out, m, n, channels, pixels)
