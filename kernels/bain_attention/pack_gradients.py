"""Gradients of the attention's moments as packed rows, and what the softmax's backward subtracts from each row.

With BAIN's affine, the same pass gives the gradients of the normalised map and of the affine: it reads what they need.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from scsco_fast.kernels.bain_attention.pack import (
    channels_last,
    load_map,
    paired,
    queries,
    region_affine,
    rounded,
    store_map,
)
from scsco_fast.kernels.launch import rows

BLOCK_P, BLOCK_C = 32, 32
NORM_BLOCK_P, NORM_WARPS = 64, 8  # more pixels for each partial sum of the affine's gradients
SPLITS = 16  # programs that look for an image's largest gradient, for each block of channels
WARPS, STAGES = 4, 2


@triton.jit
def _moments(moments_ptr, scalars_ptr, row, start, is_query, n_pixels, WIDTH: tl.constexpr, BLOCK_C: tl.constexpr):
    """first and variance of queries, [places, channels] each, 0 elsewhere, and the unit of each channel."""
    columns = 2 * start + tl.arange(0, 2 * BLOCK_C)
    mask = is_query[:, None] & (columns < 2 * WIDTH)[None, :]
    pairs = tl.load(moments_ptr + row[:, None] * (2 * WIDTH) + columns[None, :], mask=mask, other=0.0)
    first, variance = pairs.reshape(pairs.shape[0], BLOCK_C, 2).split()
    channels = start + tl.arange(0, BLOCK_C)
    unit = tl.load(scalars_ptr + n_pixels + WIDTH + channels, mask=channels < WIDTH, other=1.0)[None, :]
    return first, variance, unit


@triton.jit
def _moment_gradients(d_mean, d_std, first, variance, unit, eps):
    """da and db of scaled values, [places, channels] each."""
    d_var = tl.where(variance >= 0, 0.5 * d_std / tl.sqrt_rn(tl.maximum(variance, 0.0) + eps), 0.0)
    return (d_mean - 2.0 * first * d_var) * unit, d_var * unit * unit


@triton.jit
def bain_attention_bwd_range_kernel(
    d_mean_ptr,  # these as in bain_attention_bwd_pack_kernel
    d_std_ptr, affine_ptr, moments_ptr, scalars_ptr, order_ptr, counts_ptr,
    largest_ptr,  # (B, programs per image)
    stride_mb, stride_mc, stride_mn, stride_sb, stride_sc, stride_sn,
    eps, n_pixels, n_channels,
    WIDTH: tl.constexpr, NORM: tl.constexpr, SPLITS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
    LAST: tl.constexpr,
):  # fmt: skip
    """Largest |da| and |db|, so that float16 can hold them: gradients may be far below its smallest number."""
    split, image = tl.program_id(0), tl.program_id(2).to(tl.int64)
    first_channel = tl.program_id(1) * BLOCK_C
    channels = first_channel + tl.arange(0, BLOCK_C)
    n_query = queries(counts_ptr, image)
    scalars_ptr += image * (n_pixels + 2 * WIDTH)
    d_mean_ptr += image * stride_mb
    d_std_ptr += image * stride_sb
    length = tl.cdiv(n_query, SPLITS)
    end = tl.minimum((split + 1) * length, n_query)
    largest = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for start in range(split * length, end, BLOCK_P):
        place = start + tl.arange(0, BLOCK_P)
        keep = place < end
        pixels = tl.load(order_ptr + image * n_pixels + place, mask=keep, other=0)
        row = image * n_pixels + place
        first, variance, unit = _moments(moments_ptr, scalars_ptr, row, first_channel, keep, n_pixels, WIDTH, BLOCK_C)
        d_mean = load_map(d_mean_ptr, pixels, channels, keep, n_channels, stride_mc, stride_mn, LAST)
        d_std = load_map(d_std_ptr, pixels, channels, keep, n_channels, stride_sc, stride_sn, LAST)
        if NORM:
            gain = tl.load(affine_ptr + channels, mask=channels < n_channels, other=0.0)
            d_mean *= gain[None, :]
            d_std *= d_mean
        da, db = _moment_gradients(d_mean, d_std, first, variance, unit, tl.cast(eps, tl.float32))
        found = tl.maximum(tl.abs(da), tl.abs(db))
        largest = tl.maximum(largest, tl.where((channels < n_channels)[None, :], found, 0.0))
    target = (image * tl.num_programs(1) + tl.program_id(1)) * SPLITS + split
    tl.store(largest_ptr + target, tl.max(largest))


@triton.jit
def _span(largest_ptr, image, n_largest, BLOCK_L: tl.constexpr):
    """The power of two that makes an image's largest gradient 1/8 to 1/4; 1 if it is 0.

    Room for the sums over channels, and far from float16's smallest number.
    """
    index = tl.arange(0, BLOCK_L)
    largest = tl.max(tl.load(largest_ptr + image * n_largest + index, mask=index < n_largest, other=0.0), axis=0)
    exponent = largest.to(tl.int32, bitcast=True) & 0x7F800000
    return tl.where((largest > 1e-30) & (largest < 1e30), exponent.to(tl.float32, bitcast=True) * 8.0, 1.0)


@triton.jit
def bain_attention_bwd_pack_kernel(
    d_mean_ptr,  # (B, C, N), or the gradient of BAIN's output where NORM
    d_std_ptr,  # (B, C, N), or the normalised map where NORM
    affine_ptr,  # (4, C) where NORM
    moments_ptr,  # (B, N, 2 WIDTH)
    scalars_ptr,  # (B, N + 2 WIDTH)
    largest_ptr,  # (B, N_LARGEST)
    order_ptr,  # (B, N)
    counts_ptr,  # (B, 2)
    grads_ptr,  # (B, N, 2 WIDTH): da and db in turn
    delta_ptr,  # (B, N)
    span_ptr,  # (B,)
    dx_ptr,  # (B, C, N) gradient of the normalised map where NORM
    sum_ptr,  # (B, blocks, 4, C) sums for the affine's gradient where NORM
    stride_mb, stride_mc, stride_mn, stride_sb, stride_sc, stride_sn,
    stride_xb, stride_xc, stride_xn,  # of dx
    eps, n_pixels, n_channels, n_largest,
    WIDTH: tl.constexpr, NORM: tl.constexpr, SCALED: tl.constexpr, TF32: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_L: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """Gradients by place: rows of queries; with NORM the other pixels too, for dx and the affine."""
    block, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    n_fg = tl.load(counts_ptr + 2 * image).to(tl.int32)
    n_bg = tl.load(counts_ptr + 2 * image + 1).to(tl.int32)
    n_query = queries(counts_ptr, image)
    if not NORM:  # noqa: SIM102 (known when it is compiled, the other is not)
        if (block > 0) & (block * BLOCK_P >= n_query):
            return
    place = block * BLOCK_P + tl.arange(0, BLOCK_P)
    is_query = place < n_query
    is_fg = place < n_fg
    is_bg = (place >= n_pixels - n_bg) & (place < n_pixels)
    counted = is_fg | is_bg if NORM else is_query
    pixels = tl.load(order_ptr + image * n_pixels + place, mask=place < n_pixels, other=0)
    span = 1.0
    if SCALED:
        span = _span(largest_ptr, image, n_largest, BLOCK_L)
        if block == 0:
            tl.store(span_ptr + image, span)
    row = image * n_pixels + place
    scalars_ptr += image * (n_pixels + 2 * WIDTH)
    d_mean_ptr += image * stride_mb
    d_std_ptr += image * stride_sb
    delta = tl.zeros([BLOCK_P], tl.float32)
    for start in range(0, WIDTH, BLOCK_C):
        channels = start + tl.arange(0, BLOCK_C)
        first, variance, unit = _moments(moments_ptr, scalars_ptr, row, start, is_query, n_pixels, WIDTH, BLOCK_C)
        d_mean = load_map(d_mean_ptr, pixels, channels, counted, n_channels, stride_mc, stride_mn, LAST)
        d_std = load_map(d_std_ptr, pixels, channels, counted, n_channels, stride_sc, stride_sn, LAST)
        if NORM:
            grad, x = d_mean, d_std
            in_fg, in_bg = is_fg[:, None], is_bg[:, None]
            gain = region_affine(affine_ptr, channels, n_channels, is_fg)
            pivot = tl.load(scalars_ptr + n_pixels + channels, mask=channels < WIDTH, other=0.0)[None, :]
            # Without background, foreground pixels keep mean 0 and std 1.
            std = tl.where(is_query[:, None], tl.sqrt_rn(tl.maximum(variance, 0.0) + eps), 1.0)
            mean = tl.where(is_query[:, None], first + pivot, 0.0)
            d_mean = grad * gain
            d_std = d_mean * x
            dx = tl.where(in_fg, d_mean * std, tl.where(in_bg, d_mean, 0.0))
            inside = place < n_pixels
            store_map(dx_ptr + image * stride_xb, dx, pixels, channels, inside, n_channels, stride_xc, stride_xn, LAST)
            target = sum_ptr + (image * tl.num_programs(0) + block) * 4 * n_channels + channels
            is_channel = channels < n_channels
            tl.store(target, tl.sum(tl.where(in_fg, grad * (std * x + mean), 0.0), 0), mask=is_channel)
            tl.store(target + n_channels, tl.sum(tl.where(in_fg, grad, 0.0), 0), mask=is_channel)
            tl.store(target + 2 * n_channels, tl.sum(tl.where(in_bg, grad * x, 0.0), 0), mask=is_channel)
            tl.store(target + 3 * n_channels, tl.sum(tl.where(in_bg, grad, 0.0), 0), mask=is_channel)
        da, db = _moment_gradients(d_mean, d_std, first, variance, unit, tl.cast(eps, tl.float32))
        da = rounded(tl.where((channels < n_channels)[None, :], da / span, 0.0), grads_ptr.dtype.element_ty, TF32)
        db = rounded(tl.where((channels < n_channels)[None, :], db / span, 0.0), grads_ptr.dtype.element_ty, TF32)
        a = first / unit
        b = variance / (unit * unit) + a * a
        both = da.to(tl.float32) * a + db.to(tl.float32) * b
        delta += tl.sum(tl.where((channels < n_channels)[None, :], both, 0.0), axis=1)
        columns = 2 * start + tl.arange(0, 2 * BLOCK_C)
        mask = is_query[:, None] & (columns < 2 * WIDTH)[None, :]
        tl.store(grads_ptr + row[:, None] * (2 * WIDTH) + columns[None, :], paired(da, db), mask=mask)
    tl.store(delta_ptr + row, delta, mask=is_query)


class NormGradient(NamedTuple):
    """What the backward of BAIN's output takes beside the attention's."""

    affine: Tensor  # (4, C), contiguous, float32
    d_normalised: Tensor  # (B, C, H, W), written
    d_affine: Tensor  # (4, C), written


def pack_gradients(
    grads: tuple[Tensor, Tensor],
    order: Tensor,
    counts: Tensor,
    saved: tuple[Tensor, Tensor, Tensor],
    eps: float,
    tf32: bool,
    norm: NormGradient | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of both moments of every query as rows, what the softmax's backward subtracts, and the rows' unit.

    Args:
        grads: gradients of mean and std, or with `norm` of BAIN's output, and the normalised map.
        norm: BAIN's affine, and what receives the gradients of the normalised map and of the affine.
    """
    packed, moments, scalars = saved
    first, second = rows(grads[0]), rows(grads[1])
    batch, channels, pixels = first.shape
    columns = moments.shape[2] // 2
    scaled = packed.dtype == torch.float16
    half_rows = torch.empty(moments.shape, dtype=packed.dtype, device=moments.device)
    delta, span = scalars.new_empty((batch, pixels)), scalars.new_empty(batch)
    blocks = triton.cdiv(channels, BLOCK_C)
    largest = scalars.new_empty((batch, blocks * SPLITS)) if scaled else None
    affine, dx = (None, None) if norm is None else (norm.affine, rows(norm.d_normalised))
    strides = (*first.stride(), *second.stride())
    tiles = {"WIDTH": columns, "NORM": norm is not None, "BLOCK_C": BLOCK_C, "LAST": channels_last(first)}
    tiles |= {"num_stages": STAGES}
    if largest is not None:
        bain_attention_bwd_range_kernel[(SPLITS, blocks, batch)](
            *(first, second, affine, moments, scalars, order, counts, largest, *strides, eps, pixels, channels),
            SPLITS=SPLITS,
            BLOCK_P=BLOCK_P,
            num_warps=WARPS,
            **tiles,
        )
    block_p, warps = (BLOCK_P, WARPS) if norm is None else (NORM_BLOCK_P, NORM_WARPS)
    programs = triton.cdiv(pixels, block_p)
    sums = None if norm is None else scalars.new_empty((batch, programs, 4, channels))
    n_largest = 0 if largest is None else largest.shape[1]
    bain_attention_bwd_pack_kernel[(programs, batch)](
        *(first, second, affine, moments, scalars, largest, order, counts, half_rows, delta, span),
        *(dx, sums, *strides, *((0, 0, 0) if dx is None else dx.stride()), eps, pixels, channels, n_largest),
        SCALED=scaled,
        TF32=tf32,
        BLOCK_P=block_p,
        BLOCK_L=triton.next_power_of_2(n_largest),
        num_warps=warps,
        **tiles,
    )
    if norm is not None and sums is not None:
        torch.sum(sums, (0, 1), out=norm.d_affine)
    return half_rows, delta, span
