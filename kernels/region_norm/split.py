"""The kernels of region normalisation; `region_norm` launches them.

Moments of a tile's pixels join those of the tiles before it by Chan's update, so that no difference of large numbers is
taken. Every program that applies them merges the splits' moments itself, in the same order.
"""

import triton
import triton.language as tl


@triton.jit
def regions(fg_ptr, valid_ptr, stride_fn, stride_vn, n, inside, HAS_VALID: tl.constexpr):
    """Which of the pixels n, that are inside, are foreground and which background."""
    fg = tl.load(fg_ptr + n * stride_fn, mask=inside, other=0) != 0
    bg = inside & ~fg
    if HAS_VALID:
        bg = bg & (tl.load(valid_ptr + n * stride_vn, mask=inside, other=0) != 0)
    return fg, bg


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
    x_ptr,
    fg_ptr,
    valid_ptr,
    count_ptr,  # (B, splits, 2)
    moment_ptr,  # (B, splits, 4, C): mean of foreground and background, their sums of squared deviations
    stride_xb,
    stride_xc,
    stride_xn,
    stride_fb,
    stride_fn,
    stride_vb,
    stride_vn,
    channels,
    pixels,
    splits,
    blocks,  # of pixels in one split
    HAS_VALID: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    part = tl.program_id(0)
    image = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    x_ptr += image * stride_xb + c.to(tl.int64)[:, None] * stride_xc
    fg_ptr += image * stride_fb
    valid_ptr += image * stride_vb

    n_f, n_b = 0.0, 0.0
    mean_f = tl.zeros((BLOCK_C,), tl.float32)
    mean_b = tl.zeros((BLOCK_C,), tl.float32)
    m2_f = tl.zeros((BLOCK_C,), tl.float32)
    m2_b = tl.zeros((BLOCK_C,), tl.float32)
    for block in range(part * blocks, (part + 1) * blocks):
        n = (block * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
        fg, bg = regions(fg_ptr, valid_ptr, stride_fn, stride_vn, n, n < pixels, HAS_VALID)
        x = tl.load(x_ptr + n[None, :] * stride_xn, mask=(c < channels)[:, None] & (n < pixels)[None, :], other=0.0)
        x = x.to(tl.float32)  # (BLOCK_C, BLOCK_N)
        n_f, mean_f, m2_f = _add_moments(x, fg, n_f, mean_f, m2_f)
        n_b, mean_b, m2_b = _add_moments(x, bg, n_b, mean_b, m2_b)

    at = image * splits + part
    if tl.program_id(1) == 0:
        tl.store(count_ptr + at * 2, n_f)
        tl.store(count_ptr + at * 2 + 1, n_b)
    moment_ptr += at * 4 * channels + c
    tl.store(moment_ptr, mean_f, mask=c < channels)
    tl.store(moment_ptr + channels, mean_b, mask=c < channels)
    tl.store(moment_ptr + 2 * channels, m2_f, mask=c < channels)
    tl.store(moment_ptr + 3 * channels, m2_b, mask=c < channels)


@triton.jit
def _counts(count_ptr, image, splits, REGION: tl.constexpr, SPLITS: tl.constexpr):
    s = tl.arange(0, SPLITS)
    return tl.load(count_ptr + (image * splits + s) * 2 + REGION, mask=s < splits, other=0.0)


@triton.jit
def _parts(part_ptr, image, splits, channels, c, ROW: tl.constexpr, SPLITS: tl.constexpr):
    """Row ROW of every split's (4, C) partial sums: (SPLITS, BLOCK_C)."""
    s = tl.arange(0, SPLITS)
    at = ((image * splits + s) * 4 + ROW)[:, None] * channels + c[None, :]
    return tl.load(part_ptr + at, mask=(s < splits)[:, None] & (c < channels)[None, :], other=0.0)


@triton.jit
def _merged(
    count_ptr, moment_ptr, image, splits, channels, c, REGION: tl.constexpr, EPS: tl.constexpr, SPLITS: tl.constexpr
):
    """Mean and deviation of one region over all splits; 0 and 1 where it is empty."""
    counts = _counts(count_ptr, image, splits, REGION, SPLITS)
    means = _parts(moment_ptr, image, splits, channels, c, REGION, SPLITS)
    m2 = _parts(moment_ptr, image, splits, channels, c, REGION + 2, SPLITS)
    size = tl.sum(counts, 0)
    mean = tl.sum(means * counts[:, None], 0) / tl.maximum(size, 1.0)
    away = means - mean[None, :]
    variance = tl.sum(m2 + away * away * counts[:, None], 0) / tl.maximum(size, 1.0)
    return mean, tl.where(size > 0, tl.sqrt(variance + EPS), 1.0)


@triton.jit
def _parameter(ptr, stride, c, channels):
    return tl.load(ptr + c * stride, mask=c < channels, other=0.0).to(tl.float32)


@triton.jit
def coefficients(
    fg_weight_ptr,
    fg_bias_ptr,
    bg_weight_ptr,
    bg_bias_ptr,
    stride_fw,
    stride_fo,
    stride_bw,
    stride_bo,
    c,
    channels,
    mean_b,
    std_f,
    std_b,
    ADAPT: tl.constexpr,
):
    """Gain and offset of both regions' centred pixels."""
    gain_f = _parameter(fg_weight_ptr, stride_fw, c, channels)
    bias_f = _parameter(fg_bias_ptr, stride_fo, c, channels)
    if ADAPT:
        bias_f = gain_f * mean_b + bias_f
        gain_f = gain_f * std_b
    gain_b = _parameter(bg_weight_ptr, stride_bw, c, channels) / std_b
    return gain_f / std_f, bias_f, gain_b, _parameter(bg_bias_ptr, stride_bo, c, channels)


@triton.jit
def region_norm_fwd_apply_kernel(
    x_ptr,
    fg_ptr,
    valid_ptr,
    count_ptr,
    moment_ptr,
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
    splits,
    blocks,
    EPS: tl.constexpr,
    ADAPT: tl.constexpr,
    HAS_VALID: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    part = tl.program_id(0)
    image = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mean_f, std_f = _merged(count_ptr, moment_ptr, image, splits, channels, c, 0, EPS, SPLITS)
    mean_b, std_b = _merged(count_ptr, moment_ptr, image, splits, channels, c, 1, EPS, SPLITS)
    if part == 0:
        at = (image * channels + c) * 2
        tl.store(mean_ptr + at, mean_f, mask=c < channels)
        tl.store(mean_ptr + at + 1, mean_b, mask=c < channels)
        tl.store(std_ptr + at, std_f, mask=c < channels)
        tl.store(std_ptr + at + 1, std_b, mask=c < channels)

    gain_f, bias_f, gain_b, bias_b = coefficients(
        *(fg_weight_ptr, fg_bias_ptr, bg_weight_ptr, bg_bias_ptr, stride_fw, stride_fo, stride_bw, stride_bo),
        *(c, channels, mean_b, std_f, std_b, ADAPT),
    )

    x_ptr += image * stride_xb + c.to(tl.int64)[:, None] * stride_xc
    y_ptr += (image * channels + c)[:, None] * pixels
    fg_ptr += image * stride_fb
    valid_ptr += image * stride_vb
    for block in range(part * blocks, (part + 1) * blocks):
        n = (block * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
        fg, bg = regions(fg_ptr, valid_ptr, stride_fn, stride_vn, n, n < pixels, HAS_VALID)
        inside = (c < channels)[:, None] & (n < pixels)[None, :]
        x = tl.load(x_ptr + n[None, :] * stride_xn, mask=inside, other=0.0).to(tl.float32)
        own = fg[None, :]
        # Centred first: x and its mean may be large and near each other.
        y = (x - tl.where(own, mean_f[:, None], mean_b[:, None])) * tl.where(own, gain_f[:, None], gain_b[:, None])
        y += tl.where(own, bias_f[:, None], bias_b[:, None])
        y = tl.where((fg | bg)[None, :], y, 0.0)
        tl.store(y_ptr + n[None, :], y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def region_moments(mean_ptr, std_ptr, image, c, channels, REGION: tl.constexpr):
    at = (image * channels + c) * 2 + REGION
    return tl.load(mean_ptr + at, mask=c < channels, other=0.0), tl.load(std_ptr + at, mask=c < channels, other=1.0)


@triton.jit
def region_norm_bwd_sums_kernel(
    grad_ptr,
    x_ptr,
    fg_ptr,
    valid_ptr,
    mean_ptr,
    std_ptr,
    count_ptr,  # (B, splits, 2)
    sum_ptr,  # (B, splits, 4, C): sum of dy over foreground and background, sum of dy xh likewise
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
    channels,
    pixels,
    splits,
    blocks,
    HAS_VALID: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    part = tl.program_id(0)
    image = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mean_f, std_f = region_moments(mean_ptr, std_ptr, image, c, channels, 0)
    mean_b, std_b = region_moments(mean_ptr, std_ptr, image, c, channels, 1)
    grad_ptr += image * stride_gb + c.to(tl.int64)[:, None] * stride_gc
    x_ptr += image * stride_xb + c.to(tl.int64)[:, None] * stride_xc
    fg_ptr += image * stride_fb
    valid_ptr += image * stride_vb

    # Summed element by element and reduced once: a reduction in every step would wait for the whole block.
    n_f, n_b = 0.0, 0.0
    dy_f = tl.zeros((BLOCK_C, BLOCK_N), tl.float32)
    dy_b = tl.zeros((BLOCK_C, BLOCK_N), tl.float32)
    dx_f = tl.zeros((BLOCK_C, BLOCK_N), tl.float32)
    dx_b = tl.zeros((BLOCK_C, BLOCK_N), tl.float32)
    for block in range(part * blocks, (part + 1) * blocks):
        n = (block * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
        fg, bg = regions(fg_ptr, valid_ptr, stride_fn, stride_vn, n, n < pixels, HAS_VALID)
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
    if tl.program_id(1) == 0:
        tl.store(count_ptr + at * 2, n_f)
        tl.store(count_ptr + at * 2 + 1, n_b)
    sum_ptr += at * 4 * channels + c
    tl.store(sum_ptr, tl.sum(dy_f, 1), mask=c < channels)
    tl.store(sum_ptr + channels, tl.sum(dy_b, 1), mask=c < channels)
    tl.store(sum_ptr + 2 * channels, tl.sum(dx_f, 1) / std_f, mask=c < channels)
    tl.store(sum_ptr + 3 * channels, tl.sum(dx_b, 1) / std_b, mask=c < channels)


@triton.jit
def gradient_terms(
    fg_weight_ptr,
    bg_weight_ptr,
    parameter_ptr,
    stride_fw,
    stride_bw,
    image,
    c,
    channels,
    first,  # of the programs that share these channels: it stores the parameters' gradients
    mean_b,
    std_f,
    std_b,
    size_f,
    size_b,
    sum_f,
    sum_b,
    sum_xf,
    sum_xb,
    ADAPT: tl.constexpr,
):
    """From the sums over an image's regions: what `gradient` takes, and the image's parameter gradients, stored."""
    size_f, size_b = tl.maximum(size_f, 1.0), tl.maximum(size_b, 1.0)
    weight_f = _parameter(fg_weight_ptr, stride_fw, c, channels)
    slope_b = _parameter(bg_weight_ptr, stride_bw, c, channels) / std_b
    slope_f, d_fg_weight = weight_f, sum_xf
    if ADAPT:
        slope_f = weight_f * std_b
        d_fg_weight = std_b * sum_xf + mean_b * sum_f
    at, used = image * 4 * channels + c, (c < channels) & first
    tl.store(parameter_ptr + at, d_fg_weight, mask=used)
    tl.store(parameter_ptr + at + channels, sum_f, mask=used)
    tl.store(parameter_ptr + at + 2 * channels, sum_xb, mask=used)
    tl.store(parameter_ptr + at + 3 * channels, sum_b, mask=used)
    # What reaches the background's moments through the foreground.
    through, lean = weight_f * sum_f / size_b, weight_f * sum_xf / (size_b * std_b)
    tilt_f, tilt_b = sum_xf / (size_f * std_f), sum_xb / (size_b * std_b)
    return slope_f / std_f, slope_b, sum_f / size_f, sum_b / size_b, tilt_f, tilt_b, through, lean


@triton.jit
def gradient(dy, centred, fg, slope_f, slope_b, drop_f, drop_b, tilt_f, tilt_b, through, lean, ADAPT: tl.constexpr):
    """Of x, whose region's mean is subtracted in `centred`."""
    # Subtracted before the slope is applied: a region of one pixel then gives 0, not 316 times a rounding error.
    dx = dy - tl.where(fg, drop_f, drop_b) - tl.where(fg, tilt_f, tilt_b) * centred
    dx *= tl.where(fg, slope_f, slope_b)
    if ADAPT:
        dx += tl.where(fg, 0.0, through + lean * centred)
    return dx


@triton.jit
def region_norm_bwd_dx_kernel(
    grad_ptr,
    x_ptr,
    fg_ptr,
    valid_ptr,
    mean_ptr,
    std_ptr,
    count_ptr,
    sum_ptr,
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
    splits,
    blocks,
    ADAPT: tl.constexpr,
    HAS_VALID: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    part = tl.program_id(0)
    image = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mean_f, std_f = region_moments(mean_ptr, std_ptr, image, c, channels, 0)
    mean_b, std_b = region_moments(mean_ptr, std_ptr, image, c, channels, 1)
    sum_f = tl.sum(_parts(sum_ptr, image, splits, channels, c, 0, SPLITS), 0)
    sum_b = tl.sum(_parts(sum_ptr, image, splits, channels, c, 1, SPLITS), 0)
    sum_xf = tl.sum(_parts(sum_ptr, image, splits, channels, c, 2, SPLITS), 0)
    sum_xb = tl.sum(_parts(sum_ptr, image, splits, channels, c, 3, SPLITS), 0)
    size_f = tl.sum(_counts(count_ptr, image, splits, 0, SPLITS), 0)
    size_b = tl.sum(_counts(count_ptr, image, splits, 1, SPLITS), 0)
    slope_f, slope_b, drop_f, drop_b, tilt_f, tilt_b, through, lean = gradient_terms(
        *(fg_weight_ptr, bg_weight_ptr, parameter_ptr, stride_fw, stride_bw, image, c, channels, part == 0),
        *(mean_b, std_f, std_b, size_f, size_b, sum_f, sum_b, sum_xf, sum_xb, ADAPT),
    )
    grad_ptr += image * stride_gb + c.to(tl.int64)[:, None] * stride_gc
    x_ptr += image * stride_xb + c.to(tl.int64)[:, None] * stride_xc
    dx_ptr += (image * channels + c)[:, None] * pixels
    fg_ptr += image * stride_fb
    valid_ptr += image * stride_vb
    for block in range(part * blocks, (part + 1) * blocks):
        n = (block * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
        fg, bg = regions(fg_ptr, valid_ptr, stride_fn, stride_vn, n, n < pixels, HAS_VALID)
        inside = (c < channels)[:, None] & (n < pixels)[None, :]
        dy = tl.load(grad_ptr + n[None, :] * stride_gn, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + n[None, :] * stride_xn, mask=inside, other=0.0).to(tl.float32)
        own = fg[None, :]
        centred = x - tl.where(own, mean_f[:, None], mean_b[:, None])
        dx = gradient(
            *(dy, centred, own, slope_f[:, None], slope_b[:, None], drop_f[:, None], drop_b[:, None]),
            *(tilt_f[:, None], tilt_b[:, None], through[:, None], lean[:, None], ADAPT),
        )
        dx = tl.where((fg | bg)[None, :], dx, 0.0)
        tl.store(dx_ptr + n[None, :], dx.to(dx_ptr.dtype.element_ty), mask=inside)
