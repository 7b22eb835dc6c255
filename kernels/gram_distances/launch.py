"""Distances of Gram matrices that share one factor, without a Gram matrix in memory.

G(f, b) - G(o, b) = G(f - o, b): one product for each pair, whose entries are added up in absolute value where they
arise, or, where too few programs would run, after parts of the pixels were added in a fixed order. The forward keeps
their signs, one byte each, and the backward multiplies by them; see docs/kernels/gram_distances.md.
"""

import dataclasses
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from scsco_fast.kernels.cases import Case
from scsco_fast.kernels.gram_distances import allocate_gradients, allocate_signs
from scsco_fast.kernels.gram_distances.backward import (
    gram_distances_bwd_background_kernel,
    gram_distances_bwd_features_kernel,
)
from scsco_fast.kernels.gram_distances.forward import gram_distances_fwd_kernel, gram_distances_fwd_merge_kernel
from scsco_fast.kernels.launch import (
    COMPUTE,
    FROM_SHARED_MEMORY,
    case,
    common_dtype,
    empty,
    is_ragged,
    multiplies_from_shared_memory,
    on_device,
    pointers,
    precision,
    rows,
)
from scsco_fast.kernels.products import (
    FEATURE_TILES,
    GRAM_TILES,
    Tile,
    blocks_of,
    dot_precision,
    map_grid,
    table_cases,
    tile_of,
)
from scsco_fast.kernels.sums import shares, sum_parts

PROGRAMS = 264  # wanted: two for each of an H100's 132 SMs
SPLITS, LEAST = 16, 256  # of the pixels, at most; pixels of each, at least
# A matrix of more tiles is not split: one program a pair adds the splits up, and takes longer than splitting saves.
SPLIT_TILES = 4
MERGED, MERGE_WARPS = 4096, 8  # entries that are added up at once
# Three operands: with the blocks of a plain Gram, 255 registers.
DIFFERENCE_TILES = GRAM_TILES | {
    ("half", 64): Tile(64, 64, 64, 8, 3),
    ("half", 512): Tile(128, 128, 32, 8, 3),
    ("tf32", 64): Tile(64, 64, 32, 8, 4),
    ("tf32", 512): Tile(128, 64, 32, 8, 3),
}
# Where the matrix instructions take both operands from registers, the wide block spills up to 152 bytes.
REGISTER_TILES = DIFFERENCE_TILES | {("half", 512): Tile(128, 64, 32, 8, 3)}


class Operands(NamedTuple):
    """The three inputs as rows of pixels, and the precision of their products."""

    f: Tensor
    b: Tensor
    o: Tensor
    dtype: torch.dtype
    kind: str
    ragged: bool

    def size(self) -> int:
        """Entries of one Gram matrix times the pixels it is divided by."""
        return self.f.shape[1] * self.b.shape[1] * self.f.shape[2]


def _operands(anchor: Tensor, background: Tensor, others: Tensor) -> Operands:
    f, b, o = rows(anchor), rows(background), rows(others)
    dtype = common_dtype(f, b, o)
    return Operands(f, b, o, dtype, precision(dtype), is_ragged(f, b, o))


