"""Region normalisation: one read for both regions' moments, one read and write to apply them; likewise backward.

A tile is BLOCK_C channels by BLOCK_N pixels. Images are cut into splits of pixels so that small batches fill the
device; each split's moments go to a small float32 buffer, and whoever needs them merges the splits in the same order.
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from scsco_fast.kernels import refusal
from scsco_fast.kernels.launch import case, empty, mask_rows, on_device, pointers, require, rows, split
from scsco_fast.kernels.region_norm_kernels import (
    region_norm_bwd_dx_kernel,
    region_norm_bwd_sums_kernel,
    region_norm_fwd_apply_kernel,
    region_norm_fwd_moments_kernel,
)
from scsco_fast.kernels.resources import Case

SPLITS = 32  # at most: bounds the buffers of partial sums and the work of merging them
PROGRAMS = 1056  # wanted: eight for each of an H100's 132 SMs


class Tile(NamedTuple):
    block_c: int
    block_n: int
    warps: int


# 2048 elements each: 16 per thread. Long rows of pixels where they are contiguous, channels where those are.
PLANES = (Tile(1, 2048, 4), Tile(4, 512, 4), Tile(16, 128, 4), Tile(64, 32, 4))
CHANNELS_LAST = Tile(64, 32, 4)


class Plan(NamedTuple):
    tile: Tile
    splits: int
    blocks: int
    grid: tuple[int, int, int]


def tile_of(pixels: int, contiguous: bool) -> Tile:
    """The fixed table: by the number of pixels, and whether neighbours lie next to each other."""
    if not contiguous:
        return CHANNELS_LAST
    return next((tile for tile in PLANES if tile.block_n <= max(pixels, 32)), PLANES[-1])


def _plan(x: Tensor) -> Plan:
    batch, channels, pixels = x.shape
    tile = tile_of(pixels, x.stride(2) == 1 or pixels == 1)
    columns, blocks = triton.cdiv(channels, tile.block_c), triton.cdiv(pixels, tile.block_n)
    each = triton.cdiv(blocks, split(batch * columns, blocks, PROGRAMS, SPLITS))
    splits = triton.cdiv(blocks, each)
    return Plan(tile, splits, each, (splits, columns, batch))


def supports(x: Tensor) -> str | None:
    """Why `forward` cannot serve x, or None."""
    return refusal("region_norm", x)


def forward(
    x: Tensor,
    foreground: Tensor,
    valid: Tensor | None,
    fg_weight: Tensor,
    fg_bias: Tensor,
    bg_weight: Tensor,
    bg_bias: Tensor,
    eps: float,
    adapt: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output (B, C, H, W) in the dtype of x, and mean and deviation (B, C, 2) of foreground and background."""
    require(supports(x))
    batch, channels = x.shape[:2]
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    mean, std = (empty((batch, channels, 2), x) for _ in range(2))
    if batch == 0:
        return y, mean, std
    x_rows, fg, ok = rows(x), mask_rows(foreground), mask_rows(foreground if valid is None else valid)
    plan = _plan(x_rows)
    counts, moments = empty((batch, plan.splits, 2), x), empty((batch, plan.splits, 4, channels), x)
    shape = (channels, x_rows.shape[2], plan.splits, plan.blocks)
    blocks = {"BLOCK_C": plan.tile.block_c, "BLOCK_N": plan.tile.block_n, "num_warps": plan.tile.warps}
    strides = (*x_rows.stride(), *fg.stride(), *ok.stride())
    parameters = (fg_weight, fg_bias, bg_weight, bg_bias)
    with on_device(x):
        region_norm_fwd_moments_kernel[plan.grid](
            x_rows, fg, ok, counts, moments, *strides, *shape, HAS_VALID=valid is not None, **blocks
        )
        region_norm_fwd_apply_kernel[plan.grid](
            *(x_rows, fg, ok, counts, moments, *parameters, y, mean, std, *strides),
            *(p.stride(0) for p in parameters),
            *shape,
            EPS=eps,
            ADAPT=adapt,
            HAS_VALID=valid is not None,
            SPLITS=SPLITS,
            **blocks,
        )
    return y, mean, std


def backward(
    grad: Tensor,
    x: Tensor,
    foreground: Tensor,
    valid: Tensor | None,
    fg_weight: Tensor,
    bg_weight: Tensor,
    mean: Tensor,
    std: Tensor,
    adapt: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of x, and of fg_weight, fg_bias, bg_weight and bg_bias as (4, C) in float32."""
    batch, channels = x.shape[:2]
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    parameters = empty((batch, 4, channels), x)
    if batch == 0:
        return dx, parameters.sum(0)
    x_rows, dy, fg = rows(x), rows(grad), mask_rows(foreground)
    ok = fg if valid is None else mask_rows(valid)
    plan = _plan(x_rows)
    counts, sums = empty((batch, plan.splits, 2), x), empty((batch, plan.splits, 4, channels), x)
    shape = (channels, x_rows.shape[2], plan.splits, plan.blocks)
    blocks = {"BLOCK_C": plan.tile.block_c, "BLOCK_N": plan.tile.block_n, "num_warps": plan.tile.warps}
    strides = (*dy.stride(), *x_rows.stride(), *fg.stride(), *ok.stride())
    inputs = (dy, x_rows, fg, ok, mean.contiguous(), std.contiguous(), counts, sums)
    with on_device(x):
        region_norm_bwd_sums_kernel[plan.grid](*inputs, *strides, *shape, HAS_VALID=valid is not None, **blocks)
        region_norm_bwd_dx_kernel[plan.grid](
            *(*inputs, fg_weight, bg_weight, dx, parameters, *strides, fg_weight.stride(0), bg_weight.stride(0)),
            *shape,
            ADAPT=adapt,
            HAS_VALID=valid is not None,
            SPLITS=SPLITS,
            **blocks,
        )
    return dx, parameters.sum(0)


def compile_cases() -> list[Case]:
    """Every tile for every dtype, and both forms of the mask where it costs most."""
    tiles = [(tile, "") for tile in PLANES] + [(CHANNELS_LAST, " channels last")]
    cases: list[Case] = []
    for dtype in ("fp32", "fp16", "bf16"):
        for tile, layout in tiles:
            cases += _cases(tile, f"{tile.block_c}x{tile.block_n} {dtype}{layout}", dtype, bool(layout))
    return cases


def _cases(tile: Tile, label: str, dtype: str, channels_last: bool) -> list[Case]:
    ones = {"stride_xc" if channels_last else "stride_xn": 1, "stride_gn": 1, "stride_fn": 1, "stride_vn": 1}
    ones |= {"stride_fw": 1, "stride_fo": 1, "stride_bw": 1, "stride_bo": 1}
    flags = {"EPS": 1e-5, "ADAPT": True, "HAS_VALID": True, "SPLITS": SPLITS}
    flags |= {"BLOCK_C": tile.block_c, "BLOCK_N": tile.block_n}
    types = pointers("x y grad dx", dtype) | pointers("fg valid", "u8")
    types |= pointers("count moment sum mean std parameter fg_weight fg_bias bg_weight bg_bias")
    cases = []
    for kernel in (
        region_norm_fwd_moments_kernel,
        region_norm_fwd_apply_kernel,
        region_norm_bwd_sums_kernel,
        region_norm_bwd_dx_kernel,
    ):
        cases.append(case(label, kernel, types, ones | flags, tile.warps))
    return cases
