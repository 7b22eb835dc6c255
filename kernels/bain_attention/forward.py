"""The forward kernels of `scsco_fast.kernels.bain_attention`, and the tiles that the backward's share with them."""

import triton
import triton.language as tl

from scsco_fast.kernels.bain_attention.pack import load_map, paired, queries, rounded, store_map, values_of

LOG2_E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1.0e30)  # below every logit, and finite after any scale
CHUNK = tl.constexpr(16)  # channels of a map that are written at a time


@triton.jit
def row_tile(ptr, left, column, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The first ROWS rows at `ptr`, from `column` on; rows from `left` on, if it is given, are 0."""
    row = tl.arange(0, ROWS)
    offsets = row[:, None] * WIDTH + (column + tl.arange(0, COLUMNS))[None, :]
    if left is None:
        return tl.load(ptr + offsets)
    else:
        return tl.load(ptr + offsets, mask=row[:, None] < left, other=0.0)


@triton.jit
def products(
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
        y = row_tile(y_ptr, y_left, 0, WIDTH, BLOCK_Y, WIDTH)
        return tl.dot(x, tl.trans(y), input_precision=PRECISION)
    else:
        total = tl.zeros([BLOCK_X, BLOCK_Y], tl.float32)
        # Not unrolled: each unrolled step would hold buffers of its own in shared memory.
        for column in range(0, WIDTH, BLOCK_K):
            part = row_tile(x_ptr, x_left, column, WIDTH, BLOCK_X, BLOCK_K)
            y = row_tile(y_ptr, y_left, column, WIDTH, BLOCK_Y, BLOCK_K)
            total = tl.dot(part, tl.trans(y), total, input_precision=PRECISION)
        return total


@triton.jit
def _attend_block(
    q_ptr, k_ptr, v_ptr,
    q, n_rows,
    left,  # keys from this block on
    moments, peak, total, scale,
    KEY_WIDTH: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """The online softmax's state after another block of keys; WHOLE: all BLOCK_N of them are there."""
    if WHOLE:
        left = None
    logits = products(q_ptr, n_rows, k_ptr, left, q, KEY_WIDTH, BLOCK_D, BLOCK_M, BLOCK_N, PRECISION)
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
    v = row_tile(v_ptr, left, 0, 2 * WIDTH, BLOCK_N, 2 * BLOCK_C)
    weights = rounded(weights, v.dtype, PRECISION == "tf32")
    moments = tl.dot(weights, v, moments * shrink[:, None], input_precision=PRECISION)
    return moments, new_peak, total


@triton.jit
def _attend(
    q_ptr, k_ptr,
    v_ptr,  # at the first column that is wanted
    n_rows,  # queries of this block
    n_keys,
    scale,  # to base 2
    KEY_WIDTH: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Means of v' and v'^2 in turn, [BLOCK_M, 2 BLOCK_C], and the log-sum-exp [BLOCK_M] in base 2, over n_keys keys."""
    moments = tl.zeros([BLOCK_M, 2 * BLOCK_C], tl.float32)
    # A finite start: before the first key, and for a row whose logits are all -inf, weights are 0 and not NaN.
    peak = tl.full([BLOCK_M], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    q = row_tile(q_ptr, n_rows, 0, KEY_WIDTH, BLOCK_M, BLOCK_D)
    # Whole blocks without a mask, then the rest: at C = 64 the mask is a tenth of the loop's instructions.
    for _ in range(0, n_keys // BLOCK_N):
        moments, peak, total = _attend_block(
            *(q_ptr, k_ptr, v_ptr, q, n_rows, 0, moments, peak, total, scale),
            *(KEY_WIDTH, WIDTH, BLOCK_M, BLOCK_N, BLOCK_C, BLOCK_D, PRECISION, True),
        )
        k_ptr += BLOCK_N * KEY_WIDTH
        v_ptr += BLOCK_N * (2 * WIDTH)
    left = n_keys % BLOCK_N
    if left > 0:
        moments, peak, total = _attend_block(
            *(q_ptr, k_ptr, v_ptr, q, n_rows, left, moments, peak, total, scale),
            *(KEY_WIDTH, WIDTH, BLOCK_M, BLOCK_N, BLOCK_C, BLOCK_D, PRECISION, False),
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
    affine_ptr,  # (4, C) where NORM: gain and offset of the foreground, of the background
    stride_yb, stride_yc, stride_yn, stride_xb, stride_xc, stride_xn,  # y: of mean and std
    scale, eps, n_pixels, n_channels, splits,
    KEY_WIDTH: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr, SPLIT: tl.constexpr, NORM: tl.constexpr,
    LAST: tl.constexpr,
):  # fmt: skip
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
        *(rows_ptr + (base + start) * KEY_WIDTH, rows_ptr + (base + key_place) * KEY_WIDTH),
        values_of(moments_ptr, values_ptr, image, n_pixels, WIDTH) + key_place * (2 * WIDTH) + 2 * column,
        *(n_query - start, n_keys, tl.cast(scale, tl.float32) * LOG2_E),
        *(KEY_WIDTH, WIDTH, BLOCK_M, BLOCK_N, BLOCK_C, BLOCK_D, PRECISION),
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
                *(mean + tl.load(scalars_ptr + n_pixels + few)[None, :], variance, mean_ptr + image * stride_yb),
                *(std_ptr if NORM else std_ptr + image * stride_yb, x_ptr + image * stride_xb if NORM else x_ptr),
                *(affine_ptr, pixel, few, is_query, n_channels, stride_yc, stride_yn, stride_xc),
                *(stride_xn, tl.cast(eps, tl.float32), NORM, LAST),
            )


@triton.jit
def _store_moments(
    mean,  # [places, channels]
    variance,
    mean_ptr, std_ptr, x_ptr, affine_ptr,
    pixel, channel, is_query, n_channels,
    stride_yc, stride_yn, stride_xc, stride_xn,
    eps,
    NORM: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """Queries' mean and deviation, or BAIN's output, to their pixels of one image's maps."""
    std = tl.sqrt_rn(tl.maximum(variance, 0.0) + eps)
    if NORM:
        x = load_map(x_ptr, pixel, channel, is_query, n_channels, stride_xc, stride_xn, LAST)
        gain = tl.load(affine_ptr + channel, mask=channel < n_channels, other=0.0)[None, :]
        bias = tl.load(affine_ptr + n_channels + channel, mask=channel < n_channels, other=0.0)[None, :]
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
    std_ptr, x_ptr, affine_ptr,
    stride_yb, stride_yc, stride_yn, stride_xb, stride_xc, stride_xn,
    eps, n_pixels, n_channels, splits,
    WIDTH: tl.constexpr, BLOCK_P: tl.constexpr, NORM: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
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
        *(first + pivot, variance, mean_ptr + image * stride_yb, std_ptr if NORM else std_ptr + image * stride_yb),
        *(x_ptr + image * stride_xb if NORM else x_ptr, affine_ptr),
        *(tl.load(order_ptr + base + place, mask=is_query, other=0), channel, is_query, n_channels, stride_yc),
        *(stride_yn, stride_xc, stride_xn, tl.cast(eps, tl.float32), NORM, LAST),
    )
