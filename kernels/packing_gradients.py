"""Gradients of the attention's moments as packed rows, and what the softmax's backward subtracts from each row."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from scsco_fast.kernels.launch import rows
from scsco_fast.kernels.packing import BLOCK_C, SPLITS, STAGES, WARPS, Packed, map_tile, queries

BLOCK_P = 32


@triton.jit
def _moment_gradients(
    d_mean_ptr,
    d_std_ptr,
    gain_ptr,
    first_ptr,
    variance_ptr,
    unit_ptr,
    pixels,
    keep,
    channels,
    n_channels,
    stride_mc,
    stride_mn,
    stride_sc,
    stride_sn,
    eps,
    NORM: tl.constexpr,
):
    """da and db of scaled values, and a and b themselves, [pixels, channels] each; 0 outside the image.

    Where NORM, `d_mean_ptr` holds the gradient of y = (std * x + mean) * gain + bias and `d_std_ptr` holds x.
    """
    mask = keep[:, None] & (channels < n_channels)[None, :]
    rows = pixels[:, None] * n_channels + channels[None, :]
    first = tl.load(first_ptr + rows, mask=mask, other=0.0)
    variance = tl.load(variance_ptr + rows, mask=mask, other=0.0)
    unit = tl.load(unit_ptr + channels, mask=channels < n_channels, other=1.0)[None, :]
    d_mean = tl.trans(map_tile(d_mean_ptr, channels, pixels, keep, n_channels, stride_mc, stride_mn))
    d_std = tl.trans(map_tile(d_std_ptr, channels, pixels, keep, n_channels, stride_sc, stride_sn))
    if NORM:
        gain = tl.load(gain_ptr + channels, mask=channels < n_channels, other=0.0).to(tl.float32)
        d_mean *= gain[None, :]
        d_std *= d_mean
    d_var = tl.where(variance >= 0, 0.5 * d_std / tl.sqrt_rn(tl.maximum(variance, 0.0) + eps), 0.0)
    d_first = d_mean - 2.0 * first * d_var
    a = first / unit
    return d_first * unit, d_var * unit * unit, a, variance / (unit * unit) + a * a


@triton.jit
def bain_attention_bwd_range_kernel(
    d_mean_ptr,  # as in bain_attention_bwd_pack_kernel
    d_std_ptr,
    gain_ptr,
    first_ptr,
    variance_ptr,
    unit_ptr,
    order_ptr,
    counts_ptr,
    largest_ptr,  # (B, programs per image)
    stride_mb,
    stride_mc,
    stride_mn,
    stride_sb,
    stride_sc,
    stride_sn,
    eps,
    n_pixels,
    n_channels,
    WIDTH: tl.constexpr,
    NORM: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Largest |da| and |db|, so that float16 can hold them: gradients may be far below its smallest number."""
    split, image = tl.program_id(0), tl.program_id(2).to(tl.int64)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    n_query = queries(counts_ptr, image)
    rows = image * n_pixels * n_channels
    length = tl.cdiv(n_query, SPLITS)
    end = tl.minimum((split + 1) * length, n_query)
    largest = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for start in range(split * length, end, BLOCK_P):
        place = start + tl.arange(0, BLOCK_P)
        keep = place < end
        pixels = tl.load(order_ptr + image * n_pixels + place, mask=keep, other=0)
        da, db, _a, _b = _moment_gradients(
            d_mean_ptr + image * stride_mb,
            d_std_ptr + image * stride_sb,
            gain_ptr,
            first_ptr + rows,
            variance_ptr + rows,
            unit_ptr + image * WIDTH,
            pixels,
            keep,
            channels,
            n_channels,
            stride_mc,
            stride_mn,
            stride_sc,
            stride_sn,
            tl.cast(eps, tl.float32),
            NORM,
        )
        largest = tl.maximum(largest, tl.maximum(tl.abs(da), tl.abs(db)))
    target = (image * tl.num_programs(1) + tl.program_id(1)) * SPLITS + split
    tl.store(largest_ptr + target, tl.max(tl.max(largest, axis=1), axis=0))


