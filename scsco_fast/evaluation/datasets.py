"""The data set of an evaluation, by its name or folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

from scsco_fast.architecture import WORKING_SIZE
from scsco_fast.data.iharmony4 import IHarmony4
from scsco_fast.data.photos import load_photos
from scsco_fast.errors import ScscoError
from scsco_fast.evaluation.protocols import protocol_named
from scsco_fast.evaluation.resolution import Resolution
from scsco_fast.evaluation.triplets import Triplets
from scsco_fast.synthesis.synthetic import SyntheticComposites

SYNTHETIC_COUNT = 48  # composites, where no number is given


def load_dataset(
    source: str | os.PathLike[str] = "synthetic",
    *,
    protocol: str = "strict",
    resolution: Resolution = WORKING_SIZE,
    split: Literal["train", "test"] = "test",
    subsets: Sequence[str] | None = None,
    count: int | None = None,
    predictions: str | os.PathLike[str] | None = None,
    photos: str | os.PathLike[str] = "builtin",
    seed: int = 0,
) -> Triplets | SyntheticComposites:
    """The pictures that a method is measured on, for `evaluate`.

    Args:
        source: the folder of iHarmony4 or of data kept like it; or "synthetic": composites made from photographs.
        protocol: how files are read and resized; a name of `PROTOCOLS`, the one that `evaluate` is given.
        resolution: side of the scored square pictures in pixels, or "full".
        split: part of the data set. A folder without lists has no parts: all of it is taken, which a warning says.
        subsets: of iHarmony4; None takes all of them.
        count: how many composites; None takes all of a folder, and makes 48 synthetic ones.
        predictions: folder of a method's outputs, which `evaluate(None, dataset)` then scores.
        photos: photographs of the synthetic composites: a folder, or "builtin": those of installed packages.
        seed: of the synthetic composites.

    Raises:
        ScscoError: no such folder, no complete sample in it, an unknown protocol or subset; a resolution, count or seed
            out of range; synthetic composites at full resolution, which they do not have, or with predictions.

    Examples:
        >>> dataset = load_dataset(count=2, resolution=32)
        >>> len(dataset), dataset[0].composite.shape
        (2, torch.Size([3, 32, 32]))

        >>> dataset = load_dataset("iHarmony4", resolution="full")  # doctest: +SKIP
    """
    side = None if resolution == "full" else resolution
    if side is not None and side < 1:
        raise ScscoError(f"resolution is {resolution}; wanted at least 1 pixel, or 'full'")
    if count is not None and count < 1:
        raise ScscoError(f"count is {count}; wanted at least 1")
    if source != "synthetic":
        found = IHarmony4(source, split=split, subsets=subsets)
        part = split if found.listed else None
        return Triplets(found.members[:count], protocol_named(protocol), side, predictions, part)
    if predictions is not None:
        raise ScscoError("synthetic composites have no file names to match predictions with; give a folder as source")
    if side is None:
        raise ScscoError("synthetic composites have no full resolution; wanted a number of pixels, such as 256")
    length = SYNTHETIC_COUNT if count is None else count
    return SyntheticComposites(load_photos(photos, split), size=side, length=length, seed=seed, augment=False)
