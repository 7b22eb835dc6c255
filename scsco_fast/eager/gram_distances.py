"""Distances of Gram matrices that share one factor: one product per pair, in blocks of rows, and no stored Gram matrix.

G(f, b) - G(o, b) = G(f - o, b), so each pair needs one product, of the difference with the background.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from scsco_fast.eager.dtypes import accumulate_dtype

BLOCK_ELEMENTS = 1 << 20  # of one block of rows of a Gram matrix, over the batch


def forward(anchor: Tensor, background: Tensor, others: Tensor) -> Tensor:
    """mean |(f - o_j) b^T| / (H W): (B, J)."""
    dtype = accumulate_dtype(anchor, background, others)
    shared = background.to(dtype).flatten(2).transpose(1, 2)  # (B, N, Cb)
    sums = shared.new_zeros(others.shape[:2])
    for j, difference in _differences(anchor, others, dtype):
        for rows in _row_blocks(difference, shared):
            sums[:, j] += (difference[:, rows] @ shared).abs_().sum(dim=(1, 2))
    return sums / _size(anchor, background)


def backward(grad: Tensor, anchor: Tensor, background: Tensor, others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """With s_j = g_j sign((f - o_j) b^T) / n: df = sum_j s_j b, do_j = -s_j b, db = sum_j s_j^T (f - o_j)."""
    dtype = grad.dtype
    b = background.to(dtype).flatten(2)  # (B, Cb, N)
    shared = b.transpose(1, 2)
    scaled = grad / _size(anchor, background)
    d_anchor = torch.zeros(anchor.shape, dtype=dtype, device=anchor.device).flatten(2)
    d_background = torch.zeros_like(b, memory_format=torch.contiguous_format)
    d_others = torch.empty_like(others, memory_format=torch.contiguous_format)
    for j, difference in _differences(anchor, others, dtype):
        flow = torch.empty_like(d_anchor)
        for rows in _row_blocks(difference, shared):
            signs = (difference[:, rows] @ shared).sign_().mul_(scaled[:, j].reshape(-1, 1, 1))
            flow[:, rows] = signs @ b
            d_background += signs.transpose(1, 2) @ difference[:, rows]
        d_anchor += flow
        d_others[:, j] = -flow.reshape(anchor.shape)
    d_anchor = d_anchor.reshape(anchor.shape).to(anchor.dtype)
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
