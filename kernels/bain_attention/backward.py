"""The backward kernels of `scsco_fast.kernels.bain_attention`: one for dq, one for dk and dv, alone or together."""

import triton
import triton.language as tl

from scsco_fast.kernels.bain_attention.forward import LOG2_E, products, row_tile
from scsco_fast.kernels.bain_attention.pack import queries, rounded, store_map, values_of

# Float16 weights are multiplied by 2^8. With thousands of keys they, and the gradients of their logits, are below its
# smallest normal number, 6e-5: at 256 x 256 pixels dq and dk had errors of 3 %, and have 0.05 % (as `same_precision`).
WEIGHT_BITS = tl.constexpr(8)
UNLIFTED = tl.constexpr(2.0**-WEIGHT_BITS.value)


@triton.jit
def _lifted(lse, DTYPE: tl.constexpr):
    """What is subtracted from logits to base 2, so that weights in float16 are 2^8 times as large."""
    return lse - WEIGHT_BITS if DTYPE == tl.float16 else lse  # noqa: SIM300


@triton.jit
def _of_rows(span_ptr, image, SCALED: tl.constexpr):
    """What a gradient of float16 rows is multiplied by: both factors undone."""
    return tl.load(span_ptr + image) * UNLIFTED if SCALED else 1.0


