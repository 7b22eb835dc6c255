"""What JPEG does to pictures, by tensor operations, so that a batch on a GPU stays there."""

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_QUANTIZATION = torch.tensor(  # JPEG's example for luma, ISO/IEC 10918-1, table K.1
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    dtype=torch.float32,
)


class _Tables(NamedTuple):
    cosines: Tensor  # (8, 8), the discrete cosine transform
    quantization: Tensor  # (8, 8)


@functools.cache
def _tables(device: torch.device) -> _Tables:
    """Copied to the device once: a copy from ordinary memory in every step would make the host wait."""
    rows = torch.arange(8)[:, None]
    cosines = torch.cos((2 * torch.arange(8) + 1) * rows * torch.pi / 16) / 2
    cosines[0] /= 2**0.5
    return _Tables(cosines.to(device), _QUANTIZATION.to(device))


def jpeg_like(rgb: Tensor, scale: Tensor) -> Tensor:
    """Quantize the 8x8 cosine transform as JPEG does, by its luma table times `scale` (B,) in every RGB channel."""
    height, width = rgb.shape[-2:]
    padded = F.pad(rgb, (0, -width % 8, 0, -height % 8), mode="replicate") * 255 - 128
    blocks = padded.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4)
    matrix = _tables(rgb.device).cosines
    table = (_tables(rgb.device).quantization * scale[:, None, None, None, None, None]).clamp(min=1)
    frequencies = matrix @ blocks @ matrix.T
    blocks = matrix.T @ ((frequencies / table).round() * table) @ matrix
    pixels = blocks.transpose(3, 4).flatten(4, 5).flatten(2, 3)
    return ((pixels[..., :height, :width] + 128) / 255).clamp(0, 1)
