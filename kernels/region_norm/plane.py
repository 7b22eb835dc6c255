"""Region normalisation in one launch: a program has whole (image, channel) planes; `region_norm` launches the kernels.

A small plane stays in registers and is read once. A larger one is read twice: the first loop's sums are kept per thread
and joined after it, so that no step waits for the other threads, and the second loop finds the plane in a cache.
"""

import triton
import triton.language as tl

from scsco_fast.kernels.region_norm.split import coefficients, gradient, gradient_terms, region_moments, regions

SAMPLE = tl.constexpr(2048)  # pixels
RUN = tl.constexpr(16)  # neighbours sampled together: 32 bytes, the least that memory hands out
FEW = tl.constexpr(16)  # sampled pixels of a region below which the sample does not speak for it


@triton.jit
def _deviation(squares, count, EPS: tl.constexpr):
    """Of a sum of squared deviations; 1 where the region is empty."""
    return tl.where(count > 0, tl.sqrt(tl.maximum(squares, 0.0) / tl.maximum(count, 1.0) + EPS), 1.0)


@triton.jit
def region_norm_fwd_tile_kernel(
    x_ptr,
    fg_ptr,
    valid_ptr,
    fg_weight_ptr,
    fg_bias_ptr,
    bg_weight_ptr,
    bg_bias_ptr,
    y_ptr,  # (B, C, N)
    mean_ptr,  # (B, C, 2)
    std_ptr,
    stride_xb,
    stride_xc,
    stride_xn,
    stride_fb,
    stride_fn,
    stride_vb,
    stride_vn,
    stride_fw,
    stride_fo,
    stride_bw,
    stride_bo,
    channels,
    pixels,
    EPS: tl.constexpr,
    ADAPT: tl.constexpr,
    HAS_VALID: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    image = tl.program_id(1).to(tl.int64)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    n = tl.arange(0, BLOCK_N).to(tl.int64)
    fg, bg = regions(
        fg_ptr + image * stride_fb, valid_ptr + image * stride_vb, stride_fn, stride_vn, n, n < pixels, HAS_VALID
    )
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

    at = (image * channels + c) * 2
    tl.store(mean_ptr + at, mean_f, mask=c < channels)
    tl.store(mean_ptr + at + 1, mean_b, mask=c < channels)
    tl.store(std_ptr + at, std_f, mask=c < channels)
    tl.store(std_ptr + at + 1, std_b, mask=c < channels)
    gain_f, bias_f, gain_b, bias_b = coefficients(
        *(fg_weight_ptr, fg_bias_ptr, bg_weight_ptr, bg_bias_ptr, stride_fw, stride_fo, stride_bw, stride_bo),
        *(c, channels, mean_b, std_f, std_b, ADAPT),
    )
    y = away * tl.where(fg, gain_f[:, None], gain_b[:, None]) + tl.where(fg, bias_f[:, None], bias_b[:, None])
    y = tl.where(fg | bg, y, 0.0)
    y_ptr += (image * channels + c)[:, None] * pixels
    tl.store(y_ptr + n[None, :], y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _shifts(x_ptr, fg_ptr, valid_ptr, stride_xn, stride_fn, stride_vn, pixels, HAS_VALID: tl.constexpr):
    """Numbers near the means of both regions: of pixels all over the plane, or of all pixels where those are too few.

    Squares of what is left after subtracting them lose no digits, even where one pixel stands far out.
    """
    index = tl.arange(0, SAMPLE)
    n = (index // RUN * (pixels // (SAMPLE // RUN)) + index % RUN).to(tl.int64)
    fg, bg = regions(fg_ptr, valid_ptr, stride_fn, stride_vn, n, n < pixels, HAS_VALID)
    x = tl.load(x_ptr + n * stride_xn, mask=n < pixels, other=0.0).to(tl.float32)
    n_f, n_b = tl.sum(fg.to(tl.float32), 0), tl.sum(bg.to(tl.float32), 0)
    s_f, s_b = tl.sum(tl.where(fg, x, 0.0), 0), tl.sum(tl.where(bg, x, 0.0), 0)
    if tl.minimum(n_f, n_b) < FEW:
        n_f, n_b, s_f, s_b = 0.0, 0.0, 0.0, 0.0
        for first in range(0, pixels, SAMPLE):
            n = (first + index).to(tl.int64)
            fg, bg = regions(fg_ptr, valid_ptr, stride_fn, stride_vn, n, n < pixels, HAS_VALID)
            x = tl.load(x_ptr + n * stride_xn, mask=n < pixels, other=0.0).to(tl.float32)
            n_f += tl.sum(fg.to(tl.float32), 0)
            n_b += tl.sum(bg.to(tl.float32), 0)
            s_f += tl.sum(tl.where(fg, x, 0.0), 0)
            s_b += tl.sum(tl.where(bg, x, 0.0), 0)
    return s_f / tl.maximum(n_f, 1.0), s_b / tl.maximum(n_b, 1.0)


@triton.jit
def region_norm_fwd_plane_kernel(
    x_ptr,
    fg_ptr,
    valid_ptr,
    fg_weight_ptr,
    fg_bias_ptr,
    bg_weight_ptr,
    bg_bias_ptr,
    y_ptr,  # (B, C, N)
    mean_ptr,  # (B, C, 2)
    std_ptr,
    stride_xb,
    stride_xc,
    stride_xn,
    stride_fb,
    stride_fn,
    stride_vb,
    stride_vn,
    stride_fw,
    stride_fo,
    stride_bw,
    stride_bo,
    channels,
    pixels,
    EPS: tl.constexpr,
    ADAPT: tl.constexpr,
    HAS_VALID: tl.constexpr,
    EVEN: tl.constexpr,  # the plane is a whole number of steps
    ROWS: tl.constexpr,
    RUNS: tl.constexpr,
):
    image, c = tl.program_id(1).to(tl.int64), tl.program_id(0)
    x_ptr += image * stride_xb + c.to(tl.int64) * stride_xc
    y_ptr += (image * channels + c) * pixels
    fg_ptr += image * stride_fb
    valid_ptr += image * stride_vb
    shift_f, shift_b = _shifts(x_ptr, fg_ptr, valid_ptr, stride_xn, stride_fn, stride_vn, pixels, HAS_VALID)

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
        fg, bg = regions(fg_ptr, valid_ptr, stride_fn, stride_vn, n, inside, HAS_VALID)
        x = tl.load(x_ptr + n * stride_xn, mask=inside, other=0.0).to(tl.float32)
        d_f = tl.where(fg, x - shift_f, 0.0)
        d_b = tl.where(bg, x - shift_b, 0.0)
        n_f += tl.sum(fg.to(tl.int32), 1)
        if HAS_VALID:
            n_b += tl.sum(bg.to(tl.int32), 1)
        s_f += tl.sum(d_f, 1)
        s_b += tl.sum(d_b, 1)
        q_f += tl.sum(d_f * d_f, 1)
        q_b += tl.sum(d_b * d_b, 1)

    size_f = tl.sum(n_f, 0).to(tl.float32)
    size_b = tl.sum(n_b, 0).to(tl.float32) if HAS_VALID else (pixels - tl.sum(n_f, 0)).to(tl.float32)
    off_f = tl.sum(s_f, 0) / tl.maximum(size_f, 1.0)
    off_b = tl.sum(s_b, 0) / tl.maximum(size_b, 1.0)
    mean_f, mean_b = shift_f + off_f, shift_b + off_b
    std_f = _deviation(tl.sum(q_f, 0) - off_f * off_f * size_f, size_f, EPS)
    std_b = _deviation(tl.sum(q_b, 0) - off_b * off_b * size_b, size_b, EPS)
    moments = (image * channels + c) * 2
    tl.store(mean_ptr + moments, mean_f)
    tl.store(mean_ptr + moments + 1, mean_b)
    tl.store(std_ptr + moments, std_f)
    tl.store(std_ptr + moments + 1, std_b)
    gain_f, bias_f, gain_b, bias_b = coefficients(
        *(fg_weight_ptr, fg_bias_ptr, bg_weight_ptr, bg_bias_ptr, stride_fw, stride_fo, stride_bw, stride_bo),
        *(c, channels, mean_b, std_f, std_b, ADAPT),
    )

    for first in range(0, pixels, ROWS * RUNS):
        n = (first + at).to(tl.int64)
        inside = (n < pixels) | EVEN
        fg, bg = regions(fg_ptr, valid_ptr, stride_fn, stride_vn, n, inside, HAS_VALID)
        x = tl.load(x_ptr + n * stride_xn, mask=inside, other=0.0).to(tl.float32)
        y = (x - tl.where(fg, mean_f, mean_b)) * tl.where(fg, gain_f, gain_b) + tl.where(fg, bias_f, bias_b)
        if HAS_VALID:
            y = tl.where(fg | bg, y, 0.0)
        tl.store(y_ptr + n, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def region_norm_bwd_tile_kernel(
    grad_ptr,
    x_ptr,
    fg_ptr,
    valid_ptr,
    mean_ptr,
    std_ptr,
    fg_weight_ptr,
    bg_weight_ptr,
    dx_ptr,  # (B, C, N)
    parameter_ptr,  # (B, 4, C): this image's gradients of fg_weight, fg_bias, bg_weight, bg_bias
    stride_gb,
    stride_gc,
    stride_gn,
    stride_xb,
    stride_xc,
    stride_xn,
    stride_fb,
    stride_fn,
    stride_vb,
    stride_vn,
    stride_fw,
    stride_bw,
    channels,
    pixels,
    ADAPT: tl.constexpr,
    HAS_VALID: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    image = tl.program_id(1).to(tl.int64)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    n = tl.arange(0, BLOCK_N).to(tl.int64)
    mean_f, std_f = region_moments(mean_ptr, std_ptr, image, c, channels, 0)
    mean_b, std_b = region_moments(mean_ptr, std_ptr, image, c, channels, 1)
    fg, bg = regions(
        fg_ptr + image * stride_fb, valid_ptr + image * stride_vb, stride_fn, stride_vn, n, n < pixels, HAS_VALID
    )
    inside = (c < channels)[:, None] & (n < pixels)[None, :]
    grad_ptr += image * stride_gb + c.to(tl.int64)[:, None] * stride_gc
    x_ptr += image * stride_xb + c.to(tl.int64)[:, None] * stride_xc
    dy = tl.load(grad_ptr + n[None, :] * stride_gn, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + n[None, :] * stride_xn, mask=inside, other=0.0).to(tl.float32)
    fg, bg = fg[None, :], bg[None, :]
    centred = x - tl.where(fg, mean_f[:, None], mean_b[:, None])
    slope_f, slope_b, drop_f, drop_b, tilt_f, tilt_b, through, lean = gradient_terms(
        *(fg_weight_ptr, bg_weight_ptr, parameter_ptr, stride_fw, stride_bw, image, c, channels, True),
        *(mean_b, std_f, std_b, tl.sum(fg.to(tl.float32), 1), tl.sum(bg.to(tl.float32), 1)),
        *(tl.sum(tl.where(fg, dy, 0.0), 1), tl.sum(tl.where(bg, dy, 0.0), 1)),
        *(tl.sum(tl.where(fg, dy * centred, 0.0), 1) / std_f, tl.sum(tl.where(bg, dy * centred, 0.0), 1) / std_b),
        ADAPT,
    )
    dx = gradient(
        *(dy, centred, fg, slope_f[:, None], slope_b[:, None], drop_f[:, None], drop_b[:, None]),
        *(tilt_f[:, None], tilt_b[:, None], through[:, None], lean[:, None], ADAPT),
    )
    dx_ptr += (image * channels + c)[:, None] * pixels
    tl.store(dx_ptr + n[None, :], tl.where(fg | bg, dx, 0.0).to(dx_ptr.dtype.element_ty), mask=inside)


@triton.jit
def region_norm_bwd_plane_kernel(
    grad_ptr,
    x_ptr,
    fg_ptr,
    valid_ptr,
    mean_ptr,
    std_ptr,
    fg_weight_ptr,
    bg_weight_ptr,
    dx_ptr,  # (B, C, N)
    parameter_ptr,  # (B, 4, C)
    stride_gb,
    stride_gc,
    stride_gn,
    stride_xb,
    stride_xc,
    stride_xn,
    stride_fb,
    stride_fn,
    stride_vb,
    stride_vn,
    stride_fw,
    stride_bw,
    channels,
    pixels,
    ADAPT: tl.constexpr,
    HAS_VALID: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    RUNS: tl.constexpr,
):
    image, c = tl.program_id(1).to(tl.int64), tl.program_id(0)
    mean_f, std_f = region_moments(mean_ptr, std_ptr, image, c, channels, 0)
    mean_b, std_b = region_moments(mean_ptr, std_ptr, image, c, channels, 1)
    grad_ptr += image * stride_gb + c.to(tl.int64) * stride_gc
    x_ptr += image * stride_xb + c.to(tl.int64) * stride_xc
    dx_ptr += (image * channels + c) * pixels
    fg_ptr += image * stride_fb
    valid_ptr += image * stride_vb

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
        fg, bg = regions(fg_ptr, valid_ptr, stride_fn, stride_vn, n, inside, HAS_VALID)
        dy = tl.load(grad_ptr + n * stride_gn, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + n * stride_xn, mask=inside, other=0.0).to(tl.float32)
        moved = dy * (x - tl.where(fg, mean_f, mean_b))
        n_f += tl.sum(fg.to(tl.int32), 1)
        if HAS_VALID:
            n_b += tl.sum(bg.to(tl.int32), 1)
        s_f += tl.sum(tl.where(fg, dy, 0.0), 1)
        s_b += tl.sum(tl.where(bg, dy, 0.0), 1)
        t_f += tl.sum(tl.where(fg, moved, 0.0), 1)
        t_b += tl.sum(tl.where(bg, moved, 0.0), 1)

    size_f = tl.sum(n_f, 0).to(tl.float32)
    size_b = tl.sum(n_b, 0).to(tl.float32) if HAS_VALID else (pixels - tl.sum(n_f, 0)).to(tl.float32)
    slope_f, slope_b, drop_f, drop_b, tilt_f, tilt_b, through, lean = gradient_terms(
        *(fg_weight_ptr, bg_weight_ptr, parameter_ptr, stride_fw, stride_bw, image, c, channels, True),
        *(mean_b, std_f, std_b, size_f, size_b),
        *(tl.sum(s_f, 0), tl.sum(s_b, 0), tl.sum(t_f, 0) / std_f, tl.sum(t_b, 0) / std_b, ADAPT),
    )
    for first in range(0, pixels, ROWS * RUNS):
        n = (first + at).to(tl.int64)
        inside = (n < pixels) | EVEN
        fg, bg = regions(fg_ptr, valid_ptr, stride_fn, stride_vn, n, inside, HAS_VALID)
        dy = tl.load(grad_ptr + n * stride_gn, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + n * stride_xn, mask=inside, other=0.0).to(tl.float32)
        centred = x - tl.where(fg, mean_f, mean_b)
        dx = gradient(
            *(dy, centred, fg, slope_f, slope_b, drop_f, drop_b, tilt_f, tilt_b, through, lean, ADAPT),
        )
        if HAS_VALID:
            dx = tl.where(fg | bg, dx, 0.0)
        tl.store(dx_ptr + n, dx.to(dx_ptr.dtype.element_ty), mask=inside)
