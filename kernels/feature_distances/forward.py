"""The kernel of distances of feature maps; each program adds up the distances of a few others to one part of a map."""

import triton
import triton.language as tl


@triton.jit
def map_tile(block, columns, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr):
    """Channels and pixels of a block, as int64."""
    c = block // columns * BLOCK_C + tl.arange(0, BLOCK_C)
    n = block % columns * BLOCK_N + tl.arange(0, BLOCK_N)
    return c.to(tl.int64), n.to(tl.int64)


@triton.jit
def feature_distances_fwd_kernel(
    f_ptr, o_ptr,
    part_ptr,  # (B, J, splits)
    stride_fb, stride_fc, stride_fn, stride_ob, stride_oj, stride_oc, stride_on,
    others, channels, pixels,
    columns,  # tiles in a row of pixels
    blocks,  # tiles in one split
    factor,
    BLOCK_J: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0)
    image = tl.program_id(2).to(tl.int64)
    j = (tl.program_id(1) * BLOCK_J + tl.arange(0, BLOCK_J)).to(tl.int64)
    f_ptr += image * stride_fb
    o_ptr += image * stride_ob + j[:, None, None] * stride_oj
    total = tl.zeros((BLOCK_J, BLOCK_C, BLOCK_N), tl.float32)
    for block in range(part * blocks, (part + 1) * blocks):
        c, n = map_tile(block, columns, BLOCK_C, BLOCK_N)
        inside = (c < channels)[:, None] & (n < pixels)[None, :]
        f = tl.load(f_ptr + c[:, None] * stride_fc + n[None, :] * stride_fn, mask=inside, other=0.0).to(tl.float32)
        at = c[None, :, None] * stride_oc + n[None, None, :] * stride_on
        o = tl.load(o_ptr + at, mask=inside[None, :, :] & (j < others)[:, None, None], other=0.0).to(tl.float32)
        total += tl.abs(f[None, :, :] - o)
    sums = tl.sum(tl.sum(total, 2), 1) * factor
    tl.store(part_ptr + (image * others + j) * tl.num_programs(0) + part, sums, mask=j < others)
