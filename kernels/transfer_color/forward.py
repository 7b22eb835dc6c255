"""The kernels of colour transfer; `transfer_color` launches them."""

import triton
import triton.language as tl

from scsco_fast.kernels.transfer_color.color import lab_to_rgb, rgb_to_lab, rgb_to_ycbcr, ycbcr_to_rgb

LAB_FLOOR = tl.constexpr(0.5)  # of a source's deviation, in Lab units
RGB_RIDGE = tl.constexpr(1e-4)  # added to the covariances' diagonals
BINS = tl.constexpr(256)
STEPS = tl.constexpr(24)  # of the Denman-Beavers iteration
SPLITS = tl.constexpr(32)  # of an image, at most
MOMENTS = tl.constexpr(10)  # size, mean (3), upper triangle of the summed products of deviations (6)
AFFINE = tl.constexpr(16)  # transport (9), source mean (3), wanted mean (3), size of the reference


@triton.jit
def _load(ptr, stride_c, offsets, mask):
    """Three channels in the image's dtype."""
    r = tl.load(ptr + offsets, mask=mask, other=0.0)
    ptr += stride_c  # twice, because 2 * stride_c may pass 2^31
    g = tl.load(ptr + offsets, mask=mask, other=0.0)
    ptr += stride_c
    return r, g, tl.load(ptr + offsets, mask=mask, other=0.0)


@triton.jit
def _measured(image_ptr, mask_ptr, stride_c, stride_n, stride_mn, n, pixels):
    """Which of the pixels n are measured, and their colours in float32: 0 elsewhere, whatever lies there."""
    inside = n < pixels
    inside = inside & (tl.load(mask_ptr + n * stride_mn, mask=inside, other=0) != 0)
    r, g, b = _load(image_ptr, stride_c, n * stride_n, n < pixels)
    r = tl.where(inside, r.to(tl.float32), 0.0)
    g = tl.where(inside, g.to(tl.float32), 0.0)
    return inside, r, g, tl.where(inside, b.to(tl.float32), 0.0)


@triton.jit
def _mean(x, inside, size):
    mean = tl.sum(x, 0) / size
    return mean, tl.where(inside, x - mean, 0.0)


