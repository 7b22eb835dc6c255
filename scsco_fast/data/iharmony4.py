"""iHarmony4 in its official layout, or any data kept the same way.

::

    ROOT/IHD_train.txt  IHD_test.txt          lines: HCOCO/composite_images/c21070_1396052_1.jpg
    ROOT/HCOCO/HCOCO_train.txt                lines: c21070_1396052_1.jpg (read where ROOT has no IHD list)
    ROOT/HCOCO/composite_images/ID_M_K.jpg    ROOT/HCOCO/masks/ID_M.png    ROOT/HCOCO/real_images/ID.jpg

ROOT may also be one subset's own folder. Only the file *name* is split at the underscores; ids may contain `-`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from scsco_fast.data.images import PICTURE_SUFFIXES, binary_mask, image_to_tensor, read_mask, read_picture
from scsco_fast.data.samples import BadSample, Sample
from scsco_fast.errors import ScscoError

SUBSETS = ("HAdobe5k", "HCOCO", "HFlickr", "Hday2night")
SPLITS = ("train", "test")

_SUBSET_OF_LETTER = {"a": "HAdobe5k", "c": "HCOCO", "f": "HFlickr", "d": "Hday2night"}
_SMALLEST_CROP = 0.7  # share of the picture's area
_CROP_TRIES = 8
_NAMES_SAID = 3

_log = logging.getLogger("scsco_fast")


class _Member(NamedTuple):
    subset: str
    composite: Path
    mask: Path
    real: Path


class IHarmony4(Dataset[Sample | BadSample]):
    """Composite, mask and real picture of iHarmony4; `dataset[i]` is a Sample, or a BadSample and never an exception.

    With `size` the pictures are resized to size x size by PIL's antialiased bilinear filter, and the mask is
    thresholded (grey above 127) at its full size, then resized by nearest neighbour. With `size=None` everything keeps
    its full resolution. A mask of another size than its composite, or an empty or full one, is a BadSample.

    `augment` takes a random crop of at least 70 % of the area and flips half of the pictures. It is a pure function of
    `seed` and the index; an index may exceed the length: `dataset[i]` is item `i % len(dataset)` in the crop that
    `(seed, i)` draws, so a trainer that counts on gets new crops in every pass and can resume.

    List entries without a composite, mask or real picture on disk are left out, counted in `missing` and named in a
    warning.

    Args:
        root: the dataset's folder, or one subset's folder.
        split: "train" or "test".
        size: side in pixels, or None for full resolution.
        subsets: names of the subsets to keep; None keeps all.
        augment: random crop and flip.
        seed: of the augmentation, not negative.

    Raises:
        ScscoError: no such folder, no list, a malformed list, an unknown subset, or no complete entry at all.

    Example (needs the dataset):
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
        if split not in SPLITS:
            raise ScscoError(f"split {split!r} is unknown; use one of {', '.join(SPLITS)}")
        if size is not None and size < 1:
            raise ScscoError(f"size {size} is not a picture's side; use a positive number of pixels, or None")
        if seed < 0:
            raise ScscoError(f"seed {seed} is negative; use 0 or more")
        self.root, self.split, self.size, self.augment, self.seed = Path(root), split, size, augment, seed
        entries = _read_entries(self.root, split)
        if subsets is not None:
            entries = _keep_subsets(entries, subsets)
        self.members, self.missing = _find_members(entries)
        if not self.members:
            raise ScscoError(f"{self.root}: none of the {split} list's entries is complete; first: {self.missing[0]}")
        if self.missing:
            said = "; ".join(self.missing[:_NAMES_SAID])
            _log.warning(
                "%s: %d of %d %s entries are left out: %s%s",
                self.root,
                len(self.missing),
                len(entries),
                split,
                said,
                "; ..." if len(self.missing) > _NAMES_SAID else "",
            )

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

    def _load(self, member: _Member, index: int) -> Sample:
        composite = read_picture(member.composite).rgb  # (H, W, 3)
        height, width = composite.shape[:2]
        real = read_picture(member.real).rgb
        if real.shape != composite.shape:
            raise ScscoError(
                f"{member.real}: the real picture is {real.shape[1]}x{real.shape[0]} "
                f"but its composite is {width}x{height}"
            )
        soft = read_mask(member.mask, size=(height, width))
        mask = binary_mask(soft)
        if not mask.any():
            raise ScscoError(
                f"{member.mask}: the mask is empty (its largest grey value is {soft.max() * 255:.0f}, "
                "foreground is above 127)"
            )
        if mask.all():
            raise ScscoError(f"{member.mask}: the mask is full, no background is left")
        box, flip = (0, 0, width, height), False
        if self.augment:
            box, flip = _draw_crop(mask, np.random.default_rng((self.seed, index)))
        picture, target, cut = (_crop(array, box, flip, self.size) for array in (composite, real, mask))
        if not cut.any() or cut.all():
            state = "full" if cut.all() else "empty"
            raise ScscoError(f"{member.mask}: the mask is {state} at {self.size}x{self.size}; use a larger size")
        return Sample(
            image_to_tensor(picture),
            image_to_tensor(target),
            torch.from_numpy(cut.astype(np.float32))[None],
            member.composite.name,
            member.subset,
        )


