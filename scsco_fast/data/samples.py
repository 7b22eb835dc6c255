"""What every dataset yields, and how a list of it becomes a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from scsco_fast.errors import ScscoError


@dataclass(frozen=True)
class Sample:
    """One composite with its real picture.

    Attributes:
        composite: (3, H, W) float32 in [0, 1], the picture with the pasted foreground.
        real: (3, H, W) float32 in [0, 1], what the harmonized picture should be.
        mask: (1, H, W) float32, 1 on the foreground and 0 on the background, nothing between.
        name: names the sample in tables and messages.
        subset: the part of the dataset it belongs to.
    """

    composite: Tensor
    real: Tensor
    mask: Tensor
    name: str
    subset: str


@dataclass(frozen=True)
class BadSample:
    """A sample that cannot be used; `reason` is one line that names the file."""

    name: str
    reason: str


class Batch(NamedTuple):
    """Stacked samples, (B, 3, H, W), (B, 3, H, W), (B, 1, H, W), with the bad ones listed apart. B may be 0."""

    composite: Tensor
    real: Tensor
    mask: Tensor
    names: list[str]
    subsets: list[str]
    bad: list[BadSample]


def collate(items: Sequence[Sample | BadSample]) -> Batch:
    """Stack the good samples and list the bad ones; when all are bad the tensors have B = H = W = 0.

    Raises:
        ScscoError: the samples differ in size.

    Example:
        >>> picture, mask = torch.zeros(3, 4, 4), torch.zeros(1, 4, 4)
        >>> batch = collate([Sample(picture, picture, mask, "a", "s"), BadSample("b", "b.png: no such file")])
        >>> batch.names, len(batch.bad)
        (['a'], 1)
    """
    good = [item for item in items if isinstance(item, Sample)]
    bad = [item for item in items if isinstance(item, BadSample)]
    if not good:
        return Batch(torch.zeros(0, 3, 0, 0), torch.zeros(0, 3, 0, 0), torch.zeros(0, 1, 0, 0), [], [], bad)
    for item in good:
        if item.composite.shape != good[0].composite.shape:
            raise ScscoError(
                f"{item.name} is {_size(item)} but {good[0].name} in the same batch is {_size(good[0])}; "
                "use batch size 1 for pictures at full resolution, or give a working size"
            )
    return Batch(
        torch.stack([item.composite for item in good]),
        torch.stack([item.real for item in good]),
        torch.stack([item.mask for item in good]),
        [item.name for item in good],
        [item.subset for item in good],
        bad,
    )


def _size(sample: Sample) -> str:
    return f"{sample.composite.shape[2]}x{sample.composite.shape[1]}"
