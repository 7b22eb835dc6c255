"""The forward kernels of region normalisation; `launch` says which runs.

A small plane stays in registers and is read once ("tile"). A larger one is read twice ("plane"): the first loop's sums
are kept per thread and joined after it, so that no step waits for the other threads, and the second loop finds the
plane in a cache. Of split images the moments of a tile's pixels join those of the tiles before it by Chan's update, so
that no difference of large numbers is taken, and every program that applies them merges the splits' itself, in the same
order.
"""

import triton
import triton.language as tl

from scsco_fast.kernels.region_norm.regions import affine_row, counts_of, parts_of, regions, sizes_of, store_part

SAMPLE = tl.constexpr(2048)  # pixels
RUN = tl.constexpr(16)  # neighbours sampled together: 32 bytes, the least that memory hands out
FEW = tl.constexpr(16)  # sampled pixels of a region below which the sample does not speak for it


@triton.jit
def _coefficients(affine_ptr, c, channels, inside, mean_b, std_f, std_b, ADAPT: tl.constexpr):
    """Gain and offset of both regions' centred pixels."""
    gain_f = affine_row(affine_ptr, 0, c, channels, inside)
    bias_f = affine_row(affine_ptr, 1, c, channels, inside)
    if ADAPT:
        bias_f = gain_f * mean_b + bias_f
        gain_f = gain_f * std_b
    gain_b = affine_row(affine_ptr, 2, c, channels, inside) / std_b
    return gain_f / std_f, bias_f, gain_b, affine_row(affine_ptr, 3, c, channels, inside)


@triton.jit
def _store_moments(mean_ptr, std_ptr, plane, mask, mean_f, mean_b, std_f, std_b):
    """Both regions' moments of these planes, to (B, C, 2)."""
    tl.store(mean_ptr + 2 * plane, mean_f, mask=mask)
    tl.store(mean_ptr + 2 * plane + 1, mean_b, mask=mask)
    tl.store(std_ptr + 2 * plane, std_f, mask=mask)
    tl.store(std_ptr + 2 * plane + 1, std_b, mask=mask)


@triton.jit
def _deviation(squares, count, EPS: tl.constexpr):
    """Of a sum of squared deviations; 1 where the region is empty."""
    return tl.where(count > 0, tl.sqrt(tl.maximum(squares, 0.0) / tl.maximum(count, 1.0) + EPS), 1.0)


