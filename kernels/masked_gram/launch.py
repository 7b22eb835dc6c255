"""The Gram matrix of a feature map's foreground, split over the pixel blocks that hold any of it.

A first kernel lists each image's blocks with foreground, so that the splits of the product share out the blocks that
count and never load the others. Only the tiles on and above the diagonal are computed; the kernel that adds the splits
mirrors them.
"""

import torch
import triton
from torch import Tensor

from scsco_fast.kernels.cases import Case
from scsco_fast.kernels.launch import (
    COMPUTE,
    case,
    empty,
    is_ragged,
    mask_rows,
    on_device,
    pointers,
    precision,
    rows,
    split,
)
from scsco_fast.kernels.masked_gram import allocate
from scsco_fast.kernels.masked_gram.backward import masked_gram_bwd_kernel
from scsco_fast.kernels.masked_gram.forward import (
    masked_gram_blocks_kernel,
    masked_gram_fwd_kernel,
    masked_gram_fwd_sum_kernel,
)
from scsco_fast.kernels.memory import contiguous_like
from scsco_fast.kernels.products import (
    FEATURE_TILES,
    GRAM_TILES,
    Tile,
    blocks_of,
    dot_precision,
    launch_options,
    map_grid,
    table_cases,
    tile_of,
)

PROGRAMS = 264  # wanted: two for each of an H100's 132 SMs
SPLITS = 16  # at most
# With 3 stages sm_100's compiler spills 12 bytes where channels are contiguous.
PLAIN_TILES = GRAM_TILES | {("half", 512): Tile(128, 128, 64, 16, 2)}
# Masking in registers takes as many again: with the blocks of a plain Gram, sm_80 spills.
MASKED_TILES = GRAM_TILES | {
    ("half", 512): Tile(128, 128, 32, 8, 4),
    ("tf32", 512): Tile(128, 128, 16, 8, 4),
}
# The sum of a matrix and its transpose: with 4 warps, sm_90 spills 8 bytes.
SYMMETRIC_TILES = FEATURE_TILES | {("ieee", 512): Tile(64, 32, 16, 8, 3)}
LISTING_WARPS = 16  # with 4 or 8, sm_100's compiler spills 16 bytes
SUMMED, SUM_WARPS = 16, 4  # rows of a tile that one program adds up


def forward(features: Tensor, foreground: Tensor | None) -> Tensor:
    """F_m F_m^T / (H W): (B, C, C), float32."""
    f = rows(features)
    batch, channels, pixels = f.shape
    gram = allocate(features)
    if batch == 0:
        return gram
    kind = precision(f.dtype)
    tile = tile_of(PLAIN_TILES if foreground is None else MASKED_TILES, kind, channels, is_ragged(f))
    tiles, blocks = triton.cdiv(channels, tile.block_m), triton.cdiv(pixels, tile.block_k)
    upper = tiles * (tiles + 1) // 2
    splits = split(upper * batch, blocks, PROGRAMS, SPLITS, least_blocks=4)  # of the blocks that the device finds
    parts = empty((splits, batch, upper, tile.block_m, tile.block_m), f) if splits > 1 else gram
    listed = blocks if foreground is not None else 0
    used, counts = empty((batch, listed), f, torch.int32), empty((batch,), f, torch.int32)
    mask = used if foreground is None else mask_rows(foreground)
    with on_device(f):
        if foreground is not None:
            words, pixels_each = _words(mask)
            masked_gram_blocks_kernel[(batch,)](
                *(words, used, counts, *words.stride(), words.shape[1], blocks),
                BLOCK_W=tile.block_k // pixels_each,
                num_warps=LISTING_WARPS,
            )
        masked_gram_fwd_kernel[(upper, splits, batch)](
            *(f, mask, used, counts, parts, *f.stride(), *mask.stride(), channels, pixels, blocks, tiles),
            HAS_MASK=foreground is not None,
            SPLIT=splits > 1,
            PRECISION=dot_precision(kind),
            BLOCK_M=tile.block_m,
            BLOCK_K=tile.block_k,
            **launch_options(tile),
        )
        if splits > 1:
            masked_gram_fwd_sum_kernel[(upper, tile.block_m // SUMMED, batch)](
                *(parts, gram, channels, pixels, tiles, splits),
                BLOCK_M=tile.block_m,
                SUMMED=SUMMED,
                num_warps=SUM_WARPS,
            )
    return gram


def _words(mask: Tensor) -> tuple[Tensor, int]:
    """The mask's rows in words, and the pixels of each: 8 where words lie in one row and at multiples of 8 bytes.

    All of 256 x 256 is then examined in one step; byte by byte it takes eight, one after the other.
    """
    apart = (mask.shape[1], mask.stride(0), mask.storage_offset(), mask.data_ptr())
    if mask.stride(1) != 1 or any(number % 8 for number in apart):
        return mask, 1
    return mask.view(torch.int64), 8


def backward(grad: Tensor, features: Tensor, foreground: Tensor | None) -> Tensor:
    """dF = m (dG + dG^T) F_m / (H W)."""
    out = contiguous_like(features)
    f = rows(features)
    batch, channels, pixels = f.shape
    if batch == 0:
        return out
    kind = precision(f.dtype)
    tile = tile_of(SYMMETRIC_TILES, kind, channels, is_ragged(f))
    mask = grad[:, :, 0] if foreground is None else mask_rows(foreground)
    with on_device(f):
        masked_gram_bwd_kernel[map_grid(tile, channels, pixels, batch)](
            *(grad, f, mask, out, *grad.stride(), *f.stride(), *mask.stride(), channels, pixels),
            HAS_MASK=foreground is not None,
            COMPUTE=COMPUTE[f.dtype],
            PRECISION=dot_precision(kind),
            **blocks_of(tile),
        )
    return out


def compile_cases() -> list[Case]:
    """Every tile of every table for every dtype it serves, with and without a mask."""
    base = pointers("mask", "u8") | pointers("list count", "i32") | pointers("part g")
    cases = []
    for table, masked in ((MASKED_TILES, True), (PLAIN_TILES, False)):
        for split_up in (True, False):
            form = (" masked" if masked else "") + (" split" if split_up else "")
            flags = {"HAS_MASK": masked, "SPLIT": split_up, "stride_mn": 1}
            cases += table_cases(masked_gram_fwd_kernel, table, "f", base, flags, form)
    for masked in (True, False):
        flags = {"HAS_MASK": masked, "stride_gk": 1, "stride_mn": 1}
        form = " masked" if masked else ""
        cases += table_cases(masked_gram_bwd_kernel, SYMMETRIC_TILES, "f out", base, flags, form)
    for kind, each in (("i64", 8), ("u8", 1)):
        types = base | pointers("mask", kind)
        for block_k in (16, 32, 64):
            label, constants = f"blocks of {block_k} {kind}", {"BLOCK_W": block_k // each, "stride_mn": 1}
            cases.append(case(label, masked_gram_blocks_kernel, types, constants, LISTING_WARPS))
    for block in sorted({tile.block_m for tile in GRAM_TILES.values()}):
        label, constants = f"tiles of {block}", {"BLOCK_M": block, "SUMMED": SUMMED}
        cases.append(case(label, masked_gram_fwd_sum_kernel, base | pointers("out"), constants, SUM_WARPS))
    return cases