@triton.jit
def _dq_block(
    q_ptr, k_ptr, v_ptr, g_ptr,
    q, g, rows, left, lse, delta, dq,
    scale,  # to base 2
    KEY_WIDTH: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """dq / scale after another block of keys; WHOLE: all BLOCK_N of them are there."""
    if WHOLE:
        left = None
    logits = products(q_ptr, rows, k_ptr, left, q, KEY_WIDTH, BLOCK_D, BLOCK_M, BLOCK_N, PRECISION)
    d_weights = products(g_ptr, rows, v_ptr, left, g, 2 * WIDTH, 2 * BLOCK_C, BLOCK_M, BLOCK_N, PRECISION)
    d_logits = tl.exp2(logits * scale - lse[:, None]) * (d_weights - delta[:, None])
    if not WHOLE:
        # Past the last key a logit is 0 and its weight may be infinite.
        d_logits = tl.where((tl.arange(0, BLOCK_N) < left)[None, :], d_logits, 0.0)
    k = row_tile(k_ptr, left, 0, KEY_WIDTH, BLOCK_N, KEY_WIDTH)
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
    stride_yb, stride_yc, stride_yn,  # of d_query
    scale, n_pixels, n_keys,  # N, D
    KEY_WIDTH: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr, SCALED: tl.constexpr,
    NEGATE: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
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
    lse = _lifted(lse, rows_ptr.dtype.element_ty)
    q = row_tile(q_ptr, rows, 0, KEY_WIDTH, BLOCK_M, BLOCK_D)
    g = row_tile(g_ptr, rows, 0, 2 * WIDTH, BLOCK_M, 2 * BLOCK_C)
    scale = tl.cast(scale, tl.float32)
    dq = tl.zeros([BLOCK_M, KEY_WIDTH], tl.float32)
    to_base_2 = scale * LOG2_E
    n_keys_here = tl.where(rows > 0, n_bg, 0)
    for _ in range(0, n_keys_here // BLOCK_N):
        dq = _dq_block(
            *(q_ptr, k_ptr, v_ptr, g_ptr, q, g, rows, 0, lse, delta, dq, to_base_2),
            *(KEY_WIDTH, WIDTH, BLOCK_M, BLOCK_N, BLOCK_C, BLOCK_D, PRECISION, True),
        )
        k_ptr += BLOCK_N * KEY_WIDTH
        v_ptr += BLOCK_N * (2 * WIDTH)
    left = n_keys_here % BLOCK_N
    if left > 0:
        dq = _dq_block(
            *(q_ptr, k_ptr, v_ptr, g_ptr, q, g, rows, left, lse, delta, dq, to_base_2),
            *(KEY_WIDTH, WIDTH, BLOCK_M, BLOCK_N, BLOCK_C, BLOCK_D, PRECISION, False),
        )
    dq *= (-scale if NEGATE else scale) * _of_rows(span_ptr, image, SCALED)
    inside = place < n_pixels
    pixel = tl.load(order_ptr + base + place, mask=inside, other=0)
    channel = tl.arange(0, KEY_WIDTH)
    store_map(d_query_ptr + image * stride_yb, dq, pixel, channel, inside, n_keys, stride_yc, stride_yn, LAST)


@triton.jit
def _dkv_block(
    q_ptr, k_ptr, v_ptr, g_ptr, lse_ptr, delta_ptr,
    k, v, rows, left, column, dk, dv,
    scale,  # to base 2
    KEY_WIDTH: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """dk / scale and the moments' dv after another block of queries; WHOLE: all BLOCK_M of them are there."""
    query = tl.arange(0, BLOCK_M)
    if WHOLE:
        left = None
        lse = tl.load(lse_ptr + query)
    else:
        # Rows that are no query get weights exp2(-inf) = 0.
        lse = tl.load(lse_ptr + query, mask=query < left, other=float("inf"))
    lse = _lifted(lse, q_ptr.dtype.element_ty)
    logits = products(k_ptr, rows, q_ptr, left, k, KEY_WIDTH, BLOCK_D, BLOCK_N, BLOCK_M, PRECISION)
    weights = tl.exp2(logits * scale - lse[None, :])  # [BLOCK_N, BLOCK_M]
    if DV:
        g = row_tile(g_ptr, left, 2 * column, 2 * WIDTH, BLOCK_M, 2 * BLOCK_C)
        dv = tl.dot(rounded(weights, g.dtype, PRECISION == "tf32"), g, dv, input_precision=PRECISION)
    if DK:
        d_weights = products(v_ptr, rows, g_ptr, left, v, 2 * WIDTH, 2 * BLOCK_C, BLOCK_N, BLOCK_M, PRECISION)
        delta = tl.load(delta_ptr + query) if WHOLE else tl.load(delta_ptr + query, mask=query < left, other=0.0)
        d_logits = weights * (d_weights - delta[None, :])
        q = row_tile(q_ptr, left, 0, KEY_WIDTH, BLOCK_M, KEY_WIDTH)
        dk = tl.dot(rounded(d_logits, q.dtype, PRECISION == "tf32"), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit
def bain_attention_bwd_dkv_kernel(
    rows_ptr,  # these as in bain_attention_bwd_dq_kernel
    values_ptr, moments_ptr, grads_ptr, scalars_ptr, delta_ptr, span_ptr, order_ptr, counts_ptr,
    d_key_ptr,  # (B, D, N), None without DK
    d_value_ptr,  # (B, C, N), None without DV
    stride_kb, stride_kc, stride_kn, stride_vb, stride_vc, stride_vn,
    scale, n_pixels, n_keys, n_channels,  # N, D, C
    KEY_WIDTH: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr, SCALED: tl.constexpr, DK: tl.constexpr,
    DV: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
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
    k = row_tile(k_ptr, rows, 0, KEY_WIDTH, BLOCK_N, BLOCK_D)
    v = row_tile(v_ptr, rows, 2 * first_column, 2 * WIDTH, BLOCK_N, 2 * BLOCK_C)
    scale = tl.cast(scale, tl.float32)
    dk = tl.zeros([BLOCK_N, KEY_WIDTH], tl.float32)
    dv = tl.zeros([BLOCK_N, 2 * BLOCK_C], tl.float32)
    to_base_2 = scale * LOG2_E
    n_queries_here = tl.where(rows > 0, n_query, 0)
    at_lse, at_delta = lse_ptr, delta_ptr + base
    for _ in range(0, n_queries_here // BLOCK_M):
        dk, dv = _dkv_block(
            *(q_ptr, k_ptr, v_ptr, g_ptr, at_lse, at_delta, k, v, rows, 0, first_column, dk, dv, to_base_2),
            *(KEY_WIDTH, WIDTH, BLOCK_M, BLOCK_N, BLOCK_C, BLOCK_D, PRECISION, DK, DV, True),
        )
        q_ptr += BLOCK_M * KEY_WIDTH
        g_ptr += BLOCK_M * (2 * WIDTH)
        at_lse += BLOCK_M
        at_delta += BLOCK_M
    left = n_queries_here % BLOCK_M
    if left > 0:
        dk, dv = _dkv_block(
            *(q_ptr, k_ptr, v_ptr, g_ptr, at_lse, at_delta, k, v, rows, left, first_column, dk, dv, to_base_2),
            *(KEY_WIDTH, WIDTH, BLOCK_M, BLOCK_N, BLOCK_C, BLOCK_D, PRECISION, DK, DV, False),
        )
    # Read again, so that the addresses below are computed again: kept across the loop they spill.
    n_bg = tl.load(counts_ptr + 2 * image + 1, volatile=True).to(tl.int32)
    rank = start_n + tl.arange(0, BLOCK_N)
    is_key = (rank < n_bg)[:, None]
    inside = rank < n_pixels
    # Ranks past the last key run on from the first place, so that every pixel is written once.
    place = tl.where(rank < n_bg, n_pixels - n_bg + rank, rank - n_bg)
    pixel = tl.load(order_ptr + base + place, mask=inside, other=0)
    span = _of_rows(span_ptr, image, SCALED)
    if DK:
        dk = tl.where(is_key, dk * (scale * span), 0.0)
        channel = tl.arange(0, KEY_WIDTH)
        store_map(d_key_ptr + image * stride_kb, dk, pixel, channel, inside, n_keys, stride_kc, stride_kn, LAST)
    if DV:
        channel = first_column + tl.arange(0, BLOCK_C)
        unit = tl.load(lse_ptr + n_pixels + WIDTH + channel)
        v_ptr = values_of(moments_ptr, values_ptr, image, n_pixels, WIDTH)
        v_ptr += (n_pixels - n_bg + start_n).to(tl.int64) * (2 * WIDTH)
        own = row_tile(v_ptr, n_bg - start_n, 2 * first_column, 2 * WIDTH, BLOCK_N, 2 * BLOCK_C)
        value, _square = own.reshape(BLOCK_N, BLOCK_C, 2).split()
        of_first, of_second = dv.reshape(BLOCK_N, BLOCK_C, 2).split()
        dv = tl.where(is_key, (of_first + 2.0 * value.to(tl.float32) * of_second) * (span / unit)[None, :], 0.0)
        store_map(d_value_ptr + image * stride_vb, dv, pixel, channel, inside, n_channels, stride_vc, stride_vn, LAST)
