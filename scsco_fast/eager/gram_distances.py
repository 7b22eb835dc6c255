"""Distances of Gram matrices that share one factor: one product per pair, in blocks of rows; only signs of it stay.

G(f, b) - G(o, b) = G(f - o, b), so each pair needs one product, of the difference with the background.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from scsco_fast.eager.dtypes import accumulate_dtype
from scsco_fast.eager.products import product

BLOCK_ELEMENTS = 1 << 20  # of one block of rows of a Gram matrix, over the batch


def allocate_signs(anchor: Tensor, background: Tensor, others: Tensor) -> Tensor:
    """Uninitialised, of the products (f - o_j) b^T: (B, J, C, Cb), int8."""
    shape = (*others.shape[:2], anchor.shape[1], background.shape[1])
    return torch.empty(shape, dtype=torch.int8, device=anchor.device)


def forward(anchor: Tensor, background: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """mean |(f - o_j) b^T| / (H W): (B, J), and the signs of (f - o_j) b^T: (B, J, C, Cb) int8, for the backward."""
    dtype = accumulate_dtype(anchor, background, others)
    shared = background.to(dtype).flatten(2).transpose(1, 2)  # (B, N, Cb)
    sums = shared.new_zeros(others.shape[:2])
    signs = allocate_signs(anchor, background, others)
    for j, difference in _differences(anchor, others, dtype):
        for rows in _row_blocks(difference, shared):
            products = product(difference[:, rows], shared)
            signs[:, j, rows] = products.sign().to(torch.int8)
            sums[:, j] += products.abs_().sum(dim=(1, 2))
    return sums / _size(anchor, background), signs


def backward(
    grad: Tensor, signs: Tensor, anchor: Tensor, background: Tensor, others: Tensor, anchor_only: bool
) -> tuple[Tensor, ...]:
    """With s_j = g_j sign((f - o_j) b^T) / n: df = sum_j s_j b, do_j = -s_j b, db = sum_j s_j^T (f - o_j).

    With `anchor_only` df alone, by one product for all j.
    """
    dtype = grad.dtype
    b = background.to(dtype).flatten(2)  # (B, Cb, N)
    scaled = (grad / _size(anchor, background)).unsqueeze(2).unsqueeze(3)
    total = torch.zeros(signs.shape[:1] + signs.shape[2:], dtype=dtype, device=b.device)  # (B, C, Cb)
    for j in range(signs.shape[1]):
        total += scaled[:, j] * signs[:, j]
    d_anchor = product(total, b).reshape(anchor.shape).to(anchor.dtype)
    if anchor_only:
        return (d_anchor,)
    d_background = torch.zeros_like(b, memory_format=torch.contiguous_format)
    d_others = torch.empty_like(others, memory_format=torch.contiguous_format)
    for j, difference in _differences(anchor, others, dtype):
        flow = scaled[:, j] * signs[:, j]
        d_others[:, j] = -product(flow, b).reshape(anchor.shape)
        d_background += product(flow.transpose(1, 2), difference)
    return d_anchor, d_background.reshape(background.shape).to(background.dtype), d_others


def _differences(anchor: Tensor, others: Tensor, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
    rows = anchor.to(dtype).flatten(2)
    for j, other in enumerate(others.unbind(1)):
        yield j, rows - other.flatten(2)


def _row_blocks(difference: Tensor, shared: Tensor) -> Iterator[slice]:
    step = max(1, BLOCK_ELEMENTS // max(shared.shape[0] * shared.shape[2], 1))
    for start in range(0, difference.shape[1], step):
        yield slice(start, start + step)


def _size(anchor: Tensor, background: Tensor) -> int:
    """Entries of one Gram matrix times the pixels it is divided by."""
    return anchor.shape[1] * background.shape[1] * anchor.shape[2] * anchor.shape[3]
