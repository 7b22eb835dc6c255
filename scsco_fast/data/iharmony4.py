"""iHarmony4, or any data kept the same way; `scsco_fast.data.layouts` says which ways those are."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from scsco_fast.data.images import image_to_tensor, read_picture
from scsco_fast.data.layouts import Member, find_layout
from scsco_fast.data.masks import binary_mask, check_two_sided, read_mask
from scsco_fast.data.samples import BadSample, Sample
from scsco_fast.errors import ScscoError

SMALLEST_CROP = 0.7  # share of the picture's area
_CROP_TRIES = 8


class IHarmony4(Dataset[Sample | BadSample]):
    """Composite, mask and real picture of iHarmony4; `dataset[i]` is a Sample, or a BadSample and never an exception.

    With `size` the pictures are resized to size x size by PIL's antialiased bilinear filter, and the mask is
    thresholded (grey above 127) at its full size, then resized by nearest neighbour. With `size=None` everything keeps
    its full resolution. A mask of another size than its composite, or an empty or full one, is a BadSample.

    `augment` takes a random crop of at least 70 % of the area and flips half of the pictures. It is a pure function of
    `seed` and the index; an index may exceed the length: `dataset[i]` is item `i % len(dataset)` in the crop that
    `(seed, i)` draws, so a trainer that counts on gets new crops in every pass and can resume.

    List entries without a composite, mask or real picture on disk are left out, counted in `missing` and named in a
    warning. `listed` is False where no list says which pictures are for training: both splits are then all of them,
    which a warning says.

    Args:
        root: the dataset's folder, or one subset's folder.
        split: "train" or "test".
        size: side in pixels, or None for full resolution.
        subsets: names of the subsets to keep; None keeps all.
        augment: random crop and flip.
        seed: of the augmentation, not negative.

    Raises:
        ScscoError: no such folder, no list, a malformed list, an unknown subset, or no complete entry at all.

    Examples:
        (needs the dataset)

        >>> dataset = IHarmony4("iHarmony4", "test")  # doctest: +SKIP
        >>> dataset[0].composite.shape  # doctest: +SKIP
        torch.Size([3, 256, 256])
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str = "train",
        size: int | None = 256,
        subsets: Sequence[str] | None = None,
        augment: bool = False,
        seed: int = 0,
    ) -> None:
        if size is not None and size < 1:
            raise ScscoError(f"size {size} is not a picture's side; use a positive number of pixels, or None")
        if seed < 0:
            raise ScscoError(f"seed {seed} is negative; use 0 or more")
        self.root, self.split, self.size, self.augment, self.seed = Path(root), split, size, augment, seed
        layout = find_layout(root, split)
        if layout.malformed:
            more = f" ({len(layout.malformed)} such lines)" if len(layout.malformed) > 1 else ""
            raise ScscoError(layout.malformed[0] + more)
        layout.log()
        self.missing = layout.missing
        if not layout.members:
            raise ScscoError(layout.no_sample())
        self.listed = layout.listed
        self.members = layout.members if subsets is None else keep_subsets(layout.members, subsets)

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[Sample | BadSample]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Sample | BadSample:
        member = self.members[index % len(self.members)]
        try:
            return self._load(member, index)
        except ScscoError as error:
            return BadSample(member.composite.name, str(error))

    def _load(self, member: Member, index: int) -> Sample:
        composite, mask = read_composite(member)
        assert member.real is not None  # find_layout asks for it
        real = read_picture(member.real).rgb
        check_real_size(member.real, real.shape[:2], composite.shape[:2])
        box, flip = (0, 0, mask.shape[1], mask.shape[0]), False
        if self.augment:
            box, flip = draw_crop(mask, np.random.default_rng((self.seed, index)))
        picture, target, cut = (resize_part(array, box, flip, self.size) for array in (composite, real, mask))
        check_mask(member.mask, cut)
        return Sample(
            image_to_tensor(picture),
            image_to_tensor(target),
            torch.from_numpy(cut.astype(np.float32))[None],
            member.composite.name,
            member.subset,
        )


def keep_subsets(members: Sequence[Member], subsets: Sequence[str]) -> list[Member]:
    """The members of the named subsets; a name that none of them has is a `ScscoError`."""
    known = sorted({member.subset for member in members})
    for subset in subsets:
        if subset not in known:
            raise ScscoError(f"subset {subset!r} is not in the list; it has {', '.join(known)}")
    return [member for member in members if member.subset in subsets]


def read_composite(member: Member) -> tuple[np.ndarray, np.ndarray]:
    """The composite, (H, W, 3) uint8, and its mask, (H, W) bool, at full resolution.

    Raises:
        ScscoError: a file cannot be read, the sizes differ, or the mask is empty or full.
    """
    composite = read_picture(member.composite).rgb
    height, width = composite.shape[:2]
    soft = read_mask(member.mask, size=(height, width))
    check_two_sided(soft, member.mask)
    return composite, binary_mask(soft)


def check_real_size(real: Path, size: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """Refuse a real picture whose (height, width) is not its composite's."""
    if size != wanted:
        raise ScscoError(
            f"{real}: the real picture is {size[1]}x{size[0]} but its composite is {wanted[1]}x{wanted[0]}"
        )


def check_mask(path: Path, mask: np.ndarray) -> None:
    """Refuse a resized mask without foreground, or without background."""
    if not mask.any() or mask.all():
        state = "full" if mask.any() else "empty"
        side = f"{mask.shape[1]}x{mask.shape[0]}"
        raise ScscoError(f"{path}: the mask is {state} at {side}; use a larger size")


def resize_part(array: np.ndarray, box: tuple[int, int, int, int], flip: bool, size: int | None) -> np.ndarray:
    """Cut `box` (left, top, right, bottom) out of a picture or a boolean mask, resize it to `size` and flip it.

    Pictures are resized by PIL's antialiased bilinear filter, masks by nearest neighbour. With `size` None the cut
    keeps its size.
    """
    left, top, right, bottom = box
    cut = array[top:bottom, left:right]
    if size is not None and cut.shape[:2] != (size, size):
        if array.dtype == bool:
            resized = Image.fromarray(cut.astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST)
            cut = np.asarray(resized).astype(bool)
        else:
            cut = np.asarray(Image.fromarray(cut).resize((size, size), Image.Resampling.BILINEAR))
    return np.ascontiguousarray(cut[:, ::-1]) if flip else cut


def draw_crop(mask: np.ndarray, rng: np.random.Generator) -> tuple[tuple[int, int, int, int], bool]:
    """A random box of at least 70 % of the area that keeps foreground and background, and whether to flip."""
    flip = bool(rng.random() < 0.5)
    height, width = mask.shape
    for _ in range(_CROP_TRIES):
        high, wide = np.ceil(rng.uniform(SMALLEST_CROP**0.5, 1, 2) * (height, width)).astype(int)
        top, left = int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1))
        cut = mask[top : top + high, left : left + wide]
        if cut.any() and not cut.all():
            return (left, top, left + int(wide), top + int(high)), flip
    return (0, 0, width, height), flip
