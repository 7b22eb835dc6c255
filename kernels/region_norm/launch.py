"""Region normalisation: one launch forward and one backward, whose programs have whole (image, channel) planes.

Few large planes, or large channels-last maps, would not fill the device so: there images are cut into parts of pixels,
each part's moments go to a small float32 buffer, and a second launch, whose programs all merge the parts in the same
order, applies them.
"""

import dataclasses
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from scsco_fast.kernels.cases import Case
from scsco_fast.kernels.launch import case, empty, mask_rows, on_device, pointers, rows, split
from scsco_fast.kernels.region_norm import allocate, allocate_gradients
from scsco_fast.kernels.region_norm.backward import (
    region_norm_bwd_dx_kernel,
    region_norm_bwd_plane_kernel,
    region_norm_bwd_sums_kernel,
    region_norm_bwd_tile_kernel,
)
from scsco_fast.kernels.region_norm.forward import (
    region_norm_fwd_apply_kernel,
    region_norm_fwd_moments_kernel,
    region_norm_fwd_plane_kernel,
    region_norm_fwd_tile_kernel,
)

SPLITS = 32  # at most: bounds the buffers of partial sums and the work of merging them
PROGRAMS = 1056  # wanted: eight for each of an H100's 132 SMs
SPLIT_KERNELS = (
    region_norm_fwd_moments_kernel,
    region_norm_fwd_apply_kernel,
    region_norm_bwd_sums_kernel,
    region_norm_bwd_dx_kernel,
)


class Tile(NamedTuple):
    block_c: int
    block_n: int
    warps: int


# Planes of at most block_n pixels stay in registers: 16 elements a thread. 16 channels of half numbers are a sector of
# memory, so that channels-last maps are read in whole sectors too.
TILES = (Tile(64, 32, 4), Tile(16, 128, 4), Tile(4, 512, 4), Tile(1, 2048, 4))
CHANNELS_LAST_TILES = (Tile(64, 32, 4), Tile(16, 128, 4), Tile(16, 256, 8))
# Larger planes: the most pixels, and warps. With more warps fewer planes are under way at a time, and their second
# reading hits the 50 MB of an H100's L2 cache.
PLANE_WARPS = {8192: 4, 32768: 8, 2**31: 16}
PLANE_STEP = 512  # pixels a warp
FEW_PLANES, FEW_PIXELS = 132, 16384  # below as many planes (an H100's SMs), from as many pixels, planes are split
# Where planes are split: 2048 elements, 16 a thread. Long rows of pixels where they are contiguous, else channels.
SPLIT_TILES = {True: Tile(1, 2048, 4), False: Tile(64, 32, 4)}


# Every register allowed: sm_80's compiler else spills 8 bytes to stay at 72 of them.
SPLIT_OPTIONS: dict[str, Any] = {"SPLITS": SPLITS, "maxnreg": 255}


class Plan(NamedTuple):
    """How one call is run: `form` is "tile", "plane" or "split"; the last has `parts` of `blocks` tiles each."""

    form: str
    grid: tuple[int, ...]
    meta: dict[str, Any]
    parts: int = 1
    blocks: int = 1


def _plan(x: Tensor) -> Plan:
    batch, channels, pixels = x.shape
    contiguous = x.stride(2) == 1 or pixels == 1
    tile = next((tile for tile in (TILES if contiguous else CHANNELS_LAST_TILES) if pixels <= tile.block_n), None)
    if tile is not None:
        return Plan("tile", (triton.cdiv(channels, tile.block_c), batch), _blocks(tile))
    if contiguous and (batch * channels >= FEW_PLANES or pixels < FEW_PIXELS):
        return Plan("plane", (channels, batch), plane_meta(pixels, x.element_size()))
    tile = SPLIT_TILES[contiguous]
    columns, blocks = triton.cdiv(channels, tile.block_c), triton.cdiv(pixels, tile.block_n)
    each = triton.cdiv(blocks, split(batch * columns, blocks, PROGRAMS, SPLITS))
    parts = triton.cdiv(blocks, each)
    return Plan("split", (parts, columns, batch), _blocks(tile) | SPLIT_OPTIONS, parts, each)


def _blocks(tile: Tile) -> dict[str, Any]:
    return {"BLOCK_C": tile.block_c, "BLOCK_N": tile.block_n} | _options(tile.warps)


