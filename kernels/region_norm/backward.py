"""The backward kernels of region normalisation, in the forms of the forward ones."""

import triton
import triton.language as tl

from scsco_fast.kernels.region_norm.regions import affine_row, counts_of, parts_of, regions, sizes_of, store_part


@triton.jit
def _moments(mean_ptr, std_ptr, image, c, channels, REGION: tl.constexpr):
    at = (image * channels + c) * 2 + REGION
    return tl.load(mean_ptr + at, mask=c < channels, other=0.0), tl.load(std_ptr + at, mask=c < channels, other=1.0)


@triton.jit
def _gradient_terms(
    affine_ptr,  # (4, C)
    d_affine_ptr,  # (B, 4, C)
    image, c, channels,
    inside,  # whether c is a channel
    first,  # of the programs that share these channels: it stores the affine's gradients
    mean_b, std_f, std_b, size_f, size_b, sum_f, sum_b, sum_xf, sum_xb,
    ADAPT: tl.constexpr,
):  # fmt: skip
    """From the sums over an image's regions: what `gradient` takes, and the affine's gradients, stored."""
    size_f, size_b = tl.maximum(size_f, 1.0), tl.maximum(size_b, 1.0)
    weight_f = affine_row(affine_ptr, 0, c, channels, inside)
    slope_b = affine_row(affine_ptr, 2, c, channels, inside) / std_b
    slope_f, d_fg_weight = weight_f, sum_xf
    if ADAPT:
        slope_f = weight_f * std_b
        d_fg_weight = std_b * sum_xf + mean_b * sum_f
    at, used = image * 4 * channels + c, inside & first
    tl.store(d_affine_ptr + at, d_fg_weight, mask=used)
    tl.store(d_affine_ptr + at + channels, sum_f, mask=used)
    tl.store(d_affine_ptr + at + 2 * channels, sum_xb, mask=used)
    tl.store(d_affine_ptr + at + 3 * channels, sum_b, mask=used)
    # What reaches the background's moments through the foreground.
    through, lean = weight_f * sum_f / size_b, weight_f * sum_xf / (size_b * std_b)
    tilt_f, tilt_b = sum_xf / (size_f * std_f), sum_xb / (size_b * std_b)
    return slope_f / std_f, slope_b, sum_f / size_f, sum_b / size_b, tilt_f, tilt_b, through, lean


@triton.jit
def _gradient(dy, centred, fg, slope_f, slope_b, drop_f, drop_b, tilt_f, tilt_b, through, lean, ADAPT: tl.constexpr):
    """Of x, whose region's mean is subtracted in `centred`."""
    # Subtracted before the slope is applied: a region of one pixel then gives 0, not 316 times a rounding error.
    dx = dy - tl.where(fg, drop_f, drop_b) - tl.where(fg, tilt_f, tilt_b) * centred
    dx *= tl.where(fg, slope_f, slope_b)
    if ADAPT:
        dx += tl.where(fg, 0.0, through + lean * centred)
    return dx


