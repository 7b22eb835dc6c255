"""Maps (B, C, H, W) of any layout into the packed rows that the attention kernels read.

`order` lists an image's pixels foreground first, background last. A packed matrix (B, N, width) holds queries, and
gradients of their moments, at their place in that order; keys and values at their rank in the background. So every
block of rows is one contiguous read and the ragged ends are a comparison with a count. Rows that are no query or no key
are never written and hold anything; columns are filled with zeros up to `width`.

Values are centred by the background's mean and divided by a power of two near four standard deviations, per image and
channel: without the former bfloat16 loses the variance once |mean| / std passes 3, without the latter the squares of
values above 255 overflow in float16. A power of two rounds nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from scsco_fast.kernels.launch import common_dtype, rows
from scsco_fast.kernels.resources import Case

SPLITS = 16  # partial sums per image and channel block: their number is fixed, so is the order of the sum
BLOCK_P = 64
BLOCK_C = 32
WARPS = 4
STAGES = 2


@triton.jit
def map_tile(ptr, channels, pixels, keep, n_channels, stride_c, stride_n):  # [channels, pixels], float32
    offsets = channels.to(tl.int64)[:, None] * stride_c + pixels[None, :] * stride_n
    mask = (channels < n_channels)[:, None] & keep[None, :]
    return tl.load(ptr + offsets, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _shift(ptr, channels, order_ptr, n_pixels, n_bg, n_channels, stride_c, stride_n):
    """The first background pixel's value of each channel: sums of differences from it cancel no digits."""
    pixel = tl.load(order_ptr + tl.minimum(n_pixels - n_bg, n_pixels - 1))
    mask = (channels < n_channels) & (n_bg > 0)
    return tl.load(ptr + channels.to(tl.int64) * stride_c + pixel * stride_n, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def bain_attention_moments_kernel(
    v_ptr,  # (B, C, N)
    order_ptr,  # (B, N)
    counts_ptr,  # (B, 2)
    sums_ptr,  # (B, 2, SPLITS, C)
    stride_vb,
    stride_vc,
    stride_vn,
    n_pixels,
    n_channels,
    SPLITS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    split, image = tl.program_id(0), tl.program_id(2).to(tl.int64)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    n_bg = tl.load(counts_ptr + 2 * image + 1).to(tl.int32)
    order_ptr += image * n_pixels
    v_ptr += image * stride_vb
    shift = _shift(v_ptr, channels, order_ptr, n_pixels, n_bg, n_channels, stride_vc, stride_vn)
    length = tl.cdiv(n_bg, SPLITS)
    end = tl.minimum((split + 1) * length, n_bg)
    first = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    second = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    for start in range(split * length, end, BLOCK_P):
        rank = start + tl.arange(0, BLOCK_P)
        keep = rank < end
        pixels = tl.load(order_ptr + (n_pixels - n_bg) + rank, mask=keep, other=0)
        v = map_tile(v_ptr, channels, pixels, keep, n_channels, stride_vc, stride_vn)
        v = tl.where(keep[None, :], v - shift[:, None], 0.0)
        first += v
        second += v * v
    sums_ptr += (image * 2 * SPLITS + split) * n_channels
    tl.store(sums_ptr + channels, tl.sum(first, axis=1), mask=channels < n_channels)
    tl.store(sums_ptr + SPLITS * n_channels + channels, tl.sum(second, axis=1), mask=channels < n_channels)


@triton.jit
def _pivot_and_unit(sums_ptr, shift, channels, n_bg, n_channels, headroom, SPLITS: tl.constexpr):
    """Background mean of each channel, and the power of two in (2 sigma, 4 sigma] times `headroom`; 1 if sigma is 0."""
    offsets = tl.arange(0, SPLITS)[:, None] * n_channels + channels[None, :]
    mask = (channels < n_channels)[None, :]
    count = tl.maximum(n_bg, 1).to(tl.float32)
    first = tl.sum(tl.load(sums_ptr + offsets, mask=mask, other=0.0), axis=0) / count
    second = tl.sum(tl.load(sums_ptr + SPLITS * n_channels + offsets, mask=mask, other=0.0), axis=0) / count
    sigma = tl.sqrt(tl.maximum(second - first * first, 0.0))
    exponent = sigma.to(tl.int32, bitcast=True) & 0x7F800000
    unit = exponent.to(tl.float32, bitcast=True) * 4.0 * headroom
    # Outside this range the squares of units leave float32; such channels are constant or not finite.
    usable = (sigma > 1e-15) & (sigma < 1e15)
    return shift + first, tl.where(usable, unit, 1.0)


@triton.jit
def _copy_rows(
    ptr,
    target_ptr,
    places,
    order_ptr,
    n_pixels,
    row,
    keep,
    channels,
    n_channels,
    stride_c,
    stride_n,
    WIDTH: tl.constexpr,
):
    pixels = tl.load(order_ptr + places, mask=keep, other=0)
    tile = map_tile(ptr, channels, pixels, keep, n_channels, stride_c, stride_n)
    _store_rows(target_ptr, tile, row, keep, channels, WIDTH)


@triton.jit
def _store_rows(target_ptr, tile, row, keep, channels, WIDTH: tl.constexpr):
    offsets = row.to(tl.int64)[:, None] * WIDTH + channels[None, :]
    mask = keep[:, None] & (channels < WIDTH)[None, :]
    tl.store(target_ptr + offsets, tl.trans(tile).to(target_ptr.dtype.element_ty), mask=mask)


@triton.jit
def bain_attention_pack_kernel(
    q_ptr,  # (B, D, N)
    k_ptr,  # (B, D, N)
    v_ptr,  # (B, C, N)
    order_ptr,  # (B, N)
    counts_ptr,  # (B, 2)
    sums_ptr,  # (B, 2, SPLITS, C)
    q_rows_ptr,  # (B, N, KEY_WIDTH)
    k_rows_ptr,  # (B, N, KEY_WIDTH)
    v_rows_ptr,  # (B, N, WIDTH)
    pivot_ptr,  # (B, WIDTH)
    unit_ptr,  # (B, WIDTH)
    stride_qb,
    stride_qc,
    stride_qn,
    stride_kb,
    stride_kc,
    stride_kn,
    stride_vb,
    stride_vc,
    stride_vn,
    headroom,
    n_pixels,
    n_keys,  # D
    n_channels,  # C
    KEY_WIDTH: tl.constexpr,
    WIDTH: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    image = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    n_fg = tl.load(counts_ptr + 2 * image).to(tl.int32)
    n_bg = tl.load(counts_ptr + 2 * image + 1).to(tl.int32)
    order_ptr += image * n_pixels
    KEY_BLOCKS: tl.constexpr = (KEY_WIDTH + BLOCK_C - 1) // BLOCK_C
    block = tl.program_id(1)
    background = order_ptr + (n_pixels - n_bg)
    if block < KEY_BLOCKS:
        channels = block * BLOCK_C + tl.arange(0, BLOCK_C)
        target = q_rows_ptr + image * n_pixels * KEY_WIDTH
        source = q_ptr + image * stride_qb
        _copy_rows(
            source, target, row, order_ptr, n_pixels, row, row < n_fg, channels, n_keys, stride_qc, stride_qn, KEY_WIDTH
        )
    elif block < 2 * KEY_BLOCKS:
        channels = (block - KEY_BLOCKS) * BLOCK_C + tl.arange(0, BLOCK_C)
        target = k_rows_ptr + image * n_pixels * KEY_WIDTH
        source = k_ptr + image * stride_kb
        _copy_rows(
            source,
            target,
            row,
            background,
            n_pixels,
            row,
            row < n_bg,
            channels,
            n_keys,
            stride_kc,
            stride_kn,
            KEY_WIDTH,
        )
    else:
        channels = (block - 2 * KEY_BLOCKS) * BLOCK_C + tl.arange(0, BLOCK_C)
        source = v_ptr + image * stride_vb
        shift = _shift(source, channels, order_ptr, n_pixels, n_bg, n_channels, stride_vc, stride_vn)
        sums_ptr += image * 2 * SPLITS * n_channels
        pivot, unit = _pivot_and_unit(
            sums_ptr, shift, channels, n_bg, n_channels, tl.cast(headroom, tl.float32), SPLITS
        )
        if tl.program_id(0) == 0:
            tl.store(pivot_ptr + image * WIDTH + channels, pivot, mask=channels < WIDTH)
            tl.store(unit_ptr + image * WIDTH + channels, unit, mask=channels < WIDTH)
        keep = row < n_bg
        pixels = tl.load(background + row, mask=keep, other=0)
        tile = map_tile(source, channels, pixels, keep, n_channels, stride_vc, stride_vn)
        tile = tl.where((channels < n_channels)[:, None], (tile - pivot[:, None]) / unit[:, None], 0.0)
        _store_rows(v_rows_ptr + image * n_pixels * WIDTH, tile, row, keep, channels, WIDTH)


@triton.jit
def queries(counts_ptr, image):
    """Foreground pixels that have something to attend to."""
    n_bg = tl.load(counts_ptr + 2 * image + 1)
    return tl.where(n_bg > 0, tl.load(counts_ptr + 2 * image), 0).to(tl.int32)


@dataclass
class Packed:
    """One batch as rows, in the dtype that matrices are multiplied in."""

    query: Tensor  # (B, N, KEY_WIDTH)
    key: Tensor  # (B, N, KEY_WIDTH)
    value: Tensor  # (B, N, WIDTH)
    pivot: Tensor  # (B, WIDTH) float32
    unit: Tensor  # (B, WIDTH) float32


def pack(
    query: Tensor, key: Tensor, value: Tensor, order: Tensor, counts: Tensor, key_width: int, width: int
) -> Packed:
    """Queries, keys and centred values as rows in the dtype of query and key, `key_width` and `width` columns wide."""
    query, key, value = rows(query), rows(key), rows(value)
    batch, channels, pixels = value.shape
    dtype = common_dtype(query, key)
    q_rows, k_rows = (query.new_empty((batch, pixels, key_width), dtype=dtype) for _ in range(2))
    v_rows = query.new_empty((batch, pixels, width), dtype=dtype)
    pivot, unit = (value.new_empty((batch, width), dtype=torch.float32) for _ in range(2))
    sums = value.new_empty((batch, 2, SPLITS, channels), dtype=torch.float32)
    # |v - pivot| <= sigma sqrt(n): with this headroom its square stays below 2^16 for any number of pixels.
    headroom = 2.0 ** max(0, math.ceil(math.log2(pixels) / 2) - 9)
    tiles = {"SPLITS": SPLITS, "BLOCK_P": BLOCK_P, "BLOCK_C": BLOCK_C}
    bain_attention_moments_kernel[(SPLITS, triton.cdiv(channels, BLOCK_C), batch)](
        value, order, counts, sums, *value.stride(), pixels, channels, **tiles, num_warps=WARPS, num_stages=STAGES
    )
    blocks = 2 * triton.cdiv(key_width, BLOCK_C) + triton.cdiv(width, BLOCK_C)
    strides = (*query.stride(), *key.stride(), *value.stride())
    bain_attention_pack_kernel[(triton.cdiv(pixels, BLOCK_P), blocks, batch)](
        query,
        key,
        value,
        order,
        counts,
        sums,
        q_rows,
        k_rows,
        v_rows,
        pivot,
        unit,
        *strides,
        headroom,
        pixels,
        query.shape[1],
        channels,
        KEY_WIDTH=key_width,
        WIDTH=width,
        **tiles,
        num_warps=WARPS,
        num_stages=STAGES,
    )
    return Packed(q_rows, k_rows, v_rows, pivot, unit)


FLOAT32_POINTERS = (
    "sums",
    "pivot",
    "unit",
    "first",
    "variance",
    "lse",
    "lse_rows",
    "delta",
    "span",
    "largest",
    "affine",
    "gain",
    "part",
)


def argument_type(argument: str, dtype: str) -> str:
    """Type of an argument of the attention's kernels, by name, for maps and rows of `dtype`."""
    if not argument.endswith("_ptr"):
        return "fp32" if argument in ("scale", "eps", "headroom") else "i32"
    name = argument.removesuffix("_ptr")
    return "*i64" if name in ("order", "counts") else "*fp32" if name in FLOAT32_POINTERS else f"*{dtype}"


def pack_cases(kernels: Mapping[Any, int], norm: bool = False) -> list[Case]:
    """Packing kernels, which have one configuration each, with their blocks of pixels."""
    cases = []
    for dtype in ("fp16", "fp32"):
        sizes: dict[str, Any] = {"KEY_WIDTH": 64, "WIDTH": 128, "SPLITS": SPLITS, "BLOCK_C": BLOCK_C}
        sizes |= {"SCALED": dtype == "fp16", "NORM": norm, "BLOCK_L": 64} | ({} if norm else {"gain_ptr": None})
        for kernel, block_p in kernels.items():
            constants = {n: value for n, value in {**sizes, "BLOCK_P": block_p}.items() if n in kernel.arg_names}
            types = {name: argument_type(name, dtype) for name in kernel.arg_names if name not in constants}
            cases.append(Case(f"{dtype} norm" if norm else dtype, kernel, types, constants, WARPS, STAGES))
    return cases
