"""feature_distances compiled from csrc/: into how many splits the elements are cut.

tests/contract/test_feature_distances.py holds what every backend must do.
"""

import pytest
import torch
from oracle import random
from torch import Tensor

from scsco_fast.cuda.library import operations


def maps(batch: int, others: int, channels: int, pixels: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return random(batch, channels, *pixels, dtype=dtype), random(batch, others, channels, *pixels, seed=2, dtype=dtype)


@pytest.mark.parametrize(
    ("channels", "pixels", "splits"),
    [
        (5, (12, 16), 1),  # in the order of memory, 1024 elements at once
        (5, (64, 64), 20),
        (4, (243, 270), 129),  # 257 blocks: two to a split, the last has one
        (5, (3, 7), 1),  # in tiles of 64 channels by 32 pixels
        (5, (63, 65), 128),
        (65, (55, 75), 129),  # 2 x 129 tiles: one split has the last of a row and the first of the next
    ],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_splits_join(channels: int, pixels: tuple[int, int], splits: int, channels_last: bool) -> None:
    """Shapes that are cut into 256 splits at most."""
    anchor, others = maps(1, 1, channels, pixels, torch.float32)
    if channels_last:
        anchor, others = (t.movedim(-3, -1).contiguous().movedim(-1, -3) for t in (anchor, others))
    parts = operations().feature_distances_forward(anchor.flatten(2), others.flatten(3))
    assert parts.shape == (1, 1, splits)