@triton.jit
def region_norm_bwd_tile_kernel(
    grad_ptr, x_ptr, fg_ptr, valid_ptr, mean_ptr, std_ptr,
    affine_ptr,  # (4, C)
    dx_ptr,  # (B, C, N)
    d_affine_ptr,  # (B, 4, C): this image's part
    stride_xb, stride_xc, stride_xn, stride_gb, stride_gc, stride_gn,
    channels, pixels,
    ADAPT: tl.constexpr, HAS_VALID: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    n = tl.arange(0, BLOCK_N).to(tl.int64)
    mean_f, std_f = _moments(mean_ptr, std_ptr, image, c, channels, 0)
    mean_b, std_b = _moments(mean_ptr, std_ptr, image, c, channels, 1)
    fg, bg = regions(fg_ptr + image * pixels, valid_ptr + image * pixels, n, n < pixels, HAS_VALID)
    inside = (c < channels)[:, None] & (n < pixels)[None, :]
    grad_ptr += image * stride_gb + c.to(tl.int64)[:, None] * stride_gc
    x_ptr += image * stride_xb + c.to(tl.int64)[:, None] * stride_xc
    dy = tl.load(grad_ptr + n[None, :] * stride_gn, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + n[None, :] * stride_xn, mask=inside, other=0.0).to(tl.float32)
    fg, bg = fg[None, :], bg[None, :]
    centred = x - tl.where(fg, mean_f[:, None], mean_b[:, None])
    slope_f, slope_b, drop_f, drop_b, tilt_f, tilt_b, through, lean = _gradient_terms(
        *(affine_ptr, d_affine_ptr, image, c, channels, c < channels, True),
        *(mean_b, std_f, std_b, tl.sum(fg.to(tl.float32), 1), tl.sum(bg.to(tl.float32), 1)),
        *(tl.sum(tl.where(fg, dy, 0.0), 1), tl.sum(tl.where(bg, dy, 0.0), 1)),
        *(tl.sum(tl.where(fg, dy * centred, 0.0), 1) / std_f, tl.sum(tl.where(bg, dy * centred, 0.0), 1) / std_b),
        ADAPT,
    )
    dx = _gradient(
        *(dy, centred, fg, slope_f[:, None], slope_b[:, None], drop_f[:, None], drop_b[:, None]),
        *(tilt_f[:, None], tilt_b[:, None], through[:, None], lean[:, None], ADAPT),
    )
    dx_ptr += (image * channels + c)[:, None] * pixels
    tl.store(dx_ptr + n[None, :], tl.where(fg | bg, dx, 0.0).to(dx_ptr.dtype.element_ty), mask=inside)


@triton.jit
def region_norm_bwd_plane_kernel(
    grad_ptr, x_ptr, fg_ptr, valid_ptr, mean_ptr, std_ptr,
    affine_ptr,  # (4, C)
    dx_ptr,  # (B, C, N)
    d_affine_ptr,  # (B, 4, C)
    stride_xb, stride_xc, stride_gb, stride_gc, stride_gn,
    channels, pixels,
    ADAPT: tl.constexpr, HAS_VALID: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr, RUNS: tl.constexpr,
):  # fmt: skip
    image, c = tl.program_id(1).to(tl.int64), tl.program_id(0)
    mean_f, std_f = _moments(mean_ptr, std_ptr, image, c, channels, 0)
    mean_b, std_b = _moments(mean_ptr, std_ptr, image, c, channels, 1)
    grad_ptr += image * stride_gb + c.to(tl.int64) * stride_gc
    x_ptr += image * stride_xb + c.to(tl.int64) * stride_xc
    dx_ptr += (image * channels + c) * pixels
    fg_ptr += image * pixels
    valid_ptr += image * pixels

    at = tl.arange(0, ROWS)[:, None] * RUNS + tl.arange(0, RUNS)[None, :]
    n_f = tl.zeros((ROWS,), tl.int32)
    n_b = tl.zeros((ROWS,), tl.int32)
    s_f = tl.zeros((ROWS,), tl.float32)
    s_b = tl.zeros((ROWS,), tl.float32)
    t_f = tl.zeros((ROWS,), tl.float32)
    t_b = tl.zeros((ROWS,), tl.float32)
    for first in range(0, pixels, ROWS * RUNS):
        n = (first + at).to(tl.int64)
        inside = (n < pixels) | EVEN
        fg, bg = regions(fg_ptr, valid_ptr, n, inside, HAS_VALID)
        dy = tl.load(grad_ptr + n * stride_gn, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + n, mask=inside, other=0.0).to(tl.float32)
        moved = dy * (x - tl.where(fg, mean_f, mean_b))
        n_f += tl.sum(fg.to(tl.int32), 1)
        if HAS_VALID:
            n_b += tl.sum(bg.to(tl.int32), 1)
        s_f += tl.sum(tl.where(fg, dy, 0.0), 1)
        s_b += tl.sum(tl.where(bg, dy, 0.0), 1)
        t_f += tl.sum(tl.where(fg, moved, 0.0), 1)
        t_b += tl.sum(tl.where(bg, moved, 0.0), 1)

    size_f, size_b = sizes_of(n_f, n_b, pixels, HAS_VALID)
    slope_f, slope_b, drop_f, drop_b, tilt_f, tilt_b, through, lean = _gradient_terms(
        *(affine_ptr, d_affine_ptr, image, c, channels, True, True),
        *(mean_b, std_f, std_b, size_f, size_b),
        *(tl.sum(s_f, 0), tl.sum(s_b, 0), tl.sum(t_f, 0) / std_f, tl.sum(t_b, 0) / std_b, ADAPT),
    )
    for first in range(0, pixels, ROWS * RUNS):
        n = (first + at).to(tl.int64)
        inside = (n < pixels) | EVEN
        fg, bg = regions(fg_ptr, valid_ptr, n, inside, HAS_VALID)
        dy = tl.load(grad_ptr + n * stride_gn, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + n, mask=inside, other=0.0).to(tl.float32)
        centred = x - tl.where(fg, mean_f, mean_b)
        dx = _gradient(
            *(dy, centred, fg, slope_f, slope_b, drop_f, drop_b, tilt_f, tilt_b, through, lean, ADAPT),
        )
        if HAS_VALID:
            dx = tl.where(fg | bg, dx, 0.0)
        tl.store(dx_ptr + n, dx.to(dx_ptr.dtype.element_ty), mask=inside)


@triton.jit
def region_norm_bwd_sums_kernel(
    grad_ptr, x_ptr, fg_ptr, valid_ptr, mean_ptr, std_ptr,
    count_ptr,  # (B, splits, 2)
    sum_ptr,  # (B, splits, 4, C): sum of dy over foreground and background, sum of dy xh likewise
    stride_xb, stride_xc, stride_xn, stride_gb, stride_gc, stride_gn,
    channels, pixels, splits, blocks,
    HAS_VALID: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0)
    image = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mean_f, std_f = _moments(mean_ptr, std_ptr, image, c, channels, 0)
    mean_b, std_b = _moments(mean_ptr, std_ptr, image, c, channels, 1)
    grad_ptr += image * stride_gb + c.to(tl.int64)[:, None] * stride_gc
    x_ptr += image * stride_xb + c.to(tl.int64)[:, None] * stride_xc
    fg_ptr += image * pixels
    valid_ptr += image * pixels

    # Summed element by element and reduced once: a reduction in every step would wait for the whole block.
    n_f, n_b = 0.0, 0.0
    dy_f = tl.zeros((BLOCK_C, BLOCK_N), tl.float32)
    dy_b = tl.zeros((BLOCK_C, BLOCK_N), tl.float32)
    dx_f = tl.zeros((BLOCK_C, BLOCK_N), tl.float32)
    dx_b = tl.zeros((BLOCK_C, BLOCK_N), tl.float32)
    for block in range(part * blocks, (part + 1) * blocks):
        n = (block * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
        fg, bg = regions(fg_ptr, valid_ptr, n, n < pixels, HAS_VALID)
        inside = (c < channels)[:, None] & (n < pixels)[None, :]
        dy = tl.load(grad_ptr + n[None, :] * stride_gn, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + n[None, :] * stride_xn, mask=inside, other=0.0).to(tl.float32)
        centred = x - tl.where(fg[None, :], mean_f[:, None], mean_b[:, None])
        n_f += tl.sum(fg.to(tl.float32), 0)
        n_b += tl.sum(bg.to(tl.float32), 0)
        dy_f += tl.where(fg[None, :], dy, 0.0)
        dy_b += tl.where(bg[None, :], dy, 0.0)
        dx_f += tl.where(fg[None, :], dy * centred, 0.0)
        dx_b += tl.where(bg[None, :], dy * centred, 0.0)

    at = image * splits + part
    sum_xf, sum_xb = tl.sum(dx_f, 1) / std_f, tl.sum(dx_b, 1) / std_b
    store_part(count_ptr, sum_ptr, at, c, channels, n_f, n_b, tl.sum(dy_f, 1), tl.sum(dy_b, 1), sum_xf, sum_xb)


@triton.jit
def region_norm_bwd_dx_kernel(
    grad_ptr, x_ptr, fg_ptr, valid_ptr, mean_ptr, std_ptr, count_ptr, sum_ptr,
    affine_ptr,  # (4, C)
    dx_ptr,  # (B, C, N)
    d_affine_ptr,  # (B, 4, C): this image's part
    stride_xb, stride_xc, stride_xn, stride_gb, stride_gc, stride_gn,
    channels, pixels, splits, blocks,
    ADAPT: tl.constexpr, HAS_VALID: tl.constexpr, SPLITS: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0)
    image = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mean_f, std_f = _moments(mean_ptr, std_ptr, image, c, channels, 0)
    mean_b, std_b = _moments(mean_ptr, std_ptr, image, c, channels, 1)
    sum_f = tl.sum(parts_of(sum_ptr, image, splits, channels, c, 0, SPLITS), 0)
    sum_b = tl.sum(parts_of(sum_ptr, image, splits, channels, c, 1, SPLITS), 0)
    sum_xf = tl.sum(parts_of(sum_ptr, image, splits, channels, c, 2, SPLITS), 0)
    sum_xb = tl.sum(parts_of(sum_ptr, image, splits, channels, c, 3, SPLITS), 0)
    size_f = tl.sum(counts_of(count_ptr, image, splits, 0, SPLITS), 0)
    size_b = tl.sum(counts_of(count_ptr, image, splits, 1, SPLITS), 0)
    slope_f, slope_b, drop_f, drop_b, tilt_f, tilt_b, through, lean = _gradient_terms(
        *(affine_ptr, d_affine_ptr, image, c, channels, c < channels, part == 0),
        *(mean_b, std_f, std_b, size_f, size_b, sum_f, sum_b, sum_xf, sum_xb, ADAPT),
    )
    grad_ptr += image * stride_gb + c.to(tl.int64)[:, None] * stride_gc
    x_ptr += image * stride_xb + c.to(tl.int64)[:, None] * stride_xc
    dx_ptr += (image * channels + c)[:, None] * pixels
    fg_ptr += image * pixels
    valid_ptr += image * pixels
    for block in range(part * blocks, (part + 1) * blocks):
        n = (block * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
        fg, bg = regions(fg_ptr, valid_ptr, n, n < pixels, HAS_VALID)
        inside = (c < channels)[:, None] & (n < pixels)[None, :]
        dy = tl.load(grad_ptr + n[None, :] * stride_gn, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + n[None, :] * stride_xn, mask=inside, other=0.0).to(tl.float32)
        own = fg[None, :]
        centred = x - tl.where(own, mean_f[:, None], mean_b[:, None])
        dx = _gradient(
            *(dy, centred, own, slope_f[:, None], slope_b[:, None], drop_f[:, None], drop_b[:, None]),
            *(tilt_f[:, None], tilt_b[:, None], through[:, None], lean[:, None], ADAPT),
        )
        dx = tl.where((fg | bg)[None, :], dx, 0.0)
        tl.store(dx_ptr + n[None, :], dx.to(dx_ptr.dtype.element_ty), mask=inside)
