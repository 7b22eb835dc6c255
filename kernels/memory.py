"""What the attention's forward keeps for its backward, as the launcher and the fake allocate it; needs only torch.

Three buffers, each filled from both ends, because an image's queries and keys together are at most its N pixels. A
row's number is its pixel's place in the region order: queries first, excluded pixels, keys last.

    rows     (B, N, key width), dtype of query and key: a query's or a key's row
    moments  (B, N, 2 width) float32: from the front, for each query sum_j A_ij v'_j and its variance, in turn for every
             channel; from the back, for each key v' and v'^2 in turn, in the dtype of rows
    scalars  (B, N + 2 width) float32: log2 of each query's sum of exponentials; pivot and unit of every channel

v' = (v - pivot) / unit. Rows that nobody owns hold anything. In keys' and queries' rows the columns past the channels
are zeros, because products sum over them; those of the queries' moments hold anything.
"""

import torch
from torch import Tensor

BLOCK_C = 128  # channels are padded to a multiple of this, or to a power of two below it


def key_width(keys: int) -> int:
    """Columns of a query's and a key's row: a power of two, at least 16."""
    return max(16, 1 << (keys - 1).bit_length())


def value_width(channels: int) -> int:
    """Channels with their padding."""
    return max(16, 1 << (channels - 1).bit_length()) if channels <= BLOCK_C else -(-channels // BLOCK_C) * BLOCK_C


def allocate(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Uninitialised `rows`, `moments` and `scalars` of these maps."""
    batch, channels, height, width = value.shape
    pixels, columns = height * width, value_width(channels)
    dtype = torch.promote_types(query.dtype, key.dtype)
    return (
        value.new_empty((batch, pixels, key_width(query.shape[1])), dtype=dtype),
        value.new_empty((batch, pixels, 2 * columns), dtype=torch.float32),
        value.new_empty((batch, pixels + 2 * columns), dtype=torch.float32),
    )


def map_like(tensor: Tensor, layout: Tensor | None = None) -> Tensor:
    """An uninitialised map with the shape and dtype of `tensor`, channels last where `layout` or else `tensor` is."""
    layout = tensor if layout is None else layout
    last = layout.is_contiguous(memory_format=torch.channels_last) and not layout.is_contiguous()
    memory_format = torch.channels_last if last else torch.contiguous_format
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device, memory_format=memory_format)