@triton.jit
def region_norm_fwd_tile_kernel(
    x_ptr, fg_ptr, valid_ptr,
    affine_ptr,  # (4, C)
    y_ptr,  # (B, C, N)
    mean_ptr,  # (B, C, 2)
    std_ptr,
    stride_xb, stride_xc, stride_xn,
    channels, pixels,
    EPS: tl.constexpr, ADAPT: tl.constexpr, HAS_VALID: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    n = tl.arange(0, BLOCK_N).to(tl.int64)
    fg, bg = regions(fg_ptr + image * pixels, valid_ptr + image * pixels, n, n < pixels, HAS_VALID)
    inside = (c < channels)[:, None] & (n < pixels)[None, :]
    x_ptr += image * stride_xb + c.to(tl.int64)[:, None] * stride_xc
    x = tl.load(x_ptr + n[None, :] * stride_xn, mask=inside, other=0.0).to(tl.float32)  # (BLOCK_C, BLOCK_N)
    fg, bg = fg[None, :], bg[None, :]
    n_f = tl.sum(fg.to(tl.float32), 1)
    n_b = tl.sum(bg.to(tl.float32), 1)
    mean_f = tl.sum(tl.where(fg, x, 0.0), 1) / tl.maximum(n_f, 1.0)
    mean_b = tl.sum(tl.where(bg, x, 0.0), 1) / tl.maximum(n_b, 1.0)
    away = x - tl.where(fg, mean_f[:, None], mean_b[:, None])
    std_f = _deviation(tl.sum(tl.where(fg, away * away, 0.0), 1), n_f, EPS)
    std_b = _deviation(tl.sum(tl.where(bg, away * away, 0.0), 1), n_b, EPS)

    _store_moments(mean_ptr, std_ptr, image * channels + c, c < channels, mean_f, mean_b, std_f, std_b)
    gain_f, bias_f, gain_b, bias_b = _coefficients(affine_ptr, c, channels, c < channels, mean_b, std_f, std_b, ADAPT)
    y = away * tl.where(fg, gain_f[:, None], gain_b[:, None]) + tl.where(fg, bias_f[:, None], bias_b[:, None])
    y = tl.where(fg | bg, y, 0.0)
    y_ptr += (image * channels + c)[:, None] * pixels
    tl.store(y_ptr + n[None, :], y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _shifts(x_ptr, fg_ptr, valid_ptr, pixels, HAS_VALID: tl.constexpr):
    """Numbers near the means of both regions: of pixels all over the plane, or of all pixels where those are too few.

    Squares of what is left after subtracting them lose no digits, even where one pixel stands far out.
    """
    index = tl.arange(0, SAMPLE)
    n = (index // RUN * (pixels // (SAMPLE // RUN)) + index % RUN).to(tl.int64)
    fg, bg = regions(fg_ptr, valid_ptr, n, n < pixels, HAS_VALID)
    x = tl.load(x_ptr + n, mask=n < pixels, other=0.0).to(tl.float32)
    n_f, n_b = tl.sum(fg.to(tl.float32), 0), tl.sum(bg.to(tl.float32), 0)
    s_f, s_b = tl.sum(tl.where(fg, x, 0.0), 0), tl.sum(tl.where(bg, x, 0.0), 0)
    if tl.minimum(n_f, n_b) < FEW:
        n_f, n_b, s_f, s_b = 0.0, 0.0, 0.0, 0.0
        for first in range(0, pixels, SAMPLE):
            n = (first + index).to(tl.int64)
            fg, bg = regions(fg_ptr, valid_ptr, n, n < pixels, HAS_VALID)
            x = tl.load(x_ptr + n, mask=n < pixels, other=0.0).to(tl.float32)
            n_f += tl.sum(fg.to(tl.float32), 0)
            n_b += tl.sum(bg.to(tl.float32), 0)
            s_f += tl.sum(tl.where(fg, x, 0.0), 0)
            s_b += tl.sum(tl.where(bg, x, 0.0), 0)
    return s_f / tl.maximum(n_f, 1.0), s_b / tl.maximum(n_b, 1.0)


@triton.jit
def region_norm_fwd_plane_kernel(
    x_ptr, fg_ptr, valid_ptr,
    affine_ptr,  # (4, C)
    y_ptr,  # (B, C, N)
    mean_ptr,  # (B, C, 2)
    std_ptr,
    stride_xb, stride_xc,
    channels, pixels,
    EPS: tl.constexpr, ADAPT: tl.constexpr, HAS_VALID: tl.constexpr,
    EVEN: tl.constexpr,  # the plane is a whole number of steps
    ROWS: tl.constexpr, RUNS: tl.constexpr,
):  # fmt: skip
    image, c = tl.program_id(1).to(tl.int64), tl.program_id(0)
    x_ptr += image * stride_xb + c.to(tl.int64) * stride_xc
    y_ptr += (image * channels + c) * pixels
    fg_ptr += image * pixels
    valid_ptr += image * pixels
    shift_f, shift_b = _shifts(x_ptr, fg_ptr, valid_ptr, pixels, HAS_VALID)

    # A thread's neighbours lie along the second axis: sums over it need no other thread.
    at = tl.arange(0, ROWS)[:, None] * RUNS + tl.arange(0, RUNS)[None, :]
    n_f = tl.zeros((ROWS,), tl.int32)
    n_b = tl.zeros((ROWS,), tl.int32)
    s_f = tl.zeros((ROWS,), tl.float32)
    s_b = tl.zeros((ROWS,), tl.float32)
    q_f = tl.zeros((ROWS,), tl.float32)
    q_b = tl.zeros((ROWS,), tl.float32)
    for first in range(0, pixels, ROWS * RUNS):
        n = (first + at).to(tl.int64)
        inside = (n < pixels) | EVEN
        fg, bg = regions(fg_ptr, valid_ptr, n, inside, HAS_VALID)
        x = tl.load(x_ptr + n, mask=inside, other=0.0).to(tl.float32)
        d_f = tl.where(fg, x - shift_f, 0.0)
        d_b = tl.where(bg, x - shift_b, 0.0)
        n_f += tl.sum(fg.to(tl.int32), 1)
        if HAS_VALID:
            n_b += tl.sum(bg.to(tl.int32), 1)
        s_f += tl.sum(d_f, 1)
        s_b += tl.sum(d_b, 1)
        q_f += tl.sum(d_f * d_f, 1)
        q_b += tl.sum(d_b * d_b, 1)

    size_f, size_b = sizes_of(n_f, n_b, pixels, HAS_VALID)
    off_f = tl.sum(s_f, 0) / tl.maximum(size_f, 1.0)
    off_b = tl.sum(s_b, 0) / tl.maximum(size_b, 1.0)
    mean_f, mean_b = shift_f + off_f, shift_b + off_b
    std_f = _deviation(tl.sum(q_f, 0) - off_f * off_f * size_f, size_f, EPS)
    std_b = _deviation(tl.sum(q_b, 0) - off_b * off_b * size_b, size_b, EPS)
    _store_moments(mean_ptr, std_ptr, image * channels + c, True, mean_f, mean_b, std_f, std_b)
    gain_f, bias_f, gain_b, bias_b = _coefficients(affine_ptr, c, channels, True, mean_b, std_f, std_b, ADAPT)

    for first in range(0, pixels, ROWS * RUNS):
        n = (first + at).to(tl.int64)
        inside = (n < pixels) | EVEN
        fg, bg = regions(fg_ptr, valid_ptr, n, inside, HAS_VALID)
        x = tl.load(x_ptr + n, mask=inside, other=0.0).to(tl.float32)
        y = (x - tl.where(fg, mean_f, mean_b)) * tl.where(fg, gain_f, gain_b) + tl.where(fg, bias_f, bias_b)
        if HAS_VALID:
            y = tl.where(fg | bg, y, 0.0)
        tl.store(y_ptr + n, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _add_moments(x, region, count, mean, m2):
    """Add a tile's pixels of a region to (count, mean, sum of squared deviations), by Chan's update."""
    more = tl.sum(region.to(tl.float32), 0)
    own = tl.sum(tl.where(region[None, :], x, 0.0), 1) / tl.maximum(more, 1.0)
    centred = tl.where(region[None, :], x - own[:, None], 0.0)
    total = count + more
    share = more / tl.maximum(total, 1.0)
    step = own - mean
    return total, mean + step * share, m2 + tl.sum(centred * centred, 1) + step * step * (count * share)


@triton.jit
def region_norm_fwd_moments_kernel(
    x_ptr, fg_ptr, valid_ptr,
    count_ptr,  # (B, splits, 2)
    moment_ptr,  # (B, splits, 4, C): mean of foreground and background, their sums of squared deviations
    stride_xb, stride_xc, stride_xn,
    channels, pixels, splits,
    blocks,  # of pixels in one split
    HAS_VALID: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0)
    image = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    x_ptr += image * stride_xb + c.to(tl.int64)[:, None] * stride_xc
    fg_ptr += image * pixels
    valid_ptr += image * pixels

    n_f, n_b = 0.0, 0.0
    mean_f = tl.zeros((BLOCK_C,), tl.float32)
    mean_b = tl.zeros((BLOCK_C,), tl.float32)
    m2_f = tl.zeros((BLOCK_C,), tl.float32)
    m2_b = tl.zeros((BLOCK_C,), tl.float32)
    for block in range(part * blocks, (part + 1) * blocks):
        n = (block * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
        fg, bg = regions(fg_ptr, valid_ptr, n, n < pixels, HAS_VALID)
        x = tl.load(x_ptr + n[None, :] * stride_xn, mask=(c < channels)[:, None] & (n < pixels)[None, :], other=0.0)
        x = x.to(tl.float32)  # (BLOCK_C, BLOCK_N)
        n_f, mean_f, m2_f = _add_moments(x, fg, n_f, mean_f, m2_f)
        n_b, mean_b, m2_b = _add_moments(x, bg, n_b, mean_b, m2_b)

    at = image * splits + part
    store_part(count_ptr, moment_ptr, at, c, channels, n_f, n_b, mean_f, mean_b, m2_f, m2_b)


@triton.jit
def _merged(
    count_ptr, moment_ptr, image, splits, channels, c, REGION: tl.constexpr, EPS: tl.constexpr, SPLITS: tl.constexpr
):
    """Mean and deviation of one region over all splits; 0 and 1 where it is empty."""
    counts = counts_of(count_ptr, image, splits, REGION, SPLITS)
    means = parts_of(moment_ptr, image, splits, channels, c, REGION, SPLITS)
    m2 = parts_of(moment_ptr, image, splits, channels, c, REGION + 2, SPLITS)
    size = tl.sum(counts, 0)
    mean = tl.sum(means * counts[:, None], 0) / tl.maximum(size, 1.0)
    away = means - mean[None, :]
    variance = tl.sum(m2 + away * away * counts[:, None], 0) / tl.maximum(size, 1.0)
    return mean, tl.where(size > 0, tl.sqrt(variance + EPS), 1.0)


@triton.jit
def region_norm_fwd_apply_kernel(
    x_ptr, fg_ptr, valid_ptr, count_ptr, moment_ptr,
    affine_ptr,  # (4, C)
    y_ptr,  # (B, C, N)
    mean_ptr,  # (B, C, 2)
    std_ptr,
    stride_xb, stride_xc, stride_xn,
    channels, pixels, splits, blocks,
    EPS: tl.constexpr, ADAPT: tl.constexpr, HAS_VALID: tl.constexpr, SPLITS: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0)
    image = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mean_f, std_f = _merged(count_ptr, moment_ptr, image, splits, channels, c, 0, EPS, SPLITS)
    mean_b, std_b = _merged(count_ptr, moment_ptr, image, splits, channels, c, 1, EPS, SPLITS)
    if part == 0:
        _store_moments(mean_ptr, std_ptr, image * channels + c, c < channels, mean_f, mean_b, std_f, std_b)
    gain_f, bias_f, gain_b, bias_b = _coefficients(affine_ptr, c, channels, c < channels, mean_b, std_f, std_b, ADAPT)

    x_ptr += image * stride_xb + c.to(tl.int64)[:, None] * stride_xc
    y_ptr += (image * channels + c)[:, None] * pixels
    fg_ptr += image * pixels
    valid_ptr += image * pixels
    for block in range(part * blocks, (part + 1) * blocks):
        n = (block * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
        fg, bg = regions(fg_ptr, valid_ptr, n, n < pixels, HAS_VALID)
        inside = (c < channels)[:, None] & (n < pixels)[None, :]
        x = tl.load(x_ptr + n[None, :] * stride_xn, mask=inside, other=0.0).to(tl.float32)
        own = fg[None, :]
        # Centred first: x and its mean may be large and near each other.
        y = (x - tl.where(own, mean_f[:, None], mean_b[:, None])) * tl.where(own, gain_f[:, None], gain_b[:, None])
        y += tl.where(own, bias_f[:, None], bias_b[:, None])
        y = tl.where((fg | bg)[None, :], y, 0.0)
        tl.store(y_ptr + n[None, :], y.to(y_ptr.dtype.element_ty), mask=inside)