def forward(anchor: Tensor, background: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """mean |(f - o_j) b^T| / (H W): (B, J), float32; and the signs of the products (B, J, Cf, Cb), int8."""
    inputs = _operands(anchor, background, others)
    (height, pixels), width, (batch, count) = inputs.f.shape[1:], inputs.b.shape[1], inputs.o.shape[:2]
    signs = allocate_signs(anchor, background, others)
    if 0 in (batch, count):
        return empty((batch, count), anchor), signs
    table = DIFFERENCE_TILES if multiplies_from_shared_memory(anchor.device) else REGISTER_TILES
    tile = tile_of(table, inputs.kind, max(height, width), inputs.ragged)
    columns, blocks = triton.cdiv(width, tile.block_n), triton.cdiv(pixels, tile.block_k)
    tiles = triton.cdiv(height, tile.block_m) * columns
    most = SPLITS if tiles <= SPLIT_TILES else 1
    splits, each = shares(tiles * count * batch, blocks, PROGRAMS, most, LEAST // tile.block_k)
    parts = empty((splits, batch, count, height, width) if splits > 1 else (batch, count, tiles), anchor)
    factor = 2 / inputs.size()
    with on_device(anchor):
        gram_distances_fwd_kernel[(tiles * splits, count, batch)](
            *(inputs.f, inputs.b, inputs.o, signs, parts),
            *(*inputs.f.stride(), *inputs.b.stride(), *inputs.o.stride()),
            *(height, width, pixels, columns, splits, each * tile.block_k, factor),
            COMPUTE=COMPUTE[inputs.dtype],
            PRECISION=dot_precision(inputs.kind),
            SPLIT=splits > 1,
            **blocks_of(tile),
        )
        if splits == 1:
            return sum_parts(parts), signs
        distances = empty((batch, count), anchor)
        gram_distances_fwd_merge_kernel[(batch * count,)](
            parts, signs, distances, height * width, splits, factor, BLOCK=MERGED, num_warps=MERGE_WARPS
        )
    return distances, signs


def backward(
    grad: Tensor, signs: Tensor, anchor: Tensor, background: Tensor, others: Tensor, anchor_only: bool
) -> tuple[Tensor, ...]:
    """With s_j = g_j sign((f - o_j) b^T) / n: df = sum_j s_j b, do_j = -s_j b, db = sum_j s_j^T (f - o_j).

    With `anchor_only` df alone, without a launch for the background.
    """
    grads = allocate_gradients(anchor, background, others, anchor_only)
    if 0 in others.shape[:2]:
        return tuple(t.zero_() for t in grads)
    inputs = _operands(anchor, background, others)
    f, b, o = inputs.f, inputs.b, inputs.o
    (height, pixels), (batch, width), count = f.shape[1:], b.shape[:2], o.shape[1]
    sizes = (height, width, pixels, count, 1 / inputs.size())
    with on_device(f):
        own = precision(b.dtype)
        tile = tile_of(FEATURE_TILES, own, width, inputs.ragged)
        gram_distances_bwd_features_kernel[map_grid(tile, height, pixels, batch)](
            *(signs, b, grad, grads[0], grads[-1], anchor_only, *grad.stride(), *b.stride(), *sizes),
            PRECISION=dot_precision(own),
            **blocks_of(tile),
        )
        if anchor_only:
            return grads
        tile = tile_of(FEATURE_TILES, inputs.kind, height, inputs.ragged)
        gram_distances_bwd_background_kernel[map_grid(tile, width, pixels, batch)](
            *(signs, f, o, grad, grads[1], *grad.stride(), *f.stride(), *o.stride(), *sizes),
            COMPUTE=COMPUTE[inputs.dtype],
            PRECISION=dot_precision(inputs.kind),
            **blocks_of(tile),
        )
    return grads


def compile_cases() -> list[Case]:
    """Every tile of every table for every dtype it serves, in one split and in several, for all gradients and one."""
    cases = []
    for form, split_up in (("", False), (" split", True)):
        for table, others in ((DIFFERENCE_TILES, False), (REGISTER_TILES, True)):
            for found in _product_cases(gram_distances_fwd_kernel, table, form, {"SPLIT": split_up}):
                on = tuple(sm for sm in found.architectures if (sm not in FROM_SHARED_MEMORY) == others)
                if on:
                    cases.append(dataclasses.replace(found, architectures=on))
    for form, only in (("", False), (" anchor", True)):
        cases += _product_cases(gram_distances_bwd_features_kernel, FEATURE_TILES, form, {"ANCHOR_ONLY": only})
    cases += _product_cases(gram_distances_bwd_background_kernel, FEATURE_TILES, "", {})
    types = pointers("part out") | pointers("sign", "i8") | {"factor": "fp32"}
    for ragged in (False, True):
        cases.append(
            case("pairs", gram_distances_fwd_merge_kernel, types, {"BLOCK": MERGED}, MERGE_WARPS, ragged=ragged)
        )
    return cases


def _product_cases(kernel: Any, table: dict[tuple[str, int], Tile], form: str, flags: dict[str, Any]) -> list[Case]:
    types = pointers("part grad") | pointers("sign", "i8") | {"factor": "fp32"}
    return table_cases(kernel, table, "f b o df db do", types, {"stride_gj": 1, **flags}, form)