@triton.jit
def transfer_color_moments_kernel(
    image_ptr,
    mask_ptr,
    moment_ptr,  # (B, splits, MOMENTS)
    stride_b,
    stride_c,
    stride_n,
    stride_mb,
    stride_mn,
    pixels,
    blocks,  # in one split
    LAB: tl.constexpr,
    BLOCK: tl.constexpr,
):
    part = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    image_ptr += image * stride_b
    mask_ptr += image * stride_mb
    size, x0, y0, z0 = 0.0, 0.0, 0.0, 0.0
    xx, xy, xz, yy, yz, zz = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for block in range(part * blocks, (part + 1) * blocks):
        n = (block * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
        inside, x, y, z = _measured(image_ptr, mask_ptr, stride_c, stride_n, stride_mn, n, pixels)
        if LAB:
            x, y, z = rgb_to_lab(x, y, z)
            x = tl.where(inside, x, 0.0)
            y = tl.where(inside, y, 0.0)
            z = tl.where(inside, z, 0.0)
        more = tl.sum(inside.to(tl.float32), 0)
        own_x, x = _mean(x, inside, tl.maximum(more, 1.0))
        own_y, y = _mean(y, inside, tl.maximum(more, 1.0))
        own_z, z = _mean(z, inside, tl.maximum(more, 1.0))
        # Chan's update: the block's moments join those of the blocks before it.
        total = size + more
        share = more / tl.maximum(total, 1.0)
        weight = size * share
        dx, dy, dz = own_x - x0, own_y - y0, own_z - z0
        xx += tl.sum(x * x, 0) + dx * dx * weight
        xy += tl.sum(x * y, 0) + dx * dy * weight
        xz += tl.sum(x * z, 0) + dx * dz * weight
        yy += tl.sum(y * y, 0) + dy * dy * weight
        yz += tl.sum(y * z, 0) + dy * dz * weight
        zz += tl.sum(z * z, 0) + dz * dz * weight
        x0 += dx * share
        y0 += dy * share
        z0 += dz * share
        size = total
    moment_ptr += (image * tl.num_programs(0) + part) * MOMENTS
    tl.store(moment_ptr, size)
    tl.store(moment_ptr + 1, x0)
    tl.store(moment_ptr + 2, y0)
    tl.store(moment_ptr + 3, z0)
    tl.store(moment_ptr + 4, xx)
    tl.store(moment_ptr + 5, xy)
    tl.store(moment_ptr + 6, xz)
    tl.store(moment_ptr + 7, yy)
    tl.store(moment_ptr + 8, yz)
    tl.store(moment_ptr + 9, zz)


@triton.jit
def _column(moment_ptr, image, splits, INDEX: tl.constexpr):
    s = tl.arange(0, SPLITS)
    return tl.load(moment_ptr + (image * splits + s) * MOMENTS + INDEX, mask=s < splits, other=0.0)


@triton.jit
def _merged_mean(moment_ptr, image, splits, sizes, total, CHANNEL: tl.constexpr):
    """Mean of one channel over all splits, and each split's distance from it."""
    means = _column(moment_ptr, image, splits, 1 + CHANNEL)
    mean = tl.sum(means * sizes, 0) / total
    return mean, means - mean


@triton.jit
def _merged_product(moment_ptr, image, splits, sizes, total, a, b, INDEX: tl.constexpr):
    """Covariance of two channels from the splits' products and means."""
    return tl.sum(_column(moment_ptr, image, splits, INDEX) + a * b * sizes, 0) / total


@triton.jit
def _deviation(moment_ptr, image, splits, sizes, total, CHANNEL: tl.constexpr, INDEX: tl.constexpr):
    mean, away = _merged_mean(moment_ptr, image, splits, sizes, total, CHANNEL)
    return mean, tl.sqrt(_merged_product(moment_ptr, image, splits, sizes, total, away, away, INDEX))


@triton.jit
def _covariance(moment_ptr, image, splits):
    """Size, means and covariance (upper triangle, with the ridge, float64) of one image."""
    sizes = _column(moment_ptr, image, splits, 0)
    size = tl.sum(sizes, 0)
    total = tl.maximum(size, 1.0)
    x, dx = _merged_mean(moment_ptr, image, splits, sizes, total, 0)
    y, dy = _merged_mean(moment_ptr, image, splits, sizes, total, 1)
    z, dz = _merged_mean(moment_ptr, image, splits, sizes, total, 2)
    xx = _merged_product(moment_ptr, image, splits, sizes, total, dx, dx, 4).to(tl.float64) + RGB_RIDGE
    xy = _merged_product(moment_ptr, image, splits, sizes, total, dx, dy, 5).to(tl.float64)
    xz = _merged_product(moment_ptr, image, splits, sizes, total, dx, dz, 6).to(tl.float64)
    yy = _merged_product(moment_ptr, image, splits, sizes, total, dy, dy, 7).to(tl.float64) + RGB_RIDGE
    yz = _merged_product(moment_ptr, image, splits, sizes, total, dy, dz, 8).to(tl.float64)
    zz = _merged_product(moment_ptr, image, splits, sizes, total, dz, dz, 9).to(tl.float64) + RGB_RIDGE
    return size, x, y, z, xx, xy, xz, yy, yz, zz


@triton.jit
def _inverse(a, b, c, d, e, f):
    """Of the symmetric matrix [[a, b, c], [b, d, e], [c, e, f]], its upper triangle."""
    aa, bb, cc = d * f - e * e, c * e - b * f, b * e - c * d
    scale = 1.0 / (a * aa + b * bb + c * cc)
    return aa * scale, bb * scale, cc * scale, (a * f - c * c) * scale, (b * c - a * e) * scale, (a * d - b * b) * scale


@triton.jit
def _sandwich(a, b, c, d, e, f, p, q, r, s, t, u):
    """A P A of two symmetric matrices, its upper triangle."""
    m00, m01, m02 = a * p + b * q + c * r, a * q + b * s + c * t, a * r + b * t + c * u
    m10, m11, m12 = b * p + d * q + e * r, b * q + d * s + e * t, b * r + d * t + e * u
    m20, m21, m22 = c * p + e * q + f * r, c * q + e * s + f * t, c * r + e * t + f * u
    first = m00 * a + m01 * b + m02 * c
    return (
        first,
        m00 * b + m01 * d + m02 * e,
        m00 * c + m01 * e + m02 * f,
        m10 * b + m11 * d + m12 * e,
        m10 * c + m11 * e + m12 * f,
        m20 * c + m21 * e + m22 * f,
    )


@triton.jit
def _square_root(a, b, c, d, e, f):
    """Square root of a symmetric positive matrix and its inverse, by Denman-Beavers with the trace scaled to 1."""
    trace = a + d + f
    a, b, c, d, e, f = a / trace, b / trace, c / trace, d / trace, e / trace, f / trace
    one, zero = trace * 0 + 1.0, trace * 0
    p, q, r, s, t, u = one, zero, zero, one, zero, one
    for _ in range(STEPS):
        ia, ib, ic, id, ie, jf = _inverse(a, b, c, d, e, f)
        ip, iq, ir, js, it, iu = _inverse(p, q, r, s, t, u)
        a, b, c, d, e, f = (a + ip) / 2, (b + iq) / 2, (c + ir) / 2, (d + js) / 2, (e + it) / 2, (f + iu) / 2
        p, q, r, s, t, u = (p + ia) / 2, (q + ib) / 2, (r + ic) / 2, (s + id) / 2, (t + ie) / 2, (u + jf) / 2
    k = tl.sqrt(trace)
    return a * k, b * k, c * k, d * k, e * k, f * k, p / k, q / k, r / k, s / k, t / k, u / k


@triton.jit
def transfer_color_transport_kernel(
    moment_ptr,
    wanted_ptr,
    affine_ptr,  # (B, AFFINE)
    splits,
    wanted_splits,
):
    """The linear optimal transport between two Gaussians: S^-1/2 (S^1/2 W S^1/2)^1/2 S^-1/2, in float64."""
    image = tl.program_id(0).to(tl.int64)
    _, x, y, z, a, b, c, d, e, f = _covariance(moment_ptr, image, splits)
    size, wx, wy, wz, p, q, r, s, t, u = _covariance(wanted_ptr, image, wanted_splits)
    a, b, c, d, e, f, ia, ib, ic, id, ie, jf = _square_root(a, b, c, d, e, f)
    p, q, r, s, t, u = _sandwich(a, b, c, d, e, f, p, q, r, s, t, u)
    p, q, r, s, t, u, _, _, _, _, _, _ = _square_root(p, q, r, s, t, u)
    p, q, r, s, t, u = _sandwich(ia, ib, ic, id, ie, jf, p, q, r, s, t, u)
    affine_ptr += image * AFFINE
    tl.store(affine_ptr, p.to(tl.float32))
    tl.store(affine_ptr + 1, q.to(tl.float32))
    tl.store(affine_ptr + 2, r.to(tl.float32))
    tl.store(affine_ptr + 3, q.to(tl.float32))
    tl.store(affine_ptr + 4, s.to(tl.float32))
    tl.store(affine_ptr + 5, t.to(tl.float32))
    tl.store(affine_ptr + 6, r.to(tl.float32))
    tl.store(affine_ptr + 7, t.to(tl.float32))
    tl.store(affine_ptr + 8, u.to(tl.float32))
    tl.store(affine_ptr + 9, x)
    tl.store(affine_ptr + 10, y)
    tl.store(affine_ptr + 11, z)
    tl.store(affine_ptr + 12, wx)
    tl.store(affine_ptr + 13, wy)
    tl.store(affine_ptr + 14, wz)
    tl.store(affine_ptr + 15, size)


@triton.jit
def _composite(out_ptr, raw, new, change, n, pixels):
    """Write one channel: the new value, clamped, where it changes, else the old one bit for bit."""
    new = tl.minimum(tl.maximum(new, 0.0), 1.0).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + n, tl.where(change, new, raw), mask=n < pixels)


