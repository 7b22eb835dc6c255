"""Photographs to make composites from: where they come from, how they are split, and which regions can be a foreground.

The source "builtin" is the everyday colour photographs inside the wheels of packages, so it needs no network:

| name | what | package | standing (as the package states it) | split |
|---|---|---|---|---|
| astronaut | Eileen Collins, NASA | scikit-image | public domain | train |
| motorcycle | a motorcycle in a garage (left), Middlebury Stereo | scikit-image | CC0 by the photographer | train |
| rocket | a rocket on its launch pad at dusk, SpaceX | scikit-image | public domain | train |
| grace_hopper | Grace Hopper, U.S. Navy | matplotlib | public domain | train |
| china | a Chinese temple, danielbuechele on Flickr | scikit-learn | CC BY 2.0 | train, where installed |
| flower | a dahlia, vultilion on Flickr | scikit-learn | CC BY 2.0 | train, where installed |
| chelsea | a cat | scikit-image | CC0 by the photographer | test |
| coffee | a cup of coffee | scikit-image | CC0 by the photographer | test |

scikit-learn comes with the `train` extra; without it two photographs fewer are trained on, and the test split is the
same. Left out of scikit-image: the right view of the motorcycle (the same scene), micrographs, the retina and the deep
field (no objects to cut out), grey pictures, drawings.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageFilter

from scsco_fast.data.images import PICTURE_SUFFIXES, read_picture
from scsco_fast.data.masks import binary_mask, read_mask
from scsco_fast.errors import ScscoError
from scsco_fast.system.extras import is_installed, module_of, require

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")

MASKS_FOLDER = "masks"
TEST_SHARE = 0.2
LONGEST_SIDE = 1024  # of a photograph in memory: 2 MB, and 128 KB for its regions

_SEGMENTED_SIDE = 256
_SUPERPIXELS = 120
_COMPACTNESS = 20.0
_LEAST_RANGE = 16  # grey levels
_CANDIDATES = 64
_GROWTHS = 256
_AREA_RANGE = (0.01, 0.35)  # share of the photograph
_LEAST_SOLIDITY = 0.6  # area / area of the convex hull
_MOST_FRAME = 0.35  # share of the outline that lies on the picture's frame
_OUTLINE_SMOOTHING = 1.5
_REGION_RANGE = (0.02, 0.6)
_SEGMENT_SCALE = 150.0
_SNAP_SCALE = 20.0
_NAMES_SHOWN = 3

# Of Pillow's Gaussian blur, three box blurs, in standard deviations, rounded up: of 1.5 it reaches 4 pixels, of 0.5 it
# reaches 2.
_BLUR_REACH = 4.0

Window = tuple[slice, slice]

_log = logging.getLogger("scsco_fast")


@dataclass(frozen=True, eq=False)
class Photo:
    """A photograph and the regions of it that can be a foreground.

    Attributes:
        name: unique within its source.
        rgb: (H, W, 3) uint8, at most 1024 pixels long.
        regions: (h, w) uint16, a label for each pixel; may be smaller than `rgb`, with the same framing.
        candidates: each a set of labels that together look like one object.
        smoothing: standard deviation, in pixels of `regions`, of the blur that takes spikes off a candidate's outline.
    """

    name: str
    rgb: np.ndarray
    regions: np.ndarray
    candidates: tuple[tuple[int, ...], ...]
    smoothing: float = 0.0

    def foreground(self, candidate: int) -> np.ndarray:
        """(h, w) uint8: 255 on one candidate and 0 elsewhere, grey along a smoothed outline; the outline is at 127."""
        grey, window = self.cut_out(candidate)
        whole = np.zeros(self.regions.shape, dtype=np.uint8)
        whole[window] = grey
        return whole

    def cut_out(self, candidate: int) -> tuple[np.ndarray, Window]:
        """The part of `foreground(candidate)` outside which it is 0, and where that part lies."""
        labels = list(self.candidates[candidate])
        grey = np.zeros(len(self._corners), dtype=np.uint8)
        grey[labels] = 255
        margin = math.ceil(_BLUR_REACH * self.smoothing)
        low = np.maximum(self._corners[labels, 0].min(axis=0) - margin, 0)
        high = self._corners[labels, 1].max(axis=0) + margin  # past the frame: a slice ends there
        window = (slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1])))
        inside = grey[self.regions[window]]
        if self.smoothing == 0:
            return inside, window
        return np.asarray(Image.fromarray(inside).filter(ImageFilter.GaussianBlur(self.smoothing))), window

    @functools.cached_property
    def _corners(self) -> np.ndarray:
        """(n, 2, 2): for each label the first row and column, and the ones after the last; of no pixels, no extent."""
        count = int(self.regions.max()) + 1
        low, high = np.tile(self.regions.shape, (count, 1)), np.zeros((count, 2), dtype=np.int64)
        for axis in range(2):
            labels = np.moveaxis(self.regions, axis, 0).ravel()
            places = np.repeat(np.arange(self.regions.shape[axis]), self.regions.shape[1 - axis])
            high[labels, axis] = places + 1  # of an index that comes again, the last value stays
            low[labels[::-1], axis] = places[::-1]
        return np.stack([low, high], axis=1)


def load_photos(source: str | os.PathLike[str], split: Split) -> list[Photo]:
    """The photographs of one split, with their candidate foregrounds; takes about half a second per photograph.

    A folder is searched with its subfolders. Where all its pictures are in `train/` and `test/`, these are the split.
    Else it is split by a hash of the file name, a fifth for testing and at least one photograph on either side, so the
    split does not depend on the order of the files and hardly on how many there are. A mask for `FOLDER/a/b.jpg` is
    looked for at `FOLDER/masks/a/b.png` (white is foreground, the photograph's size, any mode); a photograph without
    one is segmented. Files that cannot be used are skipped, counted and named
    in a warning.

    Args:
        source: "builtin" (the photographs inside installed packages; the split is fixed) or a folder.
        split: "train" or "test".

    Returns:
        At least one photograph, ordered by name.

    Raises:
        ScscoError: no such folder, fewer than two photographs in it, or none of the split can be used.

    Examples:
        >>> [photo.name for photo in load_photos("builtin", "test")]
        ['chelsea', 'coffee']
    """
    if split not in SPLITS:
        raise ScscoError(f"split {split!r} is unknown; use one of {', '.join(SPLITS)}")
    if os.fspath(source) == "builtin":
        return _load_builtin(split)
    return _load_folder(Path(source), split)


def segmented_photo(name: str, rgb: np.ndarray, longest: int = LONGEST_SIDE) -> Photo:
    """A `Photo` of an (H, W, 3) uint8 picture, with candidate foregrounds found by segmentation.

    A picture of more than `longest` pixels on its long side is reduced to it.

    SLIC superpixels of the picture at 256 pixels are grown from a random one, neighbour by neighbour, towards long
    common borders and, more or less, similar colours, to a random area of 1 to 35 % of the picture. A union is kept if
    it is compact (solidity at least 0.6) and not mostly cut off by the picture's frame. The random numbers are seeded
    by the name, so a photograph has the same candidates in every run.

    Raises:
        ScscoError: no object-like region was found, as in a flat picture; scikit-image is missing.
    """
    require("finding the regions of a photograph", "train", "scikit-image")
    from skimage.segmentation import slic

    rgb = shrink(rgb, longest)
    small = shrink(rgb, _SEGMENTED_SIDE)
    regions = slic(small, n_segments=_SUPERPIXELS, compactness=_COMPACTNESS, start_label=0).astype(np.uint16)
    flat = int(np.ptp(small, axis=(0, 1)).max()) < _LEAST_RANGE  # superpixels tile a flat picture too
    candidates = () if flat else _object_like_unions(small, regions, np.random.default_rng(name_hash(name)))
    if not candidates:
        raise ScscoError(f"{name}: no region of the photograph looks like an object; give it a mask, or leave it out")
    return Photo(name, rgb, regions, candidates, smoothing=_OUTLINE_SMOOTHING)


def masked_photo(name: str, rgb: np.ndarray, mask_path: Path, longest: int = LONGEST_SIDE) -> Photo:
    """A `Photo` of an (H, W, 3) uint8 picture with one candidate foreground, the mask file's grey above 127.

    Raises:
        ScscoError: the mask cannot be read, has another size than the picture, or is empty or full.
    """
    mask = binary_mask(read_mask(mask_path, size=rgb.shape[:2]))
    if mask.all() or not mask.any():
        raise ScscoError(f"{mask_path}: the mask is {'full' if mask.all() else 'empty'} (foreground is grey above 127)")
    rgb = shrink(rgb, longest)
    shrunk = Image.fromarray(mask.astype(np.uint8)).resize(rgb.shape[1::-1], Image.Resampling.NEAREST)
    return Photo(name, rgb, np.asarray(shrunk, dtype=np.uint16), ((1,),))


# Name to split, package and the file inside it.
_BUILTIN: dict[str, tuple[Split, str, str]] = {
    "astronaut": ("train", "scikit-image", "data/astronaut.png"),
    "china": ("train", "scikit-learn", "datasets/images/china.jpg"),
    "flower": ("train", "scikit-learn", "datasets/images/flower.jpg"),
    "grace_hopper": ("train", "matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    "motorcycle": ("train", "scikit-image", "data/motorcycle_left.png"),
    "rocket": ("train", "scikit-image", "data/rocket.jpg"),
    "chelsea": ("test", "scikit-image", "data/chelsea.png"),
    "coffee": ("test", "scikit-image", "data/coffee.png"),
}


def builtin_files(split: Split) -> dict[str, Path]:
    """Where the built-in photographs of one split are, by name; see the table at the top."""
    files = {}
    for name, (belongs, package, file) in _BUILTIN.items():
        if belongs != split or (package == "scikit-learn" and not is_installed(package)):
            continue
        require(f"the photograph {name}", "train", package)
        spec = importlib.util.find_spec(module_of(package))
        assert spec is not None
        assert spec.origin is not None
        files[name] = Path(spec.origin).parent / file
    return files


def _load_builtin(split: Split) -> list[Photo]:
    return [segmented_photo(name, read_picture(path).rgb) for name, path in builtin_files(split).items()]


def _load_folder(folder: Path, split: str) -> list[Photo]:
    names = split_names(picture_names(folder), split)
    photos: list[Photo] = []
    reasons: list[str] = []
    for name in names:
        try:
            photos.append(_load_photo(folder, name))
        except ScscoError as error:
            reasons.append(str(error))
    if not photos:
        raise ScscoError(f"{folder}: none of its {len(names)} {split} photographs can be used; first: {reasons[0]}")
    if reasons:
        shown = "; ".join(reasons[:_NAMES_SHOWN]) + ("; ..." if len(reasons) > _NAMES_SHOWN else "")
        _log.warning("%s: %d of %d %s photographs are skipped: %s", folder, len(reasons), len(names), split, shown)
    return photos


def picture_names(folder: Path) -> list[str]:
    """Paths, relative to the folder and sorted, of the picture files in it and its subfolders, `masks` left out.

    Raises:
        ScscoError: no such folder, or fewer than two pictures.
    """
    if not folder.is_dir():
        raise ScscoError(f'{folder}: no such folder; give a folder of photographs, or "builtin"')
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES)
    names = sorted(path.as_posix() for path in found if path.parts[0] != MASKS_FOLDER and path.name[0] != ".")
    if len(names) < 2:
        count = "one photograph" if names else "no photographs"
        raise ScscoError(
            f"{folder}: holds {count} ({', '.join(PICTURE_SUFFIXES)}); at least two are wanted, "
            "one to train on and one to test on"
        )
    return names


def split_names(names: list[str], split: str) -> list[str]:
    """The names of one split, in their order: by their folders where all are in `train/` or `test/`, else by hash.

    By hash the lowest fifth is tested on, at least one.
    """
    folders = [name.split("/")[0] if "/" in name else "" for name in names]
    if set(folders) == set(SPLITS):
        return [name for name, folder in zip(names, folders, strict=True) if folder == split]
    by_hash = sorted(names, key=name_hash)
    tested = {name for name in names if name_hash(name) < TEST_SHARE * 2**64}
    tested = (tested or {by_hash[0]}) - ({by_hash[-1]} if len(tested) == len(names) else set())
    return [name for name in names if (name in tested) == (split == "test")]


def name_hash(name: str) -> int:
    """64 bits of a name, the same on every machine and in every process."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:8], "big")


def _load_photo(folder: Path, name: str) -> Photo:
    rgb = read_picture(folder / name).rgb
    mask_path = (folder / MASKS_FOLDER / name).with_suffix(".png")
    if mask_path.exists():
        return masked_photo(name, rgb, mask_path)
    try:
        return segmented_photo(name, rgb)
    except ScscoError as error:
        raise ScscoError(f"{folder}/{error}") from error


def shrink(rgb: np.ndarray, longest: int) -> np.ndarray:
    """An (H, W, 3) uint8 picture, reduced (antialiased bilinear) if its long side has more than `longest` pixels."""
    height, width = rgb.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return rgb
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BILINEAR))


