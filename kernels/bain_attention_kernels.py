"""The attention kernels of `scsco_fast.kernels.bain_attention`: one forward, one for dq, one for dk and dv."""

import triton
import triton.language as tl

from scsco_fast.kernels.packing import queries

LOG2_E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-3.0e38)
CHUNK = tl.constexpr(16)  # channels of a map that the forward writes at a time


@triton.jit
def _rows(ptr, left, column, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The first ROWS rows at `ptr`, from `column` on; rows from `left` on are 0, whatever lies there."""
    row = tl.arange(0, ROWS)
    offsets = row[:, None] * WIDTH + (column + tl.arange(0, COLUMNS))[None, :]
    return tl.load(ptr + offsets, mask=row[:, None] < left, other=0.0)


@triton.jit
def _products(
    x_ptr,
    x_left,
    y_ptr,
    y_left,
    x,
    WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """x y^T of packed rows, [BLOCK_X, BLOCK_Y] float32; `x` holds x already where BLOCK_K is the whole WIDTH."""
    if BLOCK_K == WIDTH:
        y = _rows(y_ptr, y_left, 0, WIDTH, BLOCK_Y, WIDTH)
        return tl.dot(x, tl.trans(y), input_precision=PRECISION)
    else:
        total = tl.zeros([BLOCK_X, BLOCK_Y], tl.float32)
        # Not unrolled: each unrolled step would hold buffers of its own in shared memory. The same holds below.
        for column in range(0, WIDTH, BLOCK_K):
            part = _rows(x_ptr, x_left, column, WIDTH, BLOCK_X, BLOCK_K)
            y = _rows(y_ptr, y_left, column, WIDTH, BLOCK_Y, BLOCK_K)
            total = tl.dot(part, tl.trans(y), total, input_precision=PRECISION)
        return total


@triton.jit
def _attend(
    q_ptr,
    k_ptr,
    v_ptr,
    n_rows,  # queries of this block
    n_bg,
    column,
    logit_scale,
    KEY_WIDTH: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """First and second moment [BLOCK_M, BLOCK_C] of scaled values and the log-sum-exp [BLOCK_M] in base 2."""
    first = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    second = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    # A finite start: a row whose logits are all -inf gets weights 0 and not exp(-inf - -inf).
    peak = tl.full([BLOCK_M], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    q = _rows(q_ptr, n_rows, 0, KEY_WIDTH, BLOCK_M, BLOCK_D)
    for start in range(0, tl.where(n_rows > 0, n_bg, 0), BLOCK_N):
        left = n_bg - start
        logits = _products(q_ptr, n_rows, k_ptr, left, q, KEY_WIDTH, BLOCK_D, BLOCK_M, BLOCK_N, PRECISION)
        logits = tl.where((tl.arange(0, BLOCK_N) < left)[None, :], logits * logit_scale, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(logits, axis=1))
        v = _rows(v_ptr, left, column, WIDTH, BLOCK_N, BLOCK_C)
        weights = tl.exp2(logits - new_peak[:, None]).to(v.dtype)
        shrink = tl.exp2(peak - new_peak)
        # The sum of the rounded weights: then they add up to 1 exactly where they are used.
        total = total * shrink + tl.sum(weights.to(tl.float32), axis=1)
        first = tl.dot(weights, v, first * shrink[:, None], input_precision=PRECISION)
        second = tl.dot(weights, v * v, second * shrink[:, None], input_precision=PRECISION)
        peak = new_peak
        k_ptr += BLOCK_N * KEY_WIDTH
        v_ptr += BLOCK_N * WIDTH
    total = tl.maximum(total, 1e-37)
    # Rows that are no query become 0 here: selecting among the elements of a tile would cost registers.
    share = tl.where(tl.arange(0, BLOCK_M) < n_rows, 1.0 / total, 0.0)[:, None]
    return first * share, second * share, peak + tl.log2(total)


@triton.jit
def bain_attention_fwd_kernel(
    q_ptr,  # (B, N, KEY_WIDTH) packed
    k_ptr,  # (B, N, KEY_WIDTH) packed
    v_ptr,  # (B, N, WIDTH) packed
    pivot_ptr,  # (B, WIDTH)
    unit_ptr,  # (B, WIDTH)
    order_ptr,  # (B, N)
    counts_ptr,  # (B, 2)
    mean_ptr,  # (B, C, N), or y where NORM
    std_ptr,  # (B, C, N), None where NORM
    first_ptr,  # (B, N, C)
    variance_ptr,  # (B, N, C)
    lse_ptr,  # (B, N)
    x_ptr,  # (B, C, N) normalised map where NORM
    affine_ptr,  # (4, C) float32 where NORM: foreground gain and offset, background gain and offset
    stride_xb,
    stride_xc,
    stride_xn,
    scale,
    eps,
    n_pixels,
    n_channels,
    KEY_WIDTH: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    NORM: tl.constexpr,
):
    image, start = tl.program_id(2).to(tl.int64), tl.program_id(0) * BLOCK_M
    column = tl.program_id(1) * BLOCK_C
    n_query = queries(counts_ptr, image)
    n_bg = tl.load(counts_ptr + 2 * image + 1).to(tl.int32)
    base = image * n_pixels
    first, second, lse = _attend(
        q_ptr + (base + start) * KEY_WIDTH,
        k_ptr + base * KEY_WIDTH,
        v_ptr + base * WIDTH,
        n_query - start,
        n_bg,
        column,
        tl.cast(scale, tl.float32) * LOG2_E,
        KEY_WIDTH,
        WIDTH,
        BLOCK_M,
        BLOCK_N,
        BLOCK_C,
        BLOCK_D,
        PRECISION,
    )
    place = start + tl.arange(0, BLOCK_M)
    channel = column + tl.arange(0, BLOCK_C)
    unit = tl.load(unit_ptr + image * WIDTH + channel)[None, :]
    inside = place < n_pixels
    pixel = tl.load(order_ptr + base + place, mask=inside, other=0).to(tl.int32)
    if tl.program_id(1) == 0:
        tl.store(lse_ptr + base + pixel, tl.where(place < n_query, lse / LOG2_E, 0.0), mask=inside)
    rows = pixel.to(tl.int64)[:, None] * n_channels + channel[None, :]
    mask = inside[:, None] & (channel < n_channels)[None, :]
    tl.store(variance_ptr + base * n_channels + rows, (second - first * first) * (unit * unit), mask=mask)
    tl.store(first_ptr + base * n_channels + rows, first * unit, mask=mask)
    # The maps are written from those rows, a few channels at a time: beside the accumulators they would spill.
    tl.debug_barrier()
    n_fg = tl.load(counts_ptr + 2 * image)
    for offset in range(0, tl.minimum(BLOCK_C, n_channels - column), CHUNK):
        _store_moments(
            first_ptr + base * n_channels,
            variance_ptr + base * n_channels,
            pivot_ptr + image * WIDTH,
            mean_ptr + base * n_channels,
            std_ptr if NORM else std_ptr + base * n_channels,
            x_ptr + image * stride_xb if NORM else x_ptr,
            affine_ptr,
            pixel.to(tl.int64),
            place,
            column + offset + tl.arange(0, CHUNK),
            n_query,
            n_fg,
            n_bg,
            n_pixels,
            n_channels,
            stride_xc,
            stride_xn,
            tl.cast(eps, tl.float32),
            NORM,
        )


@triton.jit
def _store_moments(
    first_ptr,  # (N, C)
    variance_ptr,  # (N, C)
    pivot_ptr,  # (WIDTH,)
    mean_ptr,  # (C, N), or y where NORM
    std_ptr,  # (C, N)
    x_ptr,  # (C, N)
    affine_ptr,
    pixel,
    place,
    channel,
    n_query,
    n_fg,
    n_bg,
    n_pixels,
    n_channels,
    stride_xc,
    stride_xn,
    eps,
    NORM: tl.constexpr,
):
    """Maps of one image, [channel, place]: neighbouring places are neighbouring pixels."""
    inside = place < n_pixels
    is_query = (place < n_query)[None, :]
    rows = pixel[:, None] * n_channels + channel[None, :]
    row_mask = inside[:, None] & (channel < n_channels)[None, :]
    variance = tl.trans(tl.load(variance_ptr + rows, mask=row_mask, other=0.0))
    first = tl.trans(tl.load(first_ptr + rows, mask=row_mask, other=0.0))
    mask = inside[None, :] & (channel < n_channels)[:, None]
    pivot = tl.load(pivot_ptr + channel)[:, None]
    std = tl.where(is_query, tl.sqrt_rn(tl.maximum(variance, 0.0) + eps), 1.0)
    mean = tl.where(is_query, first + pivot, 0.0)
    target = channel.to(tl.int64)[:, None] * n_pixels + pixel[None, :]
    if NORM:
        source = channel.to(tl.int64)[:, None] * stride_xc + pixel[None, :] * stride_xn
        x = tl.load(x_ptr + source, mask=mask, other=0.0).to(tl.float32)
        # Without background, foreground pixels keep mean 0 and std 1 and the foreground's affine.
        is_fg = place < n_fg
        y = (std * x + mean) * _of_region(affine_ptr, channel, n_channels, is_fg)
        y += _of_region(affine_ptr + n_channels, channel, n_channels, is_fg)
        counted = is_fg | (place >= n_pixels - n_bg)
        mean = tl.where(counted[None, :], y, 0.0)
    else:
        tl.store(std_ptr + target, std.to(std_ptr.dtype.element_ty), mask=mask)
    tl.store(mean_ptr + target, mean.to(mean_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _of_region(affine_ptr, channel, n_channels, is_fg):
    """The foreground's or the background's number of each channel, [channels, places]."""
    mask = channel < n_channels
    fg = tl.load(affine_ptr + channel, mask=mask, other=0.0)
    bg = tl.load(affine_ptr + 2 * n_channels + channel, mask=mask, other=0.0)
    return tl.where(is_fg[None, :], fg[:, None], bg[:, None])


@triton.jit
def _store_map(ptr, tile, image, place, n_pixels, order_ptr, n_channels, COLUMNS: tl.constexpr, column):
    """Rows of a gradient to their pixels of a contiguous map (B, n_channels, N)."""
    inside = place < n_pixels
    channel = column + tl.arange(0, COLUMNS)
    pixel = tl.load(order_ptr + image * n_pixels + place, mask=inside, other=0)
    target = (image * n_channels + channel)[:, None] * n_pixels + pixel[None, :]
    mask = inside[None, :] & (channel < n_channels)[:, None]
    tl.store(ptr + target, tl.trans(tile).to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def bain_attention_bwd_dq_kernel(
    q_ptr,  # (B, N, KEY_WIDTH) packed
    k_ptr,  # (B, N, KEY_WIDTH) packed
    v_ptr,  # (B, N, WIDTH) packed
    da_ptr,  # (B, N, WIDTH) packed
    db_ptr,  # (B, N, WIDTH) packed
    delta_ptr,  # (B, N) packed
    lse_ptr,  # (B, N) packed, base 2
    span_ptr,  # (B,)
    order_ptr,  # (B, N)
    counts_ptr,  # (B, 2)
    d_query_ptr,  # (B, D, N)
    scale,
    n_pixels,
    n_keys,  # D
    KEY_WIDTH: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    SCALED: tl.constexpr,
):
    image, start_m = tl.program_id(1).to(tl.int64), tl.program_id(0) * BLOCK_M
    n_query = queries(counts_ptr, image)
    n_bg = tl.load(counts_ptr + 2 * image + 1).to(tl.int32)
    base = image * n_pixels
    rows = n_query - start_m
    place = start_m + tl.arange(0, BLOCK_M)
    is_query = place < n_query
    q_ptr += (base + start_m) * KEY_WIDTH
    k_ptr += base * KEY_WIDTH
    v_ptr += base * WIDTH
    da_ptr += (base + start_m) * WIDTH
    db_ptr += (base + start_m) * WIDTH
    delta = tl.load(delta_ptr + base + place, mask=is_query, other=0.0)
    lse = tl.load(lse_ptr + base + place, mask=is_query, other=0.0)
    q = _rows(q_ptr, rows, 0, KEY_WIDTH, BLOCK_M, BLOCK_D)
    da = _rows(da_ptr, rows, 0, WIDTH, BLOCK_M, BLOCK_C)
    db = _rows(db_ptr, rows, 0, WIDTH, BLOCK_M, BLOCK_C)
    scale = tl.cast(scale, tl.float32)
    dq = tl.zeros([BLOCK_M, KEY_WIDTH], tl.float32)
    for start in range(0, tl.where(rows > 0, n_bg, 0), BLOCK_N):
        left = n_bg - start
        logits = _products(q_ptr, rows, k_ptr, left, q, KEY_WIDTH, BLOCK_D, BLOCK_M, BLOCK_N, PRECISION)
        if BLOCK_C == WIDTH:
            v = _rows(v_ptr, left, 0, WIDTH, BLOCK_N, BLOCK_C)
            d_weights = tl.dot(da, tl.trans(v), input_precision=PRECISION)
            d_weights = tl.dot(db, tl.trans(v * v), d_weights, input_precision=PRECISION)
        else:
            d_weights = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            for column in range(0, WIDTH, BLOCK_C):
                v = _rows(v_ptr, left, column, WIDTH, BLOCK_N, BLOCK_C)
                da_part = _rows(da_ptr, rows, column, WIDTH, BLOCK_M, BLOCK_C)
                d_weights = tl.dot(da_part, tl.trans(v), d_weights, input_precision=PRECISION)
                db_part = _rows(db_ptr, rows, column, WIDTH, BLOCK_M, BLOCK_C)
                d_weights = tl.dot(db_part, tl.trans(v * v), d_weights, input_precision=PRECISION)
        keep = is_query[:, None] & (tl.arange(0, BLOCK_N) < left)[None, :]
        weights = tl.exp2(logits * (scale * LOG2_E) - lse[:, None])
        d_logits = tl.where(keep, weights * (d_weights - delta[:, None]), 0.0).to(k_ptr.dtype.element_ty)
        k = _rows(k_ptr, left, 0, KEY_WIDTH, BLOCK_N, KEY_WIDTH)
        dq = tl.dot(d_logits, k, dq, input_precision=PRECISION)
        k_ptr += BLOCK_N * KEY_WIDTH
        v_ptr += BLOCK_N * WIDTH
    dq *= scale * tl.load(span_ptr + image) if SCALED else scale
    _store_map(d_query_ptr, dq, image, place, n_pixels, order_ptr, n_keys, KEY_WIDTH, 0)


@triton.jit
def _weight_gradients(
    v_ptr,
    rows,
    da_ptr,
    db_ptr,
    left,
    WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """v da^T + v^2 db^T, [BLOCK_N, BLOCK_M], over blocks of channels."""
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for column in range(0, WIDTH, BLOCK_C):
        v = _rows(v_ptr, rows, column, WIDTH, BLOCK_N, BLOCK_C)
        da = _rows(da_ptr, left, column, WIDTH, BLOCK_M, BLOCK_C)
        total = tl.dot(v, tl.trans(da), total, input_precision=PRECISION)
        db = _rows(db_ptr, left, column, WIDTH, BLOCK_M, BLOCK_C)
        total = tl.dot(v * v, tl.trans(db), total, input_precision=PRECISION)
    return total


@triton.jit
def bain_attention_bwd_dkv_kernel(
    q_ptr,  # (B, N, KEY_WIDTH) packed
    k_ptr,  # (B, N, KEY_WIDTH) packed
    v_ptr,  # (B, N, WIDTH) packed
    da_ptr,  # (B, N, WIDTH) packed
    db_ptr,  # (B, N, WIDTH) packed
    delta_ptr,  # (B, N) packed
    lse_ptr,  # (B, N) packed, base 2
    span_ptr,  # (B,)
    unit_ptr,  # (B, WIDTH)
    order_ptr,  # (B, N)
    counts_ptr,  # (B, 2)
    d_key_ptr,  # (B, D, N), None without DK
    d_value_ptr,  # (B, C, N), None without DV
    scale,
    n_pixels,
    n_keys,  # D
    n_channels,  # C
    KEY_WIDTH: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    SCALED: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
):
    """dk and dv of a block of keys; dv alone may take one block of channels, dk needs them all."""
    image, start_n = tl.program_id(2).to(tl.int64), tl.program_id(0) * BLOCK_N
    first_column = tl.program_id(1) * BLOCK_C
    n_query = queries(counts_ptr, image)
    n_bg = tl.load(counts_ptr + 2 * image + 1).to(tl.int32)
    base = image * n_pixels
    rows = n_bg - start_n
    q_ptr += base * KEY_WIDTH
    k_ptr += (base + start_n) * KEY_WIDTH
    v_ptr += (base + start_n) * WIDTH
    da_ptr += base * WIDTH
    db_ptr += base * WIDTH
    k = _rows(k_ptr, rows, 0, KEY_WIDTH, BLOCK_N, BLOCK_D)
    v = _rows(v_ptr, rows, first_column, WIDTH, BLOCK_N, BLOCK_C)
    scale = tl.cast(scale, tl.float32)
    dk = tl.zeros([BLOCK_N, KEY_WIDTH], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    dv_second = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    for start in range(0, tl.where(rows > 0, n_query, 0), BLOCK_M):
        left = n_query - start
        place = start + tl.arange(0, BLOCK_M)
        is_query = place < n_query
        lse = tl.load(lse_ptr + base + place, mask=is_query, other=0.0)
        logits = _products(k_ptr, rows, q_ptr, left, k, KEY_WIDTH, BLOCK_D, BLOCK_N, BLOCK_M, PRECISION)
        weights = tl.exp2(logits * (scale * LOG2_E) - lse[None, :])
        weights = tl.where(is_query[None, :], weights, 0.0)  # [BLOCK_N, BLOCK_M]
        if DV:
            da = _rows(da_ptr, left, first_column, WIDTH, BLOCK_M, BLOCK_C)
            db = _rows(db_ptr, left, first_column, WIDTH, BLOCK_M, BLOCK_C)
            rounded = weights.to(da_ptr.dtype.element_ty)
            dv = tl.dot(rounded, da, dv, input_precision=PRECISION)
            dv_second = tl.dot(rounded, db, dv_second, input_precision=PRECISION)
        if DK:
            if BLOCK_C == WIDTH:
                if not DV:
                    da = _rows(da_ptr, left, 0, WIDTH, BLOCK_M, BLOCK_C)
                    db = _rows(db_ptr, left, 0, WIDTH, BLOCK_M, BLOCK_C)
                d_weights = tl.dot(v, tl.trans(da), input_precision=PRECISION)
                d_weights = tl.dot(v * v, tl.trans(db), d_weights, input_precision=PRECISION)
            else:
                d_weights = _weight_gradients(
                    v_ptr, rows, da_ptr, db_ptr, left, WIDTH, BLOCK_N, BLOCK_M, BLOCK_C, PRECISION
                )
            delta = tl.load(delta_ptr + base + place, mask=is_query, other=0.0)
            d_logits = tl.where(is_query[None, :], weights * (d_weights - delta[None, :]), 0.0)
            q = _rows(q_ptr, left, 0, KEY_WIDTH, BLOCK_M, KEY_WIDTH)
            dk = tl.dot(d_logits.to(q_ptr.dtype.element_ty), q, dk, input_precision=PRECISION)
        q_ptr += BLOCK_M * KEY_WIDTH
        da_ptr += BLOCK_M * WIDTH
        db_ptr += BLOCK_M * WIDTH
    rank = start_n + tl.arange(0, BLOCK_N)
    is_key = (rank < n_bg)[:, None]
    # Ranks past the last key run on from the first place, so that every pixel is written once.
    place = tl.where(rank < n_bg, n_pixels - n_bg + rank, tl.where(rank < n_pixels, rank - n_bg, n_pixels))
    span = tl.load(span_ptr + image) if SCALED else 1.0
    if DK:
        dk = tl.where(is_key, dk * (scale * span), 0.0)
        _store_map(d_key_ptr, dk, image, place, n_pixels, order_ptr, n_keys, KEY_WIDTH, 0)
    if DV:
        unit = tl.load(unit_ptr + image * WIDTH + first_column + tl.arange(0, BLOCK_C))
        v = _rows(v_ptr, rows, first_column, WIDTH, BLOCK_N, BLOCK_C).to(tl.float32)
        dv = tl.where(is_key, (dv + 2.0 * v * dv_second) * (span / unit)[None, :], 0.0)
        _store_map(d_value_ptr, dv, image, place, n_pixels, order_ptr, n_channels, BLOCK_C, first_column)