def _crop(array: np.ndarray, box: tuple[int, int, int, int], flip: bool, size: int | None) -> np.ndarray:
    """Cut `box` (left, top, right, bottom) out of a picture or a boolean mask, resize it to `size` and flip it."""
    left, top, right, bottom = box
    cut = array[top:bottom, left:right]
    if size is not None and cut.shape[:2] != (size, size):
        if array.dtype == bool:
            resized = Image.fromarray(cut.astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST)
            cut = np.asarray(resized).astype(bool)
        else:
            cut = np.asarray(Image.fromarray(cut).resize((size, size), Image.Resampling.BILINEAR))
    return np.ascontiguousarray(cut[:, ::-1]) if flip else cut


def _draw_crop(mask: np.ndarray, rng: np.random.Generator) -> tuple[tuple[int, int, int, int], bool]:
    """A random box of at least 70 % of the area that keeps foreground and background, and whether to flip."""
    flip = bool(rng.random() < 0.5)
    height, width = mask.shape
    for _ in range(_CROP_TRIES):
        high, wide = np.ceil(rng.uniform(_SMALLEST_CROP**0.5, 1, 2) * (height, width)).astype(int)
        top, left = int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1))
        cut = mask[top : top + high, left : left + wide]
        if cut.any() and not cut.all():
            return (left, top, left + int(wide), top + int(high)), flip
    return (0, 0, width, height), flip


class _Entry(NamedTuple):
    subset: str
    folder: Path  # holds composite_images, masks, real_images
    name: str


def _read_entries(root: Path, split: str) -> list[_Entry]:
    if not root.is_dir():
        raise ScscoError(f"{root}: no such folder; give iHarmony4's root, or one subset's folder")
    whole = root / f"IHD_{split}.txt"
    if whole.is_file():
        return [_entry_of_line(root, line, f"{whole}:{number}") for number, line in _lines(whole)]
    folders = [root / subset for subset in SUBSETS if (root / subset).is_dir()] or [root]
    entries: list[_Entry] = []
    for folder in folders:
        for listed in _subset_lists(folder, split):
            entries += [_entry_of_line(folder, line, f"{listed}:{number}") for number, line in _lines(listed)]
    if not entries:
        raise ScscoError(
            f"{root}: no list of {split} pictures; IHD_{split}.txt is wanted there, "
            f"or SUBSET_{split}.txt in each of its subset folders ({', '.join(SUBSETS)})"
        )
    return entries


def _subset_lists(folder: Path, split: str) -> list[Path]:
    own = folder / f"{folder.name}_{split}.txt"
    if own.is_file():
        return [own]
    return [folder / f"{subset}_{split}.txt" for subset in SUBSETS if (folder / f"{subset}_{split}.txt").is_file()]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The list's lines that are not blank, numbered from 1; a byte-order mark and Windows line ends are dropped."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ScscoError(f"{path}: cannot be read as a list of file names ({error})") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield number, line.strip().replace("\\", "/")


def _entry_of_line(root: Path, line: str, where: str) -> _Entry:
    parts = PurePosixPath(line).parts
    name = parts[-1] if parts else ""
    if Path(name).stem.count("_") < 2:
        raise ScscoError(f"{where}: {line!r} is not a composite's name; ID_M_K.jpg is wanted")
    if len(parts) == 1 or parts[:-1] == ("composite_images",):
        folder, subset = root, _SUBSET_OF_LETTER.get(name[0], root.name)
    elif len(parts) == 3 and parts[1] == "composite_images":
        folder, subset = root / parts[0], parts[0]
    else:
        raise ScscoError(f"{where}: {line!r} is not in the layout; SUBSET/composite_images/ID_M_K.jpg is wanted")
    return _Entry(subset, folder, name)


def _keep_subsets(entries: list[_Entry], subsets: Sequence[str]) -> list[_Entry]:
    known = sorted({entry.subset for entry in entries})
    for subset in subsets:
        if subset not in known:
            raise ScscoError(f"subset {subset!r} is not in the list; it has {', '.join(known)}")
    return [entry for entry in entries if entry.subset in subsets]


def _find_members(entries: list[_Entry]) -> tuple[list[_Member], list[str]]:
    """The entries whose three files are there, and a line for each of the others."""
    # One listing per folder: 200,000 separate looks at the disk take minutes on a network drive.
    listing = cache(_list_folder)
    members: list[_Member] = []
    missing: list[str] = []
    for subset, folder, name in entries:
        identity, number, _ = Path(name).stem.rsplit("_", 2)
        suffix = Path(name).suffix
        composite, mask, real = folder / "composite_images", folder / "masks", folder / "real_images"
        mask_name = _pick(listing(mask), f"{identity}_{number}", ".png")
        real_name = _pick(listing(real), identity, suffix)
        if name not in listing(composite):
            missing.append(f"{composite / name}: no such file")
        elif mask_name is None:
            missing.append(f"{mask / f'{identity}_{number}.png'}: no such file")
        elif real_name is None:
            missing.append(f"{real / (identity + suffix)}: no such file")
        else:
            members.append(_Member(subset, composite / name, mask / mask_name, real / real_name))
    return members, missing


def _list_folder(folder: Path) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))
    except OSError:
        return frozenset()


def _pick(names: frozenset[str], stem: str, suffix: str) -> str | None:
    """`stem` with `suffix`, or with another picture suffix that tools leave behind; None where there is none."""
    return next((stem + end for end in (suffix, *PICTURE_SUFFIXES) if stem + end in names), None)
