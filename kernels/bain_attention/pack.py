"""Maps (B, C, H, W) of any layout into the packed rows that the attention kernels read.

`order` lists an image's pixels foreground first, background last; a row stands at its pixel's place in it. So every
block of rows is one contiguous read and the ragged ends are a comparison with a count. What lies where is said in
`scsco_fast.kernels.bain_attention`. Rows that are no query and no key are never written and hold anything; columns past
the channels are zeros.

Values are centred by the background's mean and divided by a power of two near four standard deviations, per image and
channel: without the former bfloat16 loses the variance once |mean| / std passes 3, without the latter the squares of
values above 255 overflow in float16. A power of two rounds nothing. v' and v'^2 lie side by side, so that both moments
are one ordinary attention with 2C columns, and one thread holds both of a channel.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from scsco_fast.kernels.launch import rows
from scsco_fast.kernels.rounding import to_tf32

SPLITS = 16  # partial sums per image and channel block: their number is fixed, so is the order of the sum
FUSED_PIXELS = 1024  # up to here every packing program forms the moments itself: a launch costs more than reading again
BLOCK_P = 64
BLOCK_C = 32
WARPS = 4
STAGES = 2
# Where a program forms moments or writes BAIN's output: at fewer registers sm_86, 89 and 100 spill up to 80 bytes.
ALL_REGISTERS = {"maxnreg": 255}


@triton.jit
def load_map(ptr, pixels, channels, keep, n_channels, stride_c, stride_n, LAST: tl.constexpr):
    """[pixels, channels] of one image's map in float32, 0 where not `keep`. LAST: its channels lie side by side."""
    pixels, channels = pixels.to(tl.int64), channels.to(tl.int64)
    if LAST:
        offsets = pixels[:, None] * stride_n + channels[None, :] * stride_c
        mask = keep[:, None] & (channels < n_channels)[None, :]
        return tl.load(ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    else:
        offsets = channels[:, None] * stride_c + pixels[None, :] * stride_n
        mask = (channels < n_channels)[:, None] & keep[None, :]
        return tl.trans(tl.load(ptr + offsets, mask=mask, other=0.0).to(tl.float32))


@triton.jit
def store_map(ptr, tile, pixels, channels, keep, n_channels, stride_c, stride_n, LAST: tl.constexpr):
    """The counterpart of `load_map`: neighbouring threads write neighbouring channels, or neighbouring pixels."""
    pixels, channels = pixels.to(tl.int64), channels.to(tl.int64)
    tile = tile.to(ptr.dtype.element_ty)
    if LAST:
        offsets = pixels[:, None] * stride_n + channels[None, :] * stride_c
        tl.store(ptr + offsets, tile, mask=keep[:, None] & (channels < n_channels)[None, :])
    else:
        offsets = channels[:, None] * stride_c + pixels[None, :] * stride_n
        tl.store(ptr + offsets, tl.trans(tile), mask=(channels < n_channels)[:, None] & keep[None, :])


@triton.jit
def paired(first, second):
    """[rows, 2 columns]: the columns of both in turn."""
    return tl.join(first, second).reshape(first.shape[0], 2 * first.shape[1])


@triton.jit
def rounded(x, DTYPE: tl.constexpr, TF32: tl.constexpr):
    """float32 `x` as an operand of a matrix product in DTYPE."""
    return to_tf32(x) if TF32 else x.to(DTYPE)


@triton.jit
def values_of(moments_ptr, values_ptr, image, n_pixels, WIDTH: tl.constexpr):
    """The row of place 0, counted so that the last place's row ends where the image's moments end."""
    RATIO: tl.constexpr = (
        moments_ptr.dtype.element_ty.primitive_bitwidth // values_ptr.dtype.element_ty.primitive_bitwidth
    )
    return values_ptr + (image * RATIO + (RATIO - 1)) * n_pixels * (2 * WIDTH)


@triton.jit
def queries(counts_ptr, image):
    """Foreground pixels that have something to attend to."""
    n_bg = tl.load(counts_ptr + 2 * image + 1)
    return tl.where(n_bg > 0, tl.load(counts_ptr + 2 * image), 0).to(tl.int32)


@triton.jit
def _shift(ptr, channels, order_ptr, n_pixels, n_bg, n_channels, stride_c, stride_n):
    """The first background pixel's value of each channel: sums of differences from it cancel no digits."""
    pixel = tl.load(order_ptr + tl.minimum(n_pixels - n_bg, n_pixels - 1))
    mask = (channels < n_channels) & (n_bg > 0)
    return tl.load(ptr + channels.to(tl.int64) * stride_c + pixel * stride_n, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _sums(
    v_ptr,
    channels,
    order_ptr,
    shift, first_rank, last_rank, n_pixels, n_bg, n_channels,
    stride_c, stride_n,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """Sums of v - shift and of its square over background pixels of these ranks, [BLOCK_C] each."""
    first = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    second = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for start in range(first_rank, last_rank, BLOCK_P):
        rank = start + tl.arange(0, BLOCK_P)
        keep = rank < last_rank
        pixels = tl.load(order_ptr + (n_pixels - n_bg) + rank, mask=keep, other=0)
        v = load_map(v_ptr, pixels, channels, keep, n_channels, stride_c, stride_n, LAST)
        v = tl.where(keep[:, None], v - shift[None, :], 0.0)
        first += v
        second += v * v
    return tl.sum(first, axis=0), tl.sum(second, axis=0)


@triton.jit
def bain_attention_moments_kernel(
    v_ptr,  # (B, C, N)
    order_ptr,  # (B, N)
    counts_ptr,  # (B, 2)
    sums_ptr,  # (B, 2, SPLITS, C)
    stride_vb, stride_vc, stride_vn,
    n_pixels, n_channels,
    SPLITS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    split, image = tl.program_id(0), tl.program_id(2).to(tl.int64)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    n_bg = tl.load(counts_ptr + 2 * image + 1).to(tl.int32)
    order_ptr += image * n_pixels
    v_ptr += image * stride_vb
    shift = _shift(v_ptr, channels, order_ptr, n_pixels, n_bg, n_channels, stride_vc, stride_vn)
    length = tl.cdiv(n_bg, SPLITS)
    ends = split * length, tl.minimum((split + 1) * length, n_bg)
    sizes = (n_pixels, n_bg, n_channels, stride_vc, stride_vn)
    first, second = _sums(v_ptr, channels, order_ptr, shift, *ends, *sizes, BLOCK_P, BLOCK_C, LAST)
    sums_ptr += (image * 2 * SPLITS + split) * n_channels
    tl.store(sums_ptr + channels, first, mask=channels < n_channels)
    tl.store(sums_ptr + SPLITS * n_channels + channels, second, mask=channels < n_channels)


@triton.jit
def _pivot_and_unit(first, second, shift, n_bg, headroom):
    """Background mean of each channel, and the power of two in (2 sigma, 4 sigma] times `headroom`.

    The latter is 1 if sigma is 0 or not finite, and at most 2^50: the square of units must be a float32.
    """
    count = tl.maximum(n_bg, 1).to(tl.float32)
    first, second = first / count, second / count
    sigma = tl.sqrt(tl.maximum(second - first * first, 0.0))
    exponent = sigma.to(tl.int32, bitcast=True) & 0x7F800000
    unit = tl.minimum(exponent.to(tl.float32, bitcast=True) * 4.0 * headroom, 2.0**50)
    return shift + first, tl.where((sigma > 1e-15) & (sigma < float("inf")), unit, 1.0)


@triton.jit
def _merged_sums(sums_ptr, channels, n_channels, SPLITS: tl.constexpr):
    offsets = tl.arange(0, SPLITS)[:, None] * n_channels + channels[None, :]
    mask = (channels < n_channels)[None, :]
    first = tl.sum(tl.load(sums_ptr + offsets, mask=mask, other=0.0), axis=0)
    second = tl.sum(tl.load(sums_ptr + SPLITS * n_channels + offsets, mask=mask, other=0.0), axis=0)
    return first, second


@triton.jit
def region_affine(ptr, channels, n_channels, is_fg):
    """The foreground's or, two rows below, the background's number of each channel, [pixels, channels]."""
    mask = channels < n_channels
    fg = tl.load(ptr + channels, mask=mask, other=0.0)
    bg = tl.load(ptr + 2 * n_channels + channels, mask=mask, other=0.0)
    return tl.where(is_fg[:, None], fg[None, :], bg[None, :])


@triton.jit
def bain_attention_pack_kernel(
    q_ptr,  # (B, D, N)
    k_ptr,  # (B, D, N)
    v_ptr,  # (B, C, N)
    x_ptr,  # (B, C, N) normalised map where NORM
    affine_ptr,  # (4, C) where NORM: gain and offset of the foreground, of the background
    order_ptr,  # (B, N)
    counts_ptr,  # (B, 2)
    sums_ptr,  # (B, 2, SPLITS, C), None where FUSED
    rows_ptr,  # (B, N, KEY_WIDTH)
    values_ptr,  # of the moments' memory: (B, N, 2 WIDTH), counted from the back
    moments_ptr,
    scalars_ptr,  # (B, N + 2 WIDTH)
    mean_ptr,  # (B, C, N), or BAIN's output where NORM
    std_ptr,  # (B, C, N), None where NORM
    stride_qb, stride_qc, stride_qn, stride_kb, stride_kc, stride_kn, stride_vb, stride_vc, stride_vn,
    stride_xb, stride_xc, stride_xn, stride_yb, stride_yc, stride_yn,  # y: of mean and std
    headroom, n_pixels, n_keys, n_channels,  # N, D, C
    KEY_WIDTH: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr, NEGATE: tl.constexpr, FUSED: tl.constexpr,
    NORM: tl.constexpr, TF32: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """Rows of queries, keys and values, and the outputs of all pixels that are no query."""
    image = tl.program_id(2).to(tl.int64)
    place = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = place < n_pixels
    is_fg = place < tl.load(counts_ptr + 2 * image).to(tl.int32)
    n_bg = tl.load(counts_ptr + 2 * image + 1).to(tl.int32)
    is_key = inside & (place >= n_pixels - n_bg)
    order_ptr += image * n_pixels
    pixels = tl.load(order_ptr + place, mask=inside, other=0)
    KEY_BLOCKS: tl.constexpr = (KEY_WIDTH + BLOCK_C - 1) // BLOCK_C
    if tl.program_id(1) < KEY_BLOCKS:
        channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
        q = load_map(q_ptr + image * stride_qb, pixels, channels, is_fg, n_keys, stride_qc, stride_qn, LAST)
        k = load_map(k_ptr + image * stride_kb, pixels, channels, is_key, n_keys, stride_kc, stride_kn, LAST)
        tile = k - q if NEGATE else k + q  # one of the two is 0
        row = rows_ptr + (image * n_pixels + place)[:, None] * KEY_WIDTH + channels[None, :]
        mask = (is_fg | is_key)[:, None] & (channels < KEY_WIDTH)[None, :]
        tl.store(row, rounded(tile, rows_ptr.dtype.element_ty, TF32), mask=mask)
    else:
        first_channel = (tl.program_id(1) - KEY_BLOCKS) * BLOCK_C
        channels = first_channel + tl.arange(0, BLOCK_C)
        v_ptr += image * stride_vb
        shift = _shift(v_ptr, channels, order_ptr, n_pixels, n_bg, n_channels, stride_vc, stride_vn)
        sizes = (n_pixels, n_bg, n_channels, stride_vc, stride_vn)
        if FUSED:
            first, second = _sums(v_ptr, channels, order_ptr, shift, 0, n_bg, *sizes, 2 * BLOCK_P, BLOCK_C, LAST)
        else:
            first, second = _merged_sums(sums_ptr + image * 2 * SPLITS * n_channels, channels, n_channels, SPLITS)
        pivot, unit = _pivot_and_unit(first, second, shift, n_bg, tl.cast(headroom, tl.float32))
        if tl.program_id(0) == 0:
            scalars_ptr += image * (n_pixels + 2 * WIDTH) + n_pixels
            tl.store(scalars_ptr + channels, pivot, mask=channels < WIDTH)
            tl.store(scalars_ptr + WIDTH + channels, unit, mask=channels < WIDTH)
        tile = load_map(v_ptr, pixels, channels, is_key, n_channels, stride_vc, stride_vn, LAST)
        tile = tl.where((channels < n_channels)[None, :], (tile - pivot[None, :]) / unit[None, :], 0.0)
        value = rounded(tile, values_ptr.dtype.element_ty, TF32)
        square = rounded(value.to(tl.float32) * value.to(tl.float32), values_ptr.dtype.element_ty, TF32)
        columns = 2 * first_channel + tl.arange(0, 2 * BLOCK_C)
        base = values_of(moments_ptr, values_ptr, image, n_pixels, WIDTH)
        target = base + place.to(tl.int64)[:, None] * (2 * WIDTH) + columns[None, :]
        tl.store(target, paired(value, square), mask=is_key[:, None] & (columns < 2 * WIDTH)[None, :])
        other = inside & (place >= queries(counts_ptr, image))
        mean_ptr += image * stride_yb
        if NORM:
            counted = is_fg | is_key
            x_ptr += image * stride_xb
            x = load_map(x_ptr, pixels, channels, other & counted, n_channels, stride_xc, stride_xn, LAST)
            gain = region_affine(affine_ptr, channels, n_channels, is_fg)
            bias = region_affine(affine_ptr + n_channels, channels, n_channels, is_fg)
            y = tl.where(counted[:, None], x * gain + bias, 0.0)
            store_map(mean_ptr, y, pixels, channels, other, n_channels, stride_yc, stride_yn, LAST)
        else:
            zero = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
            std_ptr += image * stride_yb
            store_map(mean_ptr, zero, pixels, channels, other, n_channels, stride_yc, stride_yn, LAST)
            store_map(std_ptr, zero + 1.0, pixels, channels, other, n_channels, stride_yc, stride_yn, LAST)


def pack(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    order: Tensor,
    counts: Tensor,
    saved: tuple[Tensor, Tensor, Tensor],
    outputs: tuple[Tensor, Tensor | None],
    norm: tuple[Tensor, Tensor] | None,
    negate: bool,
    tf32: bool,
) -> None:
    """Fill `saved` with rows and scalars, and `outputs`, mean and std or BAIN's output, where no pixel asks.

    Args:
        norm: the normalised map and BAIN's affine (4, C), contiguous, float32; None: `outputs` are mean and std.
        negate: queries change sign.
        tf32: float32 rows are rounded to TF32.
    """
    packed, moments, scalars = saved
    batch, channels = value.shape[:2]
    q, k, v, y = rows(query), rows(key), rows(value), rows(outputs[0])
    x = None if norm is None else rows(norm[0])
    pixels, key_columns, columns = v.shape[2], packed.shape[2], moments.shape[2] // 2
    tiles = {"SPLITS": SPLITS, "BLOCK_P": BLOCK_P, "BLOCK_C": BLOCK_C, "LAST": channels_last(v)}
    tiles |= {"num_warps": WARPS, "num_stages": STAGES}
    sums = None if pixels <= FUSED_PIXELS else value.new_empty((batch, 2, SPLITS, channels), dtype=torch.float32)
    if sums is not None:
        bain_attention_moments_kernel[(SPLITS, triton.cdiv(channels, BLOCK_C), batch)](
            v, order, counts, sums, *v.stride(), pixels, channels, **tiles
        )
    blocks = triton.cdiv(key_columns, BLOCK_C) + triton.cdiv(columns, BLOCK_C)
    bain_attention_pack_kernel[(triton.cdiv(pixels, BLOCK_P), blocks, batch)](
        *(q, k, v, x, None if norm is None else norm[1], order, counts, sums),
        *(packed, moments.view(packed.dtype), moments, scalars, y, None if outputs[1] is None else rows(outputs[1])),
        *(*q.stride(), *k.stride(), *v.stride(), *((0, 0, 0) if x is None else x.stride()), *y.stride()),
        *(headroom_of(pixels), pixels, q.shape[1], channels),
        KEY_WIDTH=key_columns,
        WIDTH=columns,
        NEGATE=negate,
        FUSED=sums is None,
        NORM=norm is not None,
        TF32=tf32,
        **tiles,
        **(ALL_REGISTERS if sums is None or norm is not None else {}),
    )


def headroom_of(pixels: int) -> float:
    """Further factor of the unit: |v - pivot| <= sigma sqrt(n), so v'^2 stays below 2^14 for any number of pixels."""
    return 2.0 ** max(0, math.ceil(math.log2(pixels) / 2) - 8)


def channels_last(rows: Tensor) -> bool:
    """Whether neighbouring channels of a map (B, C, N) lie side by side, and neighbouring pixels do not."""
    return rows.stride(1) == 1 and rows.stride(2) != 1


FLOAT32_POINTERS = (*("sums", "moments", "scalars", "part", "part_lse", "delta", "span", "largest", "sum", "affine"),)


def argument_type(argument: str, dtype: str) -> str:
    """Type of an argument of the attention's kernels, by name, for maps and rows of `dtype`."""
    if not argument.endswith("_ptr"):
        return "fp32" if argument in ("scale", "eps", "headroom") else "i32"
    name = argument.removesuffix("_ptr")
    return "*i64" if name in ("order", "counts") else "*fp32" if name in FLOAT32_POINTERS else f"*{dtype}"