def plane_meta(pixels: int, itemsize: int) -> dict[str, Any]:
    """Steps of 16 elements a thread, in 16-byte loads."""
    warps = next(warps for most, warps in PLANE_WARPS.items() if pixels <= most)
    even = pixels % (warps * PLANE_STEP) == 0
    step, run = warps * PLANE_STEP, 16 // itemsize
    return {"ROWS": step // run, "RUNS": run, "EVEN": even} | _options(warps)


def _options(warps: int) -> dict[str, Any]:
    """Every register is allowed, or ptxas spills 8 bytes to stay at 64 (16 warps), 96 (4 warps) or 168 of them."""
    return {"num_warps": warps, "maxnreg": min(255, 2048 // warps)}


def forward(
    x: Tensor, foreground: Tensor, valid: Tensor | None, affine: Tensor, eps: float, adapt: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Output (B, C, H, W) in the dtype of x, and mean and deviation (B, C, 2) of foreground and background."""
    results = allocate(x)
    if not len(x):
        return results
    x_rows, masks, plan = rows(x), _masks(foreground, valid), _plan(rows(x))
    inputs, outputs = (x_rows, *masks), (_read(affine), *results)
    sizes = (x.shape[1], x_rows.shape[2])
    has_valid = {"HAS_VALID": valid is not None}
    flags = {"EPS": eps, "ADAPT": adapt, **has_valid}
    with on_device(x):
        if plan.form == "tile":
            region_norm_fwd_tile_kernel[plan.grid](*inputs, *outputs, *x_rows.stride(), *sizes, **flags, **plan.meta)
        elif plan.form == "plane":
            strides = x_rows.stride()[:2]
            region_norm_fwd_plane_kernel[plan.grid](*inputs, *outputs, *strides, *sizes, **flags, **plan.meta)
        else:
            parts, last = _parts(x, plan), (*x_rows.stride(), *sizes, plan.parts, plan.blocks)
            region_norm_fwd_moments_kernel[plan.grid](*inputs, *parts, *last, **has_valid, **_no_splits(plan))
            region_norm_fwd_apply_kernel[plan.grid](*inputs, *parts, *outputs, *last, **flags, **plan.meta)
    return results


def backward(
    grad: Tensor,
    x: Tensor,
    foreground: Tensor,
    valid: Tensor | None,
    affine: Tensor,
    mean: Tensor,
    std: Tensor,
    adapt: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of x, and of affine (4, C) in float32."""
    dx, d_affine = allocate_gradients(x)
    if not len(x):
        return dx, d_affine.zero_()
    x_rows, dy, plan = rows(x), rows(grad), _plan(rows(x))
    inputs = (dy, x_rows, *_masks(foreground, valid), mean.contiguous(), std.contiguous())
    of_images = empty((len(x), *d_affine.shape), x)
    outputs = (_read(affine), dx, of_images)
    sizes = (x.shape[1], x_rows.shape[2])
    has_valid = {"HAS_VALID": valid is not None}
    flags = {"ADAPT": adapt, **has_valid}
    with on_device(x):
        last = (*x_rows.stride(), *dy.stride(), *sizes)
        if plan.form == "tile":
            region_norm_bwd_tile_kernel[plan.grid](*inputs, *outputs, *last, **flags, **plan.meta)
        elif plan.form == "plane":
            last = (*x_rows.stride()[:2], *dy.stride(), *sizes)
            region_norm_bwd_plane_kernel[plan.grid](*inputs, *outputs, *last, **flags, **plan.meta)
        else:
            parts, last = _parts(x, plan), (*last, plan.parts, plan.blocks)
            region_norm_bwd_sums_kernel[plan.grid](*inputs, *parts, *last, **has_valid, **_no_splits(plan))
            region_norm_bwd_dx_kernel[plan.grid](*inputs, *parts, *outputs, *last, **flags, **plan.meta)
    return dx, torch.sum(of_images, 0, out=d_affine)


def _masks(foreground: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Contiguous bytes (B, N); the kernels do not read the second where there is none."""
    fg = mask_rows(foreground).contiguous()
    return fg, fg if valid is None else mask_rows(valid).contiguous()


def _read(affine: Tensor) -> Tensor:
    """As the kernels read it."""
    return affine.to(torch.float32).contiguous()


def _parts(x: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """Memory for each part's numbers of pixels, (B, parts, 2), and four sums for each channel, (B, parts, 4, C)."""
    batch, channels = x.shape[:2]
    return empty((batch, plan.parts, 2), x), empty((batch, plan.parts, 4, channels), x)


def _no_splits(plan: Plan) -> dict[str, Any]:
    return {key: value for key, value in plan.meta.items() if key != "SPLITS"}


def compile_cases() -> list[Case]:
    """Every tile and step for every dtype, with both forms of the mask."""
    cases: list[Case] = []
    for dtype, itemsize in (("fp32", 4), ("fp16", 2), ("bf16", 2)):
        for tiles, layout in ((TILES, ""), (CHANNELS_LAST_TILES, " channels last")):
            for tile in tiles:
                label = f"{tile.block_c}x{tile.block_n} {dtype}{layout}"
                cases += _cases((region_norm_fwd_tile_kernel, region_norm_bwd_tile_kernel), label, dtype, _blocks(tile))
        for contiguous, tile in SPLIT_TILES.items():
            label = f"{tile.block_c}x{tile.block_n} {dtype}{'' if contiguous else ' channels last'}"
            cases += _cases(SPLIT_KERNELS, label, dtype, _blocks(tile) | SPLIT_OPTIONS)
        for pixels in (8192, 16384, 65536):
            for uneven in (0, 1):
                meta = plane_meta(pixels - 16 * uneven, itemsize)
                label = f"{pixels} pixels {dtype}{' uneven' if uneven else ''}"
                cases += _cases((region_norm_fwd_plane_kernel, region_norm_bwd_plane_kernel), label, dtype, meta)
    return cases


def _cases(kernels: tuple[Any, ...], label: str, dtype: str, meta: dict[str, Any]) -> list[Case]:
    ones = {"stride_xc" if "channels last" in label else "stride_xn": 1, "stride_gn": 1}
    constants = ones | {"EPS": 1e-5, "ADAPT": True, "HAS_VALID": True} | meta
    types = pointers("x y grad dx", dtype) | pointers("fg valid", "u8")
    types |= pointers("count moment sum mean std affine d_affine")
    made = [case(label, kernel, types, constants, meta["num_warps"]) for kernel in kernels]
    return [dataclasses.replace(found, options={"maxnreg": meta["maxnreg"]}) for found in made]
