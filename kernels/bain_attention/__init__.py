"""BAIN's attention. Here: what the launcher allocates, and what fake tensors are told of it; needs only torch.

Three buffers are kept for the backward, each filled from both ends, because an image's queries and keys together are at
most its N pixels. A row's number is its pixel's place in the region order: queries first, excluded pixels, keys last.

    rows     (B, N, key width), dtype of query and key: a query's or a key's row
    moments  (B, N, 2 width) float32: from the front, for each query sum_j A_ij v'_j and its variance, in turn for every
             channel; from the back, for each key v' and v'^2 in turn, in the dtype of rows
    scalars  (B, N + 2 width) float32: log2 of each query's sum of exponentials; pivot and unit of every channel

v' = (v - pivot) / unit. Rows that nobody owns hold anything. In keys' and queries' rows the columns past the channels
are zeros, because products sum over them; those of the queries' moments hold anything.
"""

import torch
from torch import Tensor

from scsco_fast.kernels.memory import map_like, shape_only

BLOCK_C = 128  # channels are padded to a multiple of this, or to a power of two below it

Three = tuple[Tensor, Tensor, Tensor]


def key_width(keys: int) -> int:
    """Columns of a query's and a key's row: a power of two, at least 16."""
    return max(16, 1 << (keys - 1).bit_length())


def value_width(channels: int) -> int:
    """Channels with their padding."""
    return max(16, 1 << (channels - 1).bit_length()) if channels <= BLOCK_C else -(-channels // BLOCK_C) * BLOCK_C


def buffers(query: Tensor, key: Tensor, value: Tensor) -> Three:
    """Uninitialised `rows`, `moments` and `scalars` of these maps."""
    batch, channels, height, width = value.shape
    pixels, columns = height * width, value_width(channels)
    dtype = torch.promote_types(query.dtype, key.dtype)
    return (
        value.new_empty((batch, pixels, key_width(query.shape[1])), dtype=dtype),
        value.new_empty((batch, pixels, 2 * columns), dtype=torch.float32),
        value.new_empty((batch, pixels + 2 * columns), dtype=torch.float32),
    )


def allocate(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Mean and deviation, in the memory format of value, and the buffers."""
    return map_like(value), map_like(value), *buffers(query, key, value)


def allocate_gradients(grad: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Three:
    """Of query, key and value, in the memory format of the output's gradient."""
    return map_like(query, grad), map_like(key, grad), map_like(value, grad)


def kept(query: Tensor, key: Tensor, value: Tensor) -> Three:
    """What the backward is given of the maps: their shapes, as the buffers hold their numbers."""
    return shape_only(query), shape_only(key), shape_only(value)