@triton.jit
def transfer_color_reinhard_kernel(
    image_ptr, mask_ptr, moment_ptr, wanted_ptr,
    out_ptr,  # (B, 3, N)
    stride_b, stride_c, stride_n, stride_mb, stride_mn,
    pixels, splits, wanted_splits,
    BLOCK: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    sizes = _column(moment_ptr, image, splits, 0)
    total = tl.maximum(tl.sum(sizes, 0), 1.0)
    mean_l, std_l = _deviation(moment_ptr, image, splits, sizes, total, 0, 4)
    mean_a, std_a = _deviation(moment_ptr, image, splits, sizes, total, 1, 7)
    mean_b, std_b = _deviation(moment_ptr, image, splits, sizes, total, 2, 9)
    sizes = _column(wanted_ptr, image, wanted_splits, 0)
    there = tl.sum(sizes, 0)
    total = tl.maximum(there, 1.0)
    wanted_l, gain_l = _deviation(wanted_ptr, image, wanted_splits, sizes, total, 0, 4)
    wanted_a, gain_a = _deviation(wanted_ptr, image, wanted_splits, sizes, total, 1, 7)
    wanted_b, gain_b = _deviation(wanted_ptr, image, wanted_splits, sizes, total, 2, 9)

    n = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    image_ptr += image * stride_b
    inside, r, g, b = _measured(image_ptr, mask_ptr + image * stride_mb, stride_c, stride_n, stride_mn, n, pixels)
    lightness, a, b = rgb_to_lab(r, g, b)
    r, g, b = lab_to_rgb(
        (lightness - mean_l) * (gain_l / tl.maximum(std_l, LAB_FLOOR)) + wanted_l,
        (a - mean_a) * (gain_a / tl.maximum(std_a, LAB_FLOOR)) + wanted_a,
        (b - mean_b) * (gain_b / tl.maximum(std_b, LAB_FLOOR)) + wanted_b,
    )
    old_r, old_g, old_b = _load(image_ptr, stride_c, n * stride_n, n < pixels)
    change = inside & (n < tl.where(there > 0, pixels, 0))
    out_ptr += image * 3 * pixels
    _composite(out_ptr, old_r, r, change, n, pixels)
    out_ptr += pixels
    _composite(out_ptr, old_g, g, change, n, pixels)
    out_ptr += pixels
    _composite(out_ptr, old_b, b, change, n, pixels)


@triton.jit
def transfer_color_gaussian_kernel(
    image_ptr,
    mask_ptr,
    affine_ptr,
    out_ptr,
    stride_b,
    stride_c,
    stride_n,
    stride_mb,
    stride_mn,
    pixels,
    BLOCK: tl.constexpr,
):
    image = tl.program_id(1).to(tl.int64)
    affine_ptr += image * AFFINE
    n = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    image_ptr += image * stride_b
    inside, r, g, b = _measured(image_ptr, mask_ptr + image * stride_mb, stride_c, stride_n, stride_mn, n, pixels)
    r -= tl.load(affine_ptr + 9)
    g -= tl.load(affine_ptr + 10)
    b -= tl.load(affine_ptr + 11)
    new_r = tl.load(affine_ptr) * r + tl.load(affine_ptr + 1) * g + tl.load(affine_ptr + 2) * b
    new_g = tl.load(affine_ptr + 3) * r + tl.load(affine_ptr + 4) * g + tl.load(affine_ptr + 5) * b
    new_b = tl.load(affine_ptr + 6) * r + tl.load(affine_ptr + 7) * g + tl.load(affine_ptr + 8) * b
    old_r, old_g, old_b = _load(image_ptr, stride_c, n * stride_n, n < pixels)
    change = inside & (n < tl.where(tl.load(affine_ptr + 15) > 0, pixels, 0))
    out_ptr += image * 3 * pixels
    _composite(out_ptr, old_r, new_r + tl.load(affine_ptr + 12), change, n, pixels)
    out_ptr += pixels
    _composite(out_ptr, old_g, new_g + tl.load(affine_ptr + 13), change, n, pixels)
    out_ptr += pixels
    _composite(out_ptr, old_b, new_b + tl.load(affine_ptr + 14), change, n, pixels)


@triton.jit
def _unit(v):
    return tl.minimum(tl.maximum(v, 0.0), 1.0)


@triton.jit
def _count(value, inside):
    bins = tl.minimum((_unit(value) * BINS).to(tl.int32), BINS - 1)
    return tl.histogram(bins, BINS, mask=inside)


@triton.jit
def transfer_color_counts_kernel(
    image_ptr,
    mask_ptr,
    count_ptr,  # (B, splits, 3, BINS) int32
    stride_b,
    stride_c,
    stride_n,
    stride_mb,
    stride_mn,
    pixels,
    blocks,
    BLOCK: tl.constexpr,
):
    part = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    image_ptr += image * stride_b
    mask_ptr += image * stride_mb
    bins = tl.arange(0, BINS)
    in_y = tl.zeros((BINS,), tl.int32)
    in_cb = tl.zeros((BINS,), tl.int32)
    in_cr = tl.zeros((BINS,), tl.int32)
    for block in range(part * blocks, (part + 1) * blocks):
        n = (block * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
        inside, r, g, b = _measured(image_ptr, mask_ptr, stride_c, stride_n, stride_mn, n, pixels)
        y, cb, cr = rgb_to_ycbcr(r, g, b)
        in_y += _count(y, inside)
        in_cb += _count(cb, inside)
        in_cr += _count(cr, inside)
    count_ptr += (image * tl.num_programs(0) + part) * 3 * BINS
    tl.store(count_ptr + bins, in_y)
    tl.store(count_ptr + BINS + bins, in_cb)
    tl.store(count_ptr + 2 * BINS + bins, in_cr)


@triton.jit
def transfer_color_distribution_kernel(
    count_ptr,
    share_ptr,  # (B, 3, BINS + 1): the share of values below each edge of a bin
    splits,
):
    channel = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    bins = tl.arange(0, BINS)
    counts = tl.zeros((BINS,), tl.int32)
    for part in range(splits):
        counts += tl.load(count_ptr + ((image * splits + part) * 3 + channel) * BINS + bins)
    size = tl.maximum(tl.sum(counts, 0), 1)
    share_ptr += (image * 3 + channel) * (BINS + 1)
    tl.store(share_ptr, 0.0)
    tl.store(share_ptr + 1 + bins, tl.cumsum(counts, 0).to(tl.float32) / size.to(tl.float32))


@triton.jit
def _match(value, share_ptr, wanted_ptr):
    """The value at which the wanted distribution has the share that `value` has in its own."""
    place = _unit(value) * BINS
    left = tl.minimum(place.to(tl.int32), BINS - 1)
    low = tl.load(share_ptr + left)
    share = low + (place - left.to(tl.float32)) * (tl.load(share_ptr + left + 1) - low)
    right = tl.zeros_like(left)  # the first edge with at least that share, by bisection of BINS + 1 edges
    end = right + (BINS + 1)
    for _ in tl.static_range(9):
        middle = (right + end) // 2
        below = (tl.load(wanted_ptr + tl.minimum(middle, BINS)) < share) & (right < end)
        right = tl.where(below, middle + 1, right)
        end = tl.where(below, end, middle)
    right = tl.minimum(tl.maximum(right, 1), BINS)
    low = tl.load(wanted_ptr + right - 1)
    high = tl.load(wanted_ptr + right)
    within = tl.where(high > low, (share - low) / tl.maximum(high - low, 1.1754943508222875e-38), 0.0)
    return ((right - 1).to(tl.float32) + _unit(within)) / BINS


@triton.jit
def transfer_color_histogram_kernel(
    image_ptr,
    mask_ptr,
    share_ptr,
    wanted_ptr,
    out_ptr,
    stride_b,
    stride_c,
    stride_n,
    stride_mb,
    stride_mn,
    pixels,
    BLOCK: tl.constexpr,
):
    image = tl.program_id(1).to(tl.int64)
    n = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    image_ptr += image * stride_b
    share_ptr += image * 3 * (BINS + 1)
    wanted_ptr += image * 3 * (BINS + 1)
    inside, r, g, b = _measured(image_ptr, mask_ptr + image * stride_mb, stride_c, stride_n, stride_mn, n, pixels)
    y, cb, cr = rgb_to_ycbcr(r, g, b)
    y = _match(y, share_ptr, wanted_ptr)
    cb = _match(cb, share_ptr + (BINS + 1), wanted_ptr + (BINS + 1))
    cr = _match(cr, share_ptr + 2 * (BINS + 1), wanted_ptr + 2 * (BINS + 1))
    r, g, b = ycbcr_to_rgb(y, cb, cr)
    old_r, old_g, old_b = _load(image_ptr, stride_c, n * stride_n, n < pixels)
    change = inside & (n < tl.where(tl.load(wanted_ptr + BINS) > 0, pixels, 0))
    out_ptr += image * 3 * pixels
    _composite(out_ptr, old_r, r, change, n, pixels)
    out_ptr += pixels
    _composite(out_ptr, old_g, g, change, n, pixels)
    out_ptr += pixels
    _composite(out_ptr, old_b, b, change, n, pixels)
