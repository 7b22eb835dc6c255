"""What every dataset yields, and how a list of it becomes a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import default_collate

from scsco_fast.data.crops import crop_and_flip
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

    def to(self, device: str | torch.device) -> Batch:
        """The same with its tensors on `device`, copied without waiting where they are pinned."""
        composite, real, mask = (tensor.to(device, non_blocking=True) for tensor in self[:3])
        return Batch(composite, real, mask, self.names, self.subsets, self.bad)


class PackedBatch(NamedTuple):
    """Samples as a packed store holds them, to be cropped, flipped and turned into floats on their device by `to`.

    Attributes:
        composite, real: (B, H, W, 3) uint8.
        mask: (B, ceil(H * W / 8)) uint8, eight pixels in a byte, the first in the highest bit (`numpy.packbits`).
        boxes: (B, 4) int32, left, top, right, bottom of the crop that fills the picture; None crops and flips nothing.
        flips: (B,) bool, turn left and right; None as above.
        foreground: (B, 4) int64 as of `scsco_fast.foreground_boxes`, after crop and flip, by up to two pixels larger:
            known on the host, while the masks themselves are unpacked on their device.
        names, subsets, bad: as in `Batch`.
    """

    composite: Tensor
    real: Tensor
    mask: Tensor
    boxes: Tensor | None
    flips: Tensor | None
    foreground: Tensor
    names: list[str]
    subsets: list[str]
    bad: list[BadSample]

    def pin_memory(self) -> PackedBatch:
        """The same in memory from which a GPU can copy by itself."""
        composite, real, mask = (tensor.pin_memory() for tensor in self[:3])
        boxes, flips = (None if tensor is None else tensor.pin_memory() for tensor in (self.boxes, self.flips))
        return self._replace(composite=composite, real=real, mask=mask, boxes=boxes, flips=flips)

    def to(self, device: str | torch.device) -> Batch:
        """The batch in floats on `device`. A quarter of the bytes travel, and the host does not wait."""
        composite, real, bits = (tensor.to(device, non_blocking=True) for tensor in self[:3])
        count, height, width = composite.shape[:3]
        shifts = torch.arange(7, -1, -1, device=bits.device, dtype=torch.uint8)
        pixels = (bits[:, :, None] >> shifts & 1).flatten(1)[:, : height * width]
        mask = pixels.reshape(count, 1, height, width)
        pictures = torch.cat([composite, real], dim=3).permute(0, 3, 1, 2)  # (B, 6, H, W)
        # Divided as `image_to_tensor` does, so that both ways give the same floats.
        pictures = pictures.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        if self.boxes is not None and self.flips is not None:
            boxes, flips = (tensor.to(device, non_blocking=True) for tensor in (self.boxes, self.flips))
            pictures, mask = crop_and_flip(pictures, mask, boxes, flips)
        return Batch(
            pictures[:, :3].contiguous(),
            pictures[:, 3:].contiguous(),
            mask.to(torch.float32),
            self.names,
            self.subsets,
            self.bad,
        )


def collate(items: Sequence[Sample | BadSample] | PackedBatch) -> Batch:
    """Stack the good samples and list the bad ones; when all are bad the tensors have B = H = W = 0.

    A batch of a packed store, which comes whole, is only turned into floats. A worker process stacks at once in the
    memory that the training process reads: a batch of 16 at 256 pixels takes 13 to 19 ms to hand over, and 30 to 40 if
    it is stacked elsewhere and copied.

    Raises:
        ScscoError: the samples differ in size.

    Examples:
        >>> picture, mask = torch.zeros(3, 4, 4), torch.zeros(1, 4, 4)
        >>> batch = collate([Sample(picture, picture, mask, "a", "s"), BadSample("b", "b.png: no such file")])
        >>> batch.names, len(batch.bad)
        (['a'], 1)
    """
    if isinstance(items, PackedBatch):
        return items.to("cpu")
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
    composite, real, mask = default_collate([(item.composite, item.real, item.mask) for item in good])
    return Batch(composite, real, mask, [item.name for item in good], [item.subset for item in good], bad)


def _size(sample: Sample) -> str:
    return f"{sample.composite.shape[2]}x{sample.composite.shape[1]}"