def _object_like_unions(rgb: np.ndarray, regions: np.ndarray, rng: np.random.Generator) -> tuple[tuple[int, ...], ...]:
    """Sets of labels whose union is connected, without holes, compact, and of 1 to 35 % of the picture."""
    areas = np.bincount(regions.ravel()).astype(float)
    colours = _mean_colours(rgb, regions, areas)
    borders = _common_borders(regions)
    found: dict[tuple[int, ...], None] = {}  # a set that keeps its order
    for _ in range(_GROWTHS):
        # Small regions start as often as their area's root: by area alone, the sky starts every other growth.
        start = int(rng.choice(len(areas), p=np.sqrt(areas) / np.sqrt(areas).sum()))
        target = np.exp(rng.uniform(*np.log(_AREA_RANGE))) * regions.size
        union = _as_object(_grow(start, target, areas, colours, borders, rng), regions)
        if union is not None:
            found[union] = None
        if len(found) == _CANDIDATES:
            break
    return tuple(found)


def grown_regions(rgb: np.ndarray, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Masks (h, w) bool of `count` regions of a picture (h, w, 3) uint8, 2 to 60 % of it each, that follow its edges.

    A graph-based segmentation (Felzenszwalb and Huttenlocher 2004) is grown as `segmented_photo`'s superpixels are, but
    whatever comes out counts: a wall, the ground, half of the sky. Fewer come from a picture that is one segment.
    """
    require("finding the regions of a photograph", "train", "scikit-image")
    from skimage.segmentation import felzenszwalb

    regions = felzenszwalb(rgb, scale=_SEGMENT_SCALE, sigma=0.8, min_size=max(4, rgb.shape[0] * rgb.shape[1] // 200))
    areas = np.bincount(regions.ravel()).astype(float)
    if len(areas) < 2:
        return []
    colours = _mean_colours(rgb, regions, areas)
    borders = _common_borders(regions)
    found = []
    for _ in range(count):
        target = np.exp(rng.uniform(*np.log(_REGION_RANGE))) * regions.size
        start = int(rng.integers(len(areas)))
        inside = _grow(start, target, areas, colours, borders, rng)[regions]
        found.append(inside if inside.mean() <= 0.7 else ~inside)
    return found


def small_segments(rgb: np.ndarray) -> np.ndarray:
    """(h, w) labels of the small segments of a picture (h, w, 3) uint8, for `snapped_to_edges`."""
    require("finding the edges of a photograph", "train", "scikit-image")
    from skimage.segmentation import felzenszwalb

    segments: np.ndarray = felzenszwalb(rgb, scale=_SNAP_SCALE, sigma=0.4, min_size=6)
    return segments


def snapped_to_edges(mask: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """(h, w) bool: the `small_segments` of a picture that lie mostly in a mask (h, w) bool.

    An annotator's polygon cuts through surfaces and leaves some of them on both sides. Where the foreground is then
    recoloured, the surface itself shows by how much, which no composite of the world does.
    """
    inside: np.ndarray = np.bincount(segments.ravel(), mask.ravel()) > np.bincount(segments.ravel()) / 2
    return inside[segments]


def _mean_colours(rgb: np.ndarray, regions: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """(n, 3): CIE Lab mean of each region."""
    from skimage.color import rgb2lab

    lab = rgb2lab(rgb).reshape(-1, 3)
    return np.stack([np.bincount(regions.ravel(), lab[:, channel]) for channel in range(3)], axis=1) / areas[:, None]


def _common_borders(regions: np.ndarray) -> np.ndarray:
    """(n, n): length in pixels of the border that each two regions share."""
    count = int(regions.max()) + 1
    lengths = np.zeros(count * count, dtype=np.int64)
    for one, other in ((regions[:, 1:], regions[:, :-1]), (regions[1:], regions[:-1])):
        pairs = one[one != other].astype(np.int64) * count + other[one != other]
        lengths += np.bincount(pairs, minlength=count * count)
    table = lengths.reshape(count, count)
    return (table + table.T).astype(float)


def _grow(
    start: int,
    target: float,
    areas: np.ndarray,
    colours: np.ndarray,
    borders: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """(n,) bool: `start` and neighbours of it, taken by similar colour and long common border until `target` pixels."""
    inside = np.zeros(len(areas), dtype=bool)
    inside[start] = True
    outline = borders.sum(axis=1)
    # An object has parts of several colours: unions by colour alone leave nothing like them in the background.
    similar = rng.uniform(0, 1)
    while areas[inside].sum() < target:
        shared = borders[inside].sum(axis=0) * ~inside
        neighbours = np.flatnonzero(shared)
        if len(neighbours) == 0:
            break
        colour = np.average(colours[inside], axis=0, weights=areas[inside])
        distance = np.linalg.norm(colours[neighbours] - colour, axis=1)
        cost = similar * distance / 20 - shared[neighbours] / outline[neighbours]
        inside[neighbours[np.argmin(cost + 0.3 * rng.gumbel(size=len(neighbours)))]] = True
    return inside


def _as_object(inside: np.ndarray, regions: np.ndarray) -> tuple[int, ...] | None:
    """The labels of a union with its holes filled, or None where it does not look like an object."""
    from skimage.measure import regionprops

    shape = regionprops(inside[regions].astype(np.uint8))[0]
    low, high = _AREA_RANGE
    if not low <= shape.area_filled / regions.size <= high or shape.solidity < _LEAST_SOLIDITY:
        return None
    filled = np.zeros(regions.shape, dtype=bool)
    filled[shape.slice] = shape.image_filled
    on_frame = int(filled[0].sum() + filled[-1].sum() + filled[:, 0].sum() + filled[:, -1].sum())
    if on_frame > _MOST_FRAME * shape.perimeter:
        return None
    return tuple(int(label) for label in np.unique(regions[filled]))
