"""Tiles of products with feature maps that the Gram operations share."""

import dataclasses
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from scsco_fast.kernels.cases import Case
from scsco_fast.kernels.launch import COMPUTE, case, pointers
from scsco_fast.kernels.rounding import to_tf32


class Tile(NamedTuple):
    """Block sizes of a product [block_m, block_k] x [block_k, block_n] and how it is run."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int


@triton.jit
def matrix_block(tile, columns, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Rows and columns of the tile-th block of a matrix that has `columns` blocks side by side."""
    m = tile // columns * BLOCK_M + tl.arange(0, BLOCK_M)
    return m, tile % columns * BLOCK_N + tl.arange(0, BLOCK_N)


@triton.jit
def map_block(BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The program's image, and the channels and pixels of its block of a feature map; `map_grid` gives the grid."""
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    return tl.program_id(2).to(tl.int64), m, n


@triton.jit
def feature_tile(f_ptr, stride_fc, stride_fn, c, n, channels, pixels):
    """Features [channels c, pixels n] in their dtype, 0 outside the map; f_ptr stands at the image."""
    at = c.to(tl.int64)[:, None] * stride_fc + n.to(tl.int64)[None, :] * stride_fn
    return tl.load(f_ptr + at, mask=(c < channels)[:, None] & (n < pixels)[None, :], other=0.0)


@triton.jit
def operand(x, COMPUTE: tl.constexpr, PRECISION: tl.constexpr):
    """x as `tl.dot` takes it: in COMPUTE, and for TF32 rounded, as the matrix instructions only truncate."""
    x = x.to(COMPUTE)
    if PRECISION == "tf32":
        x = to_tf32(x)
    return x


@triton.jit
def _left(g_ptr, stride_gm, stride_gk, m, k, rows, depth, SYMMETRIC: tl.constexpr):
    """Entries [m, k] of a small float32 matrix, or of its sum with its transpose."""
    inside = (m < rows)[:, None] & (k < depth)[None, :]
    m, k = m.to(tl.int64)[:, None], k.to(tl.int64)[None, :]
    left = tl.load(g_ptr + m * stride_gm + k * stride_gk, mask=inside, other=0.0)
    if SYMMETRIC:
        left += tl.load(g_ptr + k * stride_gm + m * stride_gk, mask=inside, other=0.0)
    return left


@triton.jit
def product_with_features(
    g_ptr,
    stride_gm, stride_gk,
    f_ptr,
    stride_fc, stride_fn,
    m, n,
    inside,  # which of the pixels n count; the others may hold NaN
    rows, depth, pixels,
    SYMMETRIC: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """sum_k g[m, k] f[k, n], float32 [BLOCK_M, BLOCK_N]; no work where no pixel counts."""
    steps = tl.where(tl.max(inside.to(tl.int32), 0) > 0, tl.cdiv(depth, BLOCK_K), 0)
    scale = tl.full((BLOCK_M,), 1.0, tl.float32)
    if COMPUTE == tl.float16:  # noqa: SIM300
        # A Gram's gradient of 1e-8 is 0 in float16, so every row is brought to at most 1 before it is rounded.
        peak = tl.zeros((BLOCK_M,), tl.float32)
        for step in range(steps):
            k = step * BLOCK_K + tl.arange(0, BLOCK_K)
            left = _left(g_ptr, stride_gm, stride_gk, m, k, rows, depth, SYMMETRIC)
            peak = tl.maximum(peak, tl.max(tl.abs(left), 1))
        scale = tl.where(peak > 0, peak, 1.0)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(steps):
        k = step * BLOCK_K + tl.arange(0, BLOCK_K)
        left = _left(g_ptr, stride_gm, stride_gk, m, k, rows, depth, SYMMETRIC) / scale[:, None]
        f = feature_tile(f_ptr, stride_fc, stride_fn, k, n, depth, pixels)
        f = operand(tl.where(inside[None, :], f, 0.0), COMPUTE, PRECISION)
        total = tl.dot(operand(left, COMPUTE, PRECISION), f, total, input_precision=PRECISION)
    return total * scale[:, None]


@triton.jit
def store_block(out_ptr, out, m, n, rows, columns):
    """Write [rows m, columns n] of one contiguous matrix: a Gram matrix, or a feature map (C, N)."""
    at = m.to(tl.int64)[:, None] * columns + n[None, :]
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=(m < rows)[:, None] & (n < columns)[None, :])


# Of the products that give a Gram matrix: channels x channels, summed over pixels.
GRAM_TILES = {
    ("half", 64): Tile(64, 64, 64, 4, 4),
    # With 8 warps Triton 3.6 waits for each product before the next (ptxas: C7515), with 4 sm_80 spills.
    ("half", 512): Tile(128, 128, 64, 16, 3),
    ("tf32", 64): Tile(64, 64, 32, 4, 4),
    ("tf32", 512): Tile(128, 128, 32, 8, 3),
    ("ieee", 512): Tile(64, 64, 16, 8, 3),
}
# Of the products that give feature maps: channels x pixels, summed over channels.
FEATURE_TILES = {
    ("half", 512): Tile(64, 128, 32, 8, 3),
    ("tf32", 512): Tile(64, 128, 32, 8, 3),
    ("ieee", 512): Tile(64, 32, 16, 4, 3),
}


def tile_of(table: dict[tuple[str, int], Tile], precision: str, channels: int, ragged: bool) -> Tile:
    """The entry for the smallest width that holds `channels`."""
    tile = next(tile for (kind, width), tile in table.items() if kind == precision and channels <= width)
    return _loose(tile, precision) if ragged else tile


def _loose(tile: Tile, precision: str) -> Tile:
    # Without 16-byte loads a thread holds more addresses: with the whole blocks, 255 registers and up to 240 bytes
    # spilled.
    if precision == "ieee":
        return tile._replace(block_m=32, block_n=32, warps=4)
    block_n = 32 if tile.block_n > tile.block_m else min(tile.block_n, 64)
    block_k, warps = max(16, tile.block_k // 2), min(tile.warps, 8)
    return tile._replace(block_m=min(tile.block_m, 64), block_n=block_n, block_k=block_k, warps=warps)


def launch_options(tile: Tile) -> dict[str, int]:
    """Warps and stages; and every register allowed, or ptxas spills 8 or 16 bytes to stay at 128 of them or at 80."""
    return {"num_warps": tile.warps, "num_stages": tile.stages, "maxnreg": min(255, 2048 // tile.warps)}


def blocks_of(tile: Tile) -> dict[str, int]:
    """What a kernel takes of a tile: its blocks and `launch_options`."""
    return {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k, **launch_options(tile)}


def map_grid(tile: Tile, channels: int, pixels: int, batch: int) -> tuple[int, int, int]:
    """The programs of a kernel that computes feature maps (B, C, N) in blocks, each `map_block`'s."""
    return triton.cdiv(pixels, tile.block_n), triton.cdiv(channels, tile.block_m), batch


def dot_precision(precision: str) -> str:
    """`input_precision` of `tl.dot`; it means nothing for half operands."""
    return "ieee" if precision == "half" else precision


def typed(precision: str) -> tuple[tuple[torch.dtype, str], ...]:
    """The dtypes of operands multiplied in `precision`, with Triton's names, for `compile_cases`."""
    if precision == "half":
        return (torch.float16, "fp16"), (torch.bfloat16, "bf16")
    return ((torch.float32, "fp32"),)


def table_cases(
    kernel: Any,
    table: dict[tuple[str, int], Tile],
    operands: str,
    types: dict[str, str],
    flags: dict[str, Any],
    form: str = "",
) -> list[Case]:
    """`product_cases` of every tile of a table for every dtype that it serves.

    Args:
        operands: names of the pointers to maps in that dtype: "f b" of `f_ptr` and `b_ptr`.
        types: of the other arguments that are no 32-bit integers.
        flags: further constants of the kernel.
        form: ends the labels.
    """
    cases = []
    for (kind, width), tile in table.items():
        for dtype, name in typed(kind):
            constants = {"COMPUTE": COMPUTE[dtype], "PRECISION": dot_precision(kind), **flags}
            label = f"C<={width} {name if kind == 'half' else kind}{form}"
            cases += product_cases(label, kernel, types | pointers(operands, name), constants, tile, kind)
    return cases


def product_cases(
    label: str, kernel: Any, types: dict[str, str], constants: dict[str, Any], tile: Tile, precision: str
) -> list[Case]:
    """A tile with pixels contiguous, with channels contiguous, and with sizes that 16 does not divide."""
    cases = []
    for layout, one, ragged in (("", "n", False), (" channels last", "c", False), ("", "n", True)):
        if ragged and "bf16" in label:
            continue  # it differs from float16 in conversions only
        used = _loose(tile, precision) if ragged else tile
        merged = {f"stride_{tensor}{one}": 1 for tensor in "abfo"} | constants
        merged |= {"BLOCK_M": used.block_m, "BLOCK_N": used.block_n, "BLOCK_K": used.block_k}
        made = case(label + layout, kernel, types, merged, used.warps, used.stages, precision != "ieee", ragged)
        cases.append(dataclasses.replace(made, options={"maxnreg": launch_options(used)["maxnreg"]}))
    return cases
