"""The attention kernels of `scsco_fast.kernels.bain_attention`: a forward and its merge, one for dq, one for dk and dv."""

import triton
import triton.language as tl

from scsco_fast.kernels.packing import load_map, paired, queries, rounded, store_map, values_of

LOG2_E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1.0e30)  # below every logit, and finite after any scale
CHUNK = tl.constexpr(16)  # channels of a map that are written at a time


@triton.jit
def _rows(ptr, left, column, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The first ROWS rows at `ptr`, from `column` on; rows from `left` on, if it is given, are 0."""
    row = tl.arange(0, ROWS)
    offsets = row[:, None] * WIDTH + (column + tl.arange(0, COLUMNS))[None, :]
    if left is None:
        return tl.load(ptr + offsets)
    else:
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
        # Not unrolled: each unrolled step would hold buffers of its own in shared memory.
        for column in range(0, WIDTH, BLOCK_K):
            part = _rows(x_ptr, x_left, column, WIDTH, BLOCK_X, BLOCK_K)
            y = _rows(y_ptr, y_left, column, WIDTH, BLOCK_Y, BLOCK_K)
            total = tl.dot(part, tl.trans(y), total, input_precision=PRECISION)
        return total


@triton.jit
def _attend_block(
    q_ptr,
    k_ptr,
    v_ptr,
    q,
    n_rows,
    left,  # keys from this block on
    moments,
    peak,
    total,
    scale,
    KEY_WIDTH: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """The online softmax's state after another block of keys; WHOLE: all BLOCK_N of them are there."""
    if WHOLE:
        left = None
    logits = _products(q_ptr, n_rows, k_ptr, left, q, KEY_WIDTH, BLOCK_D, BLOCK_M, BLOCK_N, PRECISION)
    if not WHOLE:
        is_key = (tl.arange(0, BLOCK_N) < left)[None, :]
        logits = tl.where(is_key, logits, LOWEST)
    new_peak = tl.maximum(peak, tl.max(logits, axis=1))
    # Scaled inside exp2's argument: one fused multiply-add an element.
    bound = new_peak * scale
    weights = tl.exp2(logits * scale - bound[:, None])
    if not WHOLE:
        weights = tl.where(is_key, weights, 0.0)
    shrink = tl.exp2(peak * scale - bound)
    # Summed before they are rounded: afterwards every weight would have to be converted back, on exp2's own pipe.
    total = total * shrink + tl.sum(weights, axis=1)
    v = _rows(v_ptr, left, 0, 2 * WIDTH, BLOCK_N, 2 * BLOCK_C)
    weights = rounded(weights, v.dtype, PRECISION == "tf32")
    moments = tl.dot(weights, v, moments * shrink[:, None], input_precision=PRECISION)
    return moments, new_peak, total


@triton.jit
def _attend(
    q_ptr,
    k_ptr,
    v_ptr,  # at the first column that is wanted
    n_rows,  # queries of this block
    n_keys,
    scale,  # to base 2
    KEY_WIDTH: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Moments of v' in turn, [BLOCK_M, 2 BLOCK_C], and the log-sum-exp [BLOCK_M] in base 2, over the first n_keys keys."""
    moments = tl.zeros([BLOCK_M, 2 * BLOCK_C], tl.float32)
    # A finite start: before the first key, and for a row whose logits are all -inf, weights are 0 and not NaN.
    peak = tl.full([BLOCK_M], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    q = _rows(q_ptr, n_rows, 0, KEY_WIDTH, BLOCK_M, BLOCK_D)
    # Whole blocks without a mask, then the rest: at C = 64 the mask is a tenth of the loop's instructions.
    for _ in range(0, n_keys // BLOCK_N):
        moments, peak, total = _attend_block(
            q_ptr, k_ptr, v_ptr, q, n_rows, 0, moments, peak, total, scale,
            KEY_WIDTH, WIDTH, BLOCK_M, BLOCK_N, BLOCK_C, BLOCK_D, PRECISION, True,
        )
        k_ptr += BLOCK_N * KEY_WIDTH
        v_ptr += BLOCK_N * (2 * WIDTH)
    left = n_keys % BLOCK_N
    if left > 0:
        moments, peak, total = _attend_block(
            q_ptr, k_ptr, v_ptr, q, n_rows, left, moments, peak, total, scale,
            KEY_WIDTH, WIDTH, BLOCK_M, BLOCK_N, BLOCK_C, BLOCK_D, PRECISION, False,
        )
    total = tl.maximum(total, 1e-37)
    return moments * (1.0 / total)[:, None], peak * scale + tl.log2(total)


@triton.jit
def _used_splits(splits, n_query, n_pixels):
    """As many as have room: an image has N rows for the partial results of all its splits, n_query for each."""
    return tl.minimum(splits, n_pixels // tl.maximum(n_query, 1))


@triton.jit
def bain_attention_fwd_kernel(
    rows_ptr,  # (B, N, KEY_WIDTH)
    values_ptr,  # of the moments' memory
    moments_ptr,  # (B, N, 2 WIDTH)
    scalars_ptr,  # (B, N + 2 WIDTH)
    part_ptr,  # (B, N, 2 WIDTH) where SPLIT: one split's queries after the other's
    part_lse_ptr,  # (B, N) where SPLIT
    order_ptr,  # (B, N)
    counts_ptr,  # (B, 2)
    mean_ptr,  # (B, C, N), or BAIN's output where NORM
    std_ptr,  # (B, C, N), None where NORM
    x_ptr,  # (B, C, N) normalised map where NORM
    fg_weight_ptr,  # (C,) where NORM
    fg_bias_ptr,
    stride_yb,  # of mean and std
    stride_yc,
    stride_yn,
    stride_xb,
    stride_xc,
    stride_xn,
    scale,
    eps,
    n_pixels,
    n_channels,
    splits,
    KEY_WIDTH: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    SPLIT: tl.constexpr,
    NORM: tl.constexpr,
    LAST: tl.constexpr,
):
    image, start = tl.program_id(2).to(tl.int64), tl.program_id(0) * BLOCK_M
    n_query = queries(counts_ptr, image)
    if start >= n_query:
        return
    n_bg = tl.load(counts_ptr + 2 * image + 1).to(tl.int32)
    base = image * n_pixels
    if SPLIT:
        split, column = tl.program_id(1) % splits, tl.program_id(1) // splits * BLOCK_C
        used = _used_splits(splits, n_query, n_pixels)
        if split >= used:
            return
        share = tl.cdiv(tl.cdiv(n_bg, BLOCK_N), used) * BLOCK_N
        first_key = tl.minimum(split * share, n_bg)
        n_keys = tl.minimum(share, n_bg - first_key)
    else:
        split, column, first_key, n_keys = 0, tl.program_id(1) * BLOCK_C, 0, n_bg
    key_place = (n_pixels - n_bg + first_key).to(tl.int64)
    moments, lse = _attend(
        rows_ptr + (base + start) * KEY_WIDTH,
        rows_ptr + (base + key_place) * KEY_WIDTH,
        values_of(moments_ptr, values_ptr, image, n_pixels, WIDTH) + key_place * (2 * WIDTH) + 2 * column,
        n_query - start,
        n_keys,
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
    is_query = place < n_query
    row = tl.arange(0, BLOCK_M)[:, None] * (2 * WIDTH) + (2 * column + tl.arange(0, 2 * BLOCK_C))[None, :]
    if SPLIT:
        base += split * n_query
        tl.store(part_ptr + (base + start) * (2 * WIDTH) + row, moments, mask=is_query[:, None])
        if column == 0:
            tl.store(part_lse_ptr + base + place, lse, mask=is_query)
    else:
        scalars_ptr += image * (n_pixels + 2 * WIDTH)
        if column == 0:
            tl.store(scalars_ptr + place, lse, mask=is_query)
        channel = column + tl.arange(0, BLOCK_C)
        unit = tl.load(scalars_ptr + n_pixels + WIDTH + channel)[None, :]
        first, second = moments.reshape(BLOCK_M, BLOCK_C, 2).split()
        moments = paired(first * unit, (second - first * first) * (unit * unit))
        tl.store(moments_ptr + (base + start) * (2 * WIDTH) + row, moments, mask=is_query[:, None])
        # The maps are written from those rows, a few channels at a time: beside the accumulators they would spill.
        tl.debug_barrier()
        pixel = tl.load(order_ptr + base + place, mask=is_query, other=0)
        for offset in range(0, tl.minimum(BLOCK_C, n_channels - column), CHUNK):
            pairs = 2 * (column + offset) + tl.arange(0, 2 * CHUNK)
            source = (base + place)[:, None] * (2 * WIDTH) + pairs[None, :]
            written = tl.load(moments_ptr + source, mask=is_query[:, None], other=0.0)
            mean, variance = written.reshape(BLOCK_M, CHUNK, 2).split()
            few = column + offset + tl.arange(0, CHUNK)
            _store_moments(
                mean + tl.load(scalars_ptr + n_pixels + few)[None, :],
                variance,
                mean_ptr + image * stride_yb,
                std_ptr if NORM else std_ptr + image * stride_yb,
                x_ptr + image * stride_xb if NORM else x_ptr,
                fg_weight_ptr,
                fg_bias_ptr,
                pixel,
                few,
                is_query,
                n_channels,
                stride_yc,
                stride_yn,
                stride_xc,
                stride_xn,
                tl.cast(eps, tl.float32),
                NORM,
                LAST,
            )


@triton.jit
def _store_moments(
    mean,  # [places, channels]
    variance,
    mean_ptr,
    std_ptr,
    x_ptr,
    fg_weight_ptr,
    fg_bias_ptr,
    pixel,
    channel,
    is_query,
    n_channels,
    stride_yc,
    stride_yn,
    stride_xc,
    stride_xn,
    eps,
    NORM: tl.constexpr,
    LAST: tl.constexpr,
):
    """Queries' mean and deviation, or BAIN's output, to their pixels of one image's maps."""
    std = tl.sqrt_rn(tl.maximum(variance, 0.0) + eps)
    if NORM:
        x = load_map(x_ptr, pixel, channel, is_query, n_channels, stride_xc, stride_xn, LAST)
        gain = tl.load(fg_weight_ptr + channel, mask=channel < n_channels, other=0.0).to(tl.float32)[None, :]
        bias = tl.load(fg_bias_ptr + channel, mask=channel < n_channels, other=0.0).to(tl.float32)[None, :]
        mean = (std * x + mean) * gain + bias
    else:
        store_map(std_ptr, std, pixel, channel, is_query, n_channels, stride_yc, stride_yn, LAST)
    store_map(mean_ptr, mean, pixel, channel, is_query, n_channels, stride_yc, stride_yn, LAST)


@triton.jit
def bain_attention_fwd_merge_kernel(
    part_ptr,  # (B, N, 2 WIDTH)
    part_lse_ptr,  # (B, N)
    moments_ptr,  # (B, N, 2 WIDTH)
    scalars_ptr,  # (B, N + 2 WIDTH)
    order_ptr,  # (B, N)
    counts_ptr,  # (B, 2)
    mean_ptr,  # these as in bain_attention_fwd_kernel
    std_ptr,
    x_ptr,
    fg_weight_ptr,
    fg_bias_ptr,
    stride_yb,
    stride_yc,
    stride_yn,
    stride_xb,
    stride_xc,
    stride_xn,
    eps,
    n_pixels,
    n_channels,
    splits,
    WIDTH: tl.constexpr,
    BLOCK_P: tl.constexpr,
    NORM: tl.constexpr,
    LAST: tl.constexpr,
):
    """Adds the splits of the keys in their order, each weighted by its sum of exponentials."""
    image = tl.program_id(2).to(tl.int64)
    n_query = queries(counts_ptr, image)
    if tl.program_id(0) * BLOCK_P >= n_query:
        return
    place = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    is_query = place < n_query
    channel = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    columns = tl.program_id(1) * (2 * CHUNK) + tl.arange(0, 2 * CHUNK)
    base = image * n_pixels
    used = _used_splits(splits, n_query, n_pixels)
    peak = tl.full([BLOCK_P], LOWEST, tl.float32)
    for split in range(used):
        lse = tl.load(part_lse_ptr + split * n_query + base + place, mask=is_query, other=0.0)
        peak = tl.maximum(peak, lse)
    total = tl.zeros([BLOCK_P], tl.float32)
    moments = tl.zeros([BLOCK_P, 2 * CHUNK], tl.float32)
    for split in range(used):
        row = split * n_query + base + place
        weight = tl.exp2(tl.load(part_lse_ptr + row, mask=is_query, other=0.0) - peak)
        part = tl.load(part_ptr + row[:, None] * (2 * WIDTH) + columns[None, :], mask=is_query[:, None], other=0.0)
        total += weight
        moments += weight[:, None] * part
    moments *= (1.0 / total)[:, None]
    scalars_ptr += image * (n_pixels + 2 * WIDTH)
    if tl.program_id(1) == 0:
        tl.store(scalars_ptr + place, peak + tl.log2(total), mask=is_query)
    pivot = tl.load(scalars_ptr + n_pixels + channel)[None, :]
    unit = tl.load(scalars_ptr + n_pixels + WIDTH + channel)[None, :]
    first, second = moments.reshape(BLOCK_P, CHUNK, 2).split()
    variance = (second - first * first) * (unit * unit)
    first *= unit
    target = moments_ptr + (base + place)[:, None] * (2 * WIDTH) + columns[None, :]
    tl.store(target, paired(first, variance), mask=is_query[:, None])
    _store_moments(
        first + pivot,
        variance,
        mean_ptr + image * stride_yb,
        std_ptr if NORM else std_ptr + image * stride_yb,
        x_ptr + image * stride_xb if NORM else x_ptr,
        fg_weight_ptr,
        fg_bias_ptr,
        tl.load(order_ptr + base + place, mask=is_query, other=0),
        channel,
        is_query,
        n_channels,
        stride_yc,
        stride_yn,
        stride_xc,
        stride_xn,
        tl.cast(eps, tl.float32),
        NORM,
        LAST,
    )


@triton.jit
def _dq_block(
    q_ptr,
    k_ptr,
    v_ptr,
    g_ptr,
    q,
    g,
    rows,
    left,
    lse,
    delta,
    dq,
    scale,  # to base 2
    KEY_WIDTH: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """dq / scale after another block of keys; WHOLE: all BLOCK_N of them are there."""
    if WHOLE:
        left = None
    logits = _products(q_ptr, rows, k_ptr, left, q, KEY_WIDTH, BLOCK_D, BLOCK_M, BLOCK_N, PRECISION)
    d_weights = _products(g_ptr, rows, v_ptr, left, g, 2 * WIDTH, 2 * BLOCK_C, BLOCK_M, BLOCK_N, PRECISION)
    d_logits = tl.exp2(logits * scale - lse[:, None]) * (d_weights - delta[:, None])
    if not WHOLE:
        # Past the last key a logit is 0 and its weight may be infinite.
        d_logits = tl.where((tl.arange(0, BLOCK_N) < left)[None, :], d_logits, 0.0)
    k = _rows(k_ptr, left, 0, KEY_WIDTH, BLOCK_N, KEY_WIDTH)
    return tl.dot(rounded(d_logits, k.dtype, PRECISION == "tf32"), k, dq, input_precision=PRECISION)


@triton.jit
def bain_attention_bwd_dq_kernel(
    rows_ptr,  # (B, N, KEY_WIDTH)
    values_ptr,  # of the moments' memory
    moments_ptr,  # (B, N, 2 WIDTH)
    grads_ptr,  # (B, N, 2 WIDTH): da and db in turn
    scalars_ptr,  # (B, N + 2 WIDTH)
    delta_ptr,  # (B, N)
    span_ptr,  # (B,)
    order_ptr,  # (B, N)
    counts_ptr,  # (B, 2)
    d_query_ptr,  # (B, D, N)
    stride_yb,  # of d_query
    stride_yc,
    stride_yn,
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
    NEGATE: tl.constexpr,
    LAST: tl.constexpr,
):
    image, start_m = tl.program_id(1).to(tl.int64), tl.program_id(0) * BLOCK_M
    n_query = queries(counts_ptr, image)
    n_bg = tl.load(counts_ptr + 2 * image + 1).to(tl.int32)
    base = image * n_pixels
    rows = n_query - start_m
    place = start_m + tl.arange(0, BLOCK_M)
    is_query = place < n_query
    key_place = (n_pixels - n_bg).to(tl.int64)
    q_ptr = rows_ptr + (base + start_m) * KEY_WIDTH
    k_ptr = rows_ptr + (base + key_place) * KEY_WIDTH
    v_ptr = values_of(moments_ptr, values_ptr, image, n_pixels, WIDTH) + key_place * (2 * WIDTH)
    g_ptr = grads_ptr + (base + start_m) * (2 * WIDTH)
    delta = tl.load(delta_ptr + base + place, mask=is_query, other=0.0)
    # Rows that are no query get weights exp2(-inf) = 0.
    lse = tl.load(scalars_ptr + image * (n_pixels + 2 * WIDTH) + place, mask=is_query, other=float("inf"))
    q = _rows(q_ptr, rows, 0, KEY_WIDTH, BLOCK_M, BLOCK_D)
    g = _rows(g_ptr, rows, 0, 2 * WIDTH, BLOCK_M, 2 * BLOCK_C)
    scale = tl.cast(scale, tl.float32)
    dq = tl.zeros([BLOCK_M, KEY_WIDTH], tl.float32)
    to_base_2 = scale * LOG2_E
    n_keys_here = tl.where(rows > 0, n_bg, 0)
    for _ in range(0, n_keys_here // BLOCK_N):
        dq = _dq_block(
            q_ptr, k_ptr, v_ptr, g_ptr, q, g, rows, 0, lse, delta, dq, to_base_2,
            KEY_WIDTH, WIDTH, BLOCK_M, BLOCK_N, BLOCK_C, BLOCK_D, PRECISION, True,
        )
        k_ptr += BLOCK_N * KEY_WIDTH
        v_ptr += BLOCK_N * (2 * WIDTH)
    left = n_keys_here % BLOCK_N
    if left > 0:
        dq = _dq_block(
            q_ptr, k_ptr, v_ptr, g_ptr, q, g, rows, left, lse, delta, dq, to_base_2,
            KEY_WIDTH, WIDTH, BLOCK_M, BLOCK_N, BLOCK_C, BLOCK_D, PRECISION, False,
        )
    dq *= -scale if NEGATE else scale
    if SCALED:
        dq *= tl.load(span_ptr + image)
    inside = place < n_pixels
    pixel = tl.load(order_ptr + base + place, mask=inside, other=0)
    channel = tl.arange(0, KEY_WIDTH)
    store_map(d_query_ptr + image * stride_yb, dq, pixel, channel, inside, n_keys, stride_yc, stride_yn, LAST)


@triton.jit
def _dkv_block(
    q_ptr,
    k_ptr,
    v_ptr,
    g_ptr,
    lse_ptr,
    delta_ptr,
    k,
    v,
    rows,
    left,
    column,
    dk,
    dv,
    scale,  # to base 2
    KEY_WIDTH: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """dk / scale and the moments' dv after another block of queries; WHOLE: all BLOCK_M of them are there."""
    query = tl.arange(0, BLOCK_M)
    if WHOLE:
        left = None
        lse = tl.load(lse_ptr + query)
    else:
        # Rows that are no query get weights exp2(-inf) = 0.
        lse = tl.load(lse_ptr + query, mask=query < left, other=float("inf"))
    logits = _products(k_ptr, rows, q_ptr, left, k, KEY_WIDTH, BLOCK_D, BLOCK_N, BLOCK_M, PRECISION)
    weights = tl.exp2(logits * scale - lse[None, :])  # [BLOCK_N, BLOCK_M]
    if DV:
        g = _rows(g_ptr, left, 2 * column, 2 * WIDTH, BLOCK_M, 2 * BLOCK_C)
        dv = tl.dot(rounded(weights, g.dtype, PRECISION == "tf32"), g, dv, input_precision=PRECISION)
    if DK:
        d_weights = _products(v_ptr, rows, g_ptr, left, v, 2 * WIDTH, 2 * BLOCK_C, BLOCK_N, BLOCK_M, PRECISION)
        if WHOLE:
            delta = tl.load(delta_ptr + query)
        else:
            delta = tl.load(delta_ptr + query, mask=query < left, other=0.0)
        d_logits = weights * (d_weights - delta[None, :])
        q = _rows(q_ptr, left, 0, KEY_WIDTH, BLOCK_M, KEY_WIDTH)
        dk = tl.dot(rounded(d_logits, q.dtype, PRECISION == "tf32"), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit
def bain_attention_bwd_dkv_kernel(
    rows_ptr,  # these as in bain_attention_bwd_dq_kernel
    values_ptr,
    moments_ptr,
    grads_ptr,
    scalars_ptr,
    delta_ptr,
    span_ptr,
    order_ptr,
    counts_ptr,
    d_key_ptr,  # (B, D, N), None without DK
    d_value_ptr,  # (B, C, N), None without DV
    stride_kb,
    stride_kc,
    stride_kn,
    stride_vb,
    stride_vc,
    stride_vn,
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
    LAST: tl.constexpr,
):
    """dk and dv of a block of keys; dv alone may take one block of channels, dk needs them all."""
    image, start_n = tl.program_id(2).to(tl.int64), tl.program_id(0) * BLOCK_N
    first_column = tl.program_id(1) * BLOCK_C
    n_query = queries(counts_ptr, image)
    n_bg = tl.load(counts_ptr + 2 * image + 1).to(tl.int32)
    base = image * n_pixels
    rows = n_bg - start_n
    key_place = (n_pixels - n_bg + start_n).to(tl.int64)
    q_ptr = rows_ptr + base * KEY_WIDTH
    k_ptr = rows_ptr + (base + key_place) * KEY_WIDTH
    v_ptr = values_of(moments_ptr, values_ptr, image, n_pixels, WIDTH) + key_place * (2 * WIDTH)
    g_ptr = grads_ptr + base * (2 * WIDTH)
    lse_ptr = scalars_ptr + image * (n_pixels + 2 * WIDTH)
    k = _rows(k_ptr, rows, 0, KEY_WIDTH, BLOCK_N, BLOCK_D)
    v = _rows(v_ptr, rows, 2 * first_column, 2 * WIDTH, BLOCK_N, 2 * BLOCK_C)
    scale = tl.cast(scale, tl.float32)
    dk = tl.zeros([BLOCK_N, KEY_WIDTH], tl.float32)
    dv = tl.zeros([BLOCK_N, 2 * BLOCK_C], tl.float32)
    to_base_2 = scale * LOG2_E
    n_queries_here = tl.where(rows > 0, n_query, 0)
    at_lse, at_delta = lse_ptr, delta_ptr + base
    for _ in range(0, n_queries_here // BLOCK_M):
        dk, dv = _dkv_block(
            q_ptr, k_ptr, v_ptr, g_ptr, at_lse, at_delta, k, v, rows, 0, first_column, dk, dv, to_base_2,
            KEY_WIDTH, WIDTH, BLOCK_M, BLOCK_N, BLOCK_C, BLOCK_D, PRECISION, DK, DV, True,
        )
        q_ptr += BLOCK_M * KEY_WIDTH
        g_ptr += BLOCK_M * (2 * WIDTH)
        at_lse += BLOCK_M
        at_delta += BLOCK_M
    left = n_queries_here % BLOCK_M
    if left > 0:
        dk, dv = _dkv_block(
            q_ptr, k_ptr, v_ptr, g_ptr, at_lse, at_delta, k, v, rows, left, first_column, dk, dv, to_base_2,
            KEY_WIDTH, WIDTH, BLOCK_M, BLOCK_N, BLOCK_C, BLOCK_D, PRECISION, DK, DV, False,
        )
    # Read again, so that the addresses below are computed again: kept across the loop they spill.
    n_bg = tl.load(counts_ptr + 2 * image + 1, volatile=True).to(tl.int32)
    rank = start_n + tl.arange(0, BLOCK_N)
    is_key = (rank < n_bg)[:, None]
    inside = rank < n_pixels
    # Ranks past the last key run on from the first place, so that every pixel is written once.
    place = tl.where(rank < n_bg, n_pixels - n_bg + rank, rank - n_bg)
    pixel = tl.load(order_ptr + base + place, mask=inside, other=0)
    span = tl.load(span_ptr + image) if SCALED else 1.0
    if DK:
        dk = tl.where(is_key, dk * (scale * span), 0.0)
        channel = tl.arange(0, KEY_WIDTH)
        store_map(d_key_ptr + image * stride_kb, dk, pixel, channel, inside, n_keys, stride_kc, stride_kn, LAST)
    if DV:
        channel = first_column + tl.arange(0, BLOCK_C)
        unit = tl.load(lse_ptr + n_pixels + WIDTH + channel)
        v_ptr = values_of(moments_ptr, values_ptr, image, n_pixels, WIDTH)
        v_ptr += (n_pixels - n_bg + start_n).to(tl.int64) * (2 * WIDTH)
        own = _rows(v_ptr, n_bg - start_n, 2 * first_column, 2 * WIDTH, BLOCK_N, 2 * BLOCK_C)
        value, _square = own.reshape(BLOCK_N, BLOCK_C, 2).split()
        of_first, of_second = dv.reshape(BLOCK_N, BLOCK_C, 2).split()
        dv = tl.where(is_key, (of_first + 2.0 * value.to(tl.float32) * of_second) * (span / unit)[None, :], 0.0)
        store_map(d_value_ptr + image * stride_vb, dv, pixel, channel, inside, n_channels, stride_vc, stride_vn, LAST)
