"""Partial sums to sums, in a fixed order, where a torch kernel and its dispatch would follow."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from scsco_fast.kernels.cases import Case
from scsco_fast.kernels.launch import case, empty, pointers, split

MOST = 256  # parts of one sum
WARPS = 1


@triton.jit
def sum_parts_kernel(part_ptr, out_ptr, parts, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, BLOCK)
    part = tl.load(part_ptr + row * parts + index, mask=index < parts, other=0.0)
    tl.store(out_ptr + row, tl.sum(part, 0))


def shares(programs: int, blocks: int, wanted: int, most: int, least_blocks: int = 1) -> tuple[int, int]:
    """Into how many parts a sum over `blocks` blocks is cut (`split`), and how many blocks each but the last has."""
    each = triton.cdiv(blocks, split(programs, blocks, wanted, most, least_blocks))
    return triton.cdiv(blocks, each), each


def sum_parts(parts: Tensor) -> Tensor:
    """The sums over the last dimension, at most `MOST`, of contiguous float32; no launch where it is 1.

    Raises:
        ValueError: there are more parts.
    """
    if parts.shape[-1] > MOST:
        raise ValueError(f"{parts.shape[-1]} partial sums: at most {MOST} are added up, so take fewer splits or tiles")
    if parts.shape[-1] == 1:
        return parts.squeeze(-1)
    out = empty(tuple(parts.shape[:-1]), parts, torch.float32)
    sum_parts_kernel[(out.numel(),)](parts, out, parts.shape[-1], BLOCK=MOST, num_warps=WARPS)
    return out


def sum_cases() -> list[Case]:
    return [case(f"{MOST} parts", sum_parts_kernel, pointers("part out"), {"BLOCK": MOST}, WARPS, ragged=True)]
