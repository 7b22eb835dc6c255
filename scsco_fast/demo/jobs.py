"""What a visitor asks for, as files: how each of the three ways is harmonized, and what it looks like before."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scsco_fast.data.images import Picture, read_picture
from scsco_fast.data.masks import read_mask
from scsco_fast.harmonizing.files import harmonize_cutout_file, harmonize_edit_file, harmonize_file
from scsco_fast.harmonizing.masks import CoverageWarning, grown, mask_values
from scsco_fast.harmonizing.placing import Layer, over, place, whole_layer
from scsco_fast.harmonizing.settings import Settings
from scsco_fast.nn.unet import HarmonizationUNet


class Scene(NamedTuple):
    """A picture before it is harmonized, at full size.

    Attributes:
        rgb: (H, W, 3) uint8, the composite.
        weight: (H, W) float32 in [0, 1], its foreground.
        valid: (H, W) bool, its pixels that are not fully transparent; None for all.
    """

    rgb: np.ndarray
    weight: np.ndarray
    valid: np.ndarray | None


@dataclass(frozen=True)
class Composite:
    """A composite and its mask."""

    image: Path
    mask: Path
    settings: Settings

    def write(self, model: HarmonizationUNet, output: Path, layer: bool = False) -> None:
        """Harmonize into a file, as `scsco harmonize --image` does."""
        harmonize_file(self.image, self.mask, output, model, self.settings, layer=layer)

    def scene(self) -> Scene:
        picture = read_picture(self.image)
        mask, valid = _read_mask(self.mask, picture, self.settings), _valid(picture)
        return Scene(picture.rgb, mask if valid is None else np.where(valid, mask, np.float32(0)), valid)


@dataclass(frozen=True)
class CutOut:
    """A cut-out at a place of a background; without `mask` its transparency is its mask."""

    image: Path
    background: Path
    mask: Path | None
    settings: Settings
    at: tuple[int, int]
    scale: float

    def write(self, model: HarmonizationUNet, output: Path, layer: bool = False) -> None:
        """Harmonize into a file, as `scsco harmonize --foreground` does."""
        harmonize_cutout_file(
            self.image, self.background, self.mask, output, model, self.settings, at=self.at, scale=self.scale,
            layer=layer,
        )  # fmt: skip

    def scene(self) -> Scene:
        front, behind = read_picture(self.image), read_picture(self.background)
        alpha = cutout_alpha(front, self.mask, self.settings)
        height, width = behind.rgb.shape[:2]
        return _laid(place(_unit(front.rgb), alpha, (height, width), self.at, self.scale), behind)


@dataclass(frozen=True)
class Edit:
    """A picture before and after an edit, and the edit's mask.

    Attributes:
        found: the mask was not given but is where the two differ.
    """

    image: Path
    before: Path
    mask: Path
    found: bool
    settings: Settings

    def write(self, model: HarmonizationUNet, output: Path, layer: bool = False) -> None:
        """Harmonize into a file, as `scsco harmonize --before` does."""
        with warnings.catch_warnings():
            if self.found:
                warnings.simplefilter("ignore", CoverageWarning)  # it is of masks that may be inverted
            harmonize_edit_file(self.before, self.image, self.mask, output, model, self.settings, layer=layer)

    def scene(self) -> Scene:
        after, before = read_picture(self.image), read_picture(self.before)
        return _laid(whole_layer(_unit(after.rgb), _read_mask(self.mask, before, self.settings)), before)


Job = Composite | CutOut | Edit


def cutout_alpha(front: Picture, mask: Path | None, settings: Settings) -> np.ndarray:
    """(H, W) float32 in [0, 1]: how much of a cut-out is visible, by its transparency and its mask.

    Raises:
        ScscoError: the mask cannot be read, or has another size.
    """
    alpha = np.ones(front.rgb.shape[:2], np.float32) if front.alpha is None else front.alpha / np.float32(255)
    if mask is not None:
        return alpha * _read_mask(mask, front, settings)
    return grown(alpha, min(0, settings.grow_mask))


def _read_mask(path: Path, picture: Picture, settings: Settings) -> np.ndarray:
    height, width = picture.rgb.shape[:2]
    mask = read_mask(path, (height, width))
    return grown(mask_values(1 - mask if settings.invert_mask else mask), settings.grow_mask)


def _laid(layer: Layer, behind: Picture) -> Scene:
    weight = np.zeros(behind.rgb.shape[:2], np.float32)
    weight[layer.box] = layer.alpha
    return Scene(over(layer, behind.rgb), weight, _valid(behind))


def _valid(picture: Picture) -> np.ndarray | None:
    return None if picture.alpha is None else picture.alpha > 0


def _unit(rgb: np.ndarray) -> np.ndarray:
    return rgb.astype(np.float32) / np.float32(255)