@triton.jit
def bain_attention_bwd_pack_kernel(
    d_mean_ptr,  # (B, C, N), or the gradient of y where NORM
    d_std_ptr,  # (B, C, N), or the normalised map where NORM
    gain_ptr,  # (C,) the foreground's gain where NORM
    first_ptr,  # (B, N, C)
    variance_ptr,  # (B, N, C)
    lse_ptr,  # (B, N)
    unit_ptr,  # (B, WIDTH)
    largest_ptr,  # (B, N_LARGEST)
    order_ptr,  # (B, N)
    counts_ptr,  # (B, 2)
    da_ptr,  # (B, N, WIDTH)
    db_ptr,  # (B, N, WIDTH)
    delta_ptr,  # (B, N)
    lse_rows_ptr,  # (B, N), in base 2
    span_ptr,  # (B,)
    stride_mb,
    stride_mc,
    stride_mn,
    stride_sb,
    stride_sc,
    stride_sn,
    eps,
    n_pixels,
    n_channels,
    n_largest,
    WIDTH: tl.constexpr,
    NORM: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    image = tl.program_id(1).to(tl.int64)
    n_query = queries(counts_ptr, image)
    if tl.program_id(0) > 0 and tl.program_id(0) * BLOCK_P >= n_query:
        return
    place = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    keep = place < n_query
    pixels = tl.load(order_ptr + image * n_pixels + place, mask=keep, other=0)
    span = 1.0
    if SCALED:
        index = tl.arange(0, BLOCK_L)
        largest = tl.max(tl.load(largest_ptr + image * n_largest + index, mask=index < n_largest, other=0.0), axis=0)
        exponent = largest.to(tl.int32, bitcast=True) & 0x7F800000
        # The largest gradient becomes 1/8 to 1/4: room for the sums over channels, far from float16's smallest number.
        span = tl.where((largest > 1e-30) & (largest < 1e30), exponent.to(tl.float32, bitcast=True) * 8.0, 1.0)
        if tl.program_id(0) == 0:
            tl.store(span_ptr + image, span)
    rows = image * n_pixels * n_channels
    target = image * n_pixels * WIDTH
    delta = tl.zeros([BLOCK_P], tl.float32)
    for start in range(0, WIDTH, BLOCK_C):
        channels = start + tl.arange(0, BLOCK_C)
        da, db, a, b = _moment_gradients(
            d_mean_ptr + image * stride_mb,
            d_std_ptr + image * stride_sb,
            gain_ptr,
            first_ptr + rows,
            variance_ptr + rows,
            unit_ptr + image * WIDTH,
            pixels,
            keep,
            channels,
            n_channels,
            stride_mc,
            stride_mn,
            stride_sc,
            stride_sn,
            tl.cast(eps, tl.float32),
            NORM,
        )
        da = (da / span).to(da_ptr.dtype.element_ty)
        db = (db / span).to(db_ptr.dtype.element_ty)
        delta += tl.sum(da.to(tl.float32) * a + db.to(tl.float32) * b, axis=1)
        offsets = target + place.to(tl.int64)[:, None] * WIDTH + channels[None, :]
        mask = keep[:, None] & (channels < WIDTH)[None, :]
        tl.store(da_ptr + offsets, da, mask=mask)
        tl.store(db_ptr + offsets, db, mask=mask)
    lse = tl.load(lse_ptr + image * n_pixels + pixels, mask=keep, other=0.0)
    tl.store(delta_ptr + image * n_pixels + place, delta, mask=keep)
    tl.store(lse_rows_ptr + image * n_pixels + place, lse * 1.4426950408889634, mask=keep)


@dataclass
class PackedGradients:
    """Gradients of the moments of every query, divided by `span` in float16."""

    first: Tensor  # (B, N, WIDTH)
    second: Tensor  # (B, N, WIDTH)
    delta: Tensor  # (B, N) float32
    lse: Tensor  # (B, N) float32, in base 2
    span: Tensor  # (B,) float32


def pack_gradients(
    grad_mean: Tensor,
    grad_std: Tensor,
    packed: Packed,
    order: Tensor,
    counts: Tensor,
    first: Tensor,
    variance: Tensor,
    lse: Tensor,
    eps: float,
    gain: Tensor | None,
) -> PackedGradients:
    """Gradients of both moments of every query as rows, and what the softmax's backward subtracts.

    With `gain` (C,), `grad_mean` is the gradient of y = (std * x + mean) * gain + bias, and `grad_std` is x.
    """
    grad_mean, grad_std = rows(grad_mean), rows(grad_std)
    batch, channels, pixels = grad_mean.shape
    width = packed.value.shape[2]
    da, db = torch.empty_like(packed.value), torch.empty_like(packed.value)
    delta, lse_rows = torch.empty_like(lse), torch.empty_like(lse)
    span = lse.new_empty(batch)
    scaled = packed.value.dtype == torch.float16
    blocks = triton.cdiv(channels, BLOCK_C)
    largest = lse.new_empty((batch, blocks * SPLITS if scaled else 1))
    moments = (grad_mean, grad_std, gain, first, variance)
    sizes = (*grad_mean.stride(), *grad_std.stride(), eps, pixels, channels)
    tiles = {"WIDTH": width, "NORM": gain is not None, "BLOCK_P": BLOCK_P, "BLOCK_C": BLOCK_C}
    tiles |= {"num_warps": WARPS, "num_stages": STAGES}
    if scaled:
        bain_attention_bwd_range_kernel[(SPLITS, blocks, batch)](
            *moments, packed.unit, order, counts, largest, *sizes, SPLITS=SPLITS, **tiles
        )
    targets = (da, db, delta, lse_rows, span)
    bain_attention_bwd_pack_kernel[(triton.cdiv(pixels, BLOCK_P), batch)](
        *moments,
        lse,
        packed.unit,
        largest,
        order,
        counts,
        *targets,
        *sizes,
        largest.shape[1],
        SCALED=scaled,
        BLOCK_L=triton.next_power_of_2(largest.shape[1]),
        **tiles,
    )
    return PackedGradients(*targets)
