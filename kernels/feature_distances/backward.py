"""The kernel of the gradients of distances of feature maps."""

import triton
import triton.language as tl

from scsco_fast.kernels.feature_distances.forward import map_tile


@triton.jit
def feature_distances_bwd_kernel(
    f_ptr, o_ptr,
    grad_ptr,  # (B, J): of each distance
    df_ptr,  # (B, C, N)
    do_ptr,  # (B, J, C, N)
    stride_gb, stride_gj, stride_fb, stride_fc, stride_fn, stride_ob, stride_oj, stride_oc, stride_on,
    others, channels, pixels, columns, blocks, factor,
    ANCHOR_ONLY: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0)
    image = tl.program_id(2).to(tl.int64)
    f_ptr += image * stride_fb
    o_ptr += image * stride_ob
    for block in range(part * blocks, (part + 1) * blocks):
        c, n = map_tile(block, columns, BLOCK_C, BLOCK_N)
        inside = (c < channels)[:, None] & (n < pixels)[None, :]
        f = tl.load(f_ptr + c[:, None] * stride_fc + n[None, :] * stride_fn, mask=inside, other=0.0).to(tl.float32)
        df = tl.zeros((BLOCK_C, BLOCK_N), tl.float32)
        for first in range(0, others, BLOCK_J):
            j = (first + tl.arange(0, BLOCK_J)).to(tl.int64)
            used = inside[None, :, :] & (j < others)[:, None, None]
            at = j[:, None, None] * stride_oj + c[None, :, None] * stride_oc + n[None, None, :] * stride_on
            o = tl.load(o_ptr + at, mask=used, other=0.0).to(tl.float32)
            grad = tl.load(grad_ptr + image * stride_gb + j * stride_gj, mask=j < others, other=0.0) * factor
            grad = grad[:, None, None]
            away = f[None, :, :] - o
            flow = tl.where(away > 0, grad, tl.where(away < 0, -grad, 0.0))
            df += tl.sum(flow, 0)
            if not ANCHOR_ONLY:
                to = ((image * others + j)[:, None, None] * channels + c[None, :, None]) * pixels + n[None, None, :]
                tl.store(do_ptr + to, (-flow).to(do_ptr.dtype.element_ty), mask=used)
        out = (image * channels + c[:, None]) * pixels + n[None, :]
        tl.store(df_ptr + out, df.to(df_ptr.dtype.element_ty), mask=inside)
