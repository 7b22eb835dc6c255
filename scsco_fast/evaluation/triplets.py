"""Composite, mask and real picture from files as a protocol reads them, with another method's output where wanted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from scsco_fast.data.iharmony4 import check_real_size
from scsco_fast.data.images import PICTURE_SUFFIXES, image_to_tensor, read_picture
from scsco_fast.data.layouts import Member
from scsco_fast.data.masks import binary_mask, read_mask
from scsco_fast.data.samples import BadSample, Sample
from scsco_fast.errors import ScscoError
from scsco_fast.evaluation.protocols import Protocol, scored_mask, scored_picture


@dataclass(frozen=True)
class Triplet(Sample):
    """A sample at the scored resolution; its mask holds weights in [0, 1] where the protocol's is soft.

    Attributes:
        width: of the composite's file, in pixels.
        height: of the composite's file, in pixels.
        foreground_ratio: share of the file's pixels whose mask is above grey 127, whatever the protocol.
        prediction: (3, H, W) float32 in [0, 1], the method's output; None where there is no folder of them.
    """

    width: int
    height: int
    foreground_ratio: float
    prediction: Tensor | None = None


class Triplets(Dataset[Sample | BadSample]):
    """The members of a dataset as a protocol scores them; `triplets[i]` is a Triplet, or a BadSample and no exception.

    Files are read by one reader for all protocols: upright, transparency dropped, colour masks turned to grey.

    Args:
        members: of an `IHarmony4`; each needs its real picture.
        protocol: decides filter, mask and rounding of what is read.
        resolution: side in pixels; None keeps the full resolution.
        predictions: folder of a method's outputs, one for each composite: of its name, with any picture suffix, in any
            subfolder. They have the scored size, unless the protocol resizes them.
        split: part of the dataset, for the reports; None where it has no parts.

    Attributes:
        unpredicted: names of the composites that the folder of predictions has no picture for; they are left out.

    Raises:
        ScscoError: no such folder, or it holds a prediction for none of the composites.
    """

    def __init__(
        self,
        members: Sequence[Member],
        protocol: Protocol,
        resolution: int | None,
        predictions: str | os.PathLike[str] | None = None,
        split: str | None = "test",
    ) -> None:
        self.members, self.protocol, self.size, self.split = list(members), protocol, resolution, split
        self.predictions: dict[str, list[Path]] | None = None
        self.unpredicted: list[str] = []
        if predictions is None:
            return
        self.predictions = found = _list_predictions(Path(predictions))
        self.unpredicted = [member.composite.name for member in members if member.composite.stem not in found]
        self.members = [member for member in members if member.composite.stem in found]
        if not self.members:
            first = f"{members[0].composite.stem} with any of {', '.join(PICTURE_SUFFIXES)}" if members else "any"
            raise ScscoError(
                f"{predictions}: holds a prediction for none of the {len(members)} composites; wanted {first}"
            )

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> Sample | BadSample:
        member = self.members[index]
        try:
            return self._load(member)
        except ScscoError as error:
            return BadSample(member.composite.name, str(error))

    def _load(self, member: Member) -> Triplet:
        path = self._prediction_of(member.composite)
        composite = read_picture(member.composite).rgb  # (H, W, 3)
        height, width = composite.shape[:2]
        if member.real is None:
            raise ScscoError(f"{member.composite}: has no real picture to be compared with")
        real = read_picture(member.real).rgb
        check_real_size(member.real, real.shape[:2], (height, width))
        grey = read_mask(member.mask, size=(height, width))
        size = (height, width) if self.size is None else (self.size, self.size)
        mask = scored_mask(grey, self.protocol, size)
        if not mask.any():
            raise ScscoError(
                f"{member.mask}: the mask is empty at {size[1]}x{size[0]} (its largest grey value is "
                f"{grey.max() * 255:.0f}); fMSE is not defined"
            )
        return Triplet(
            composite=image_to_tensor(scored_picture(composite, self.protocol, size)),
            real=image_to_tensor(scored_picture(real, self.protocol, size)),
            mask=torch.from_numpy(mask)[None],
            name=member.composite.name,
            subset=member.subset,
            width=width,
            height=height,
            foreground_ratio=float(binary_mask(grey).mean()),
            prediction=None if path is None else image_to_tensor(self._sized(path, size)),
        )

    def _prediction_of(self, composite: Path) -> Path | None:
        if self.predictions is None:
            return None
        found = self.predictions[composite.stem]
        if len(found) > 1:
            raise ScscoError(
                f"{composite.name}: has {len(found)} predictions, one is wanted: {', '.join(map(str, found))}"
            )
        return found[0]

    def _sized(self, path: Path, size: tuple[int, int]) -> np.ndarray:
        output = read_picture(path).rgb
        if output.shape[:2] == size or (self.size is not None and self.protocol.resizes_outputs):
            return scored_picture(output, self.protocol, size)
        raise ScscoError(
            f"{path}: the prediction is {output.shape[1]}x{output.shape[0]} but {size[1]}x{size[0]} is scored, and "
            f"protocol {self.protocol.name} resizes no outputs; write them at that size, or choose another resolution"
        )


def _list_predictions(folder: Path) -> dict[str, list[Path]]:
    """The pictures below `folder` by their name without suffix."""
    if not folder.is_dir():
        raise ScscoError(f"{folder}: no such folder; give the one with the method's outputs")
    found: dict[str, list[Path]] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            if Path(name).suffix.lower() in PICTURE_SUFFIXES:
                found.setdefault(Path(name).stem, []).append(Path(parent, name))
    return found
