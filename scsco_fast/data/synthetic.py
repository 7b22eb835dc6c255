"""Composites made on the fly from photographs: a region of a photograph is recoloured, the photograph is the answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from scsco_fast.data.photos import Photo, Split, load_photos
from scsco_fast.data.samples import BadSample, Sample
from scsco_fast.data.wide import bent_tones, drawn_shape
from scsco_fast.errors import ScscoError
from scsco_fast.ops.transfer_color import TRANSFERS, transfer_color

__all__ = ["Photo", "Split", "SyntheticComposites", "load_photos"]

# Mean squared error over the foreground on the 0-255 scale. 300 is a difference of 17 grey levels, a pasted foreground
# that is plainly seen; iHarmony4's mean is 1387. Above 4000 (63 levels) hardly a colour is left to restore
# from.
VISIBLE_FMSE = 300.0
LARGEST_FMSE = 4000.0

_FOREGROUND_RANGE = (0.03, 0.40)  # share of the crop
_PLACE_TRIES = 20
_RECOLOUR_TRIES = 8
_LONGEST_CROP = 1.25  # width / height, and its inverse
_REFERENCE_SIDE = 64
_TRANSFER_SHARE = 0.35  # of the composites; the others get a photometric curve alone
_CURVE_AFTER_TRANSFER = 0.25

# Of wide composites.
_WIDE_FMSE = 80.0  # a harmonizer must also know when there is little to do
_WIDE_FOREGROUND_RANGE = (0.01, 0.50)
_DRAWN_SHARE = 0.3
_WIDE_TRANSFER_SHARE = 0.55
_WIDE_CURVE_AFTER_TRANSFER = 0.4
_BENT_SHARE = 0.5
_AS_TAKEN_SHARE = 0.2  # real pictures that are left as the camera made them


class SyntheticComposites(Dataset[Sample | BadSample]):
    """Composites whose foreground was recoloured, with the untouched photograph as the real picture.

    Item i draws from (seed, i) alone: a photograph and one of its candidate foregrounds; a crop in which the foreground
    takes 3 to 40 %; a flip; with `augment` a change of the whole picture (exposure, gamma, white balance, hue and
    saturation, vertical flip), so that few photographs give many different real pictures. The
    foreground then takes the colours of a random part of another photograph (`ops.transfer_color`, blended in by 50 to
    100 %), goes through a photometric curve (exposure, gamma, temperature, tint, saturation), or both.

    A recolouring that changes the foreground by a mean squared error below `VISIBLE_FMSE` (0-255 scale), or that
    changes a channel's contrast beyond reason, is drawn again; one above `LARGEST_FMSE` is blended back. Outside the
    mask, composite and real picture are equal bit for bit.

    Indices are not bounded by `length`, which is only how many items `len` and iteration give: a trainer that counts on
    gets ever new composites.

    Args:
        photos: from `load_photos`; the colours of a foreground come from another of them where there is one.
        size: side of the square pictures in pixels.
        length: number of items.
        seed: not negative.
        augment: change the whole picture too. For training; for a test set leave the photographs as they are.
        wide: a wider range of everything: 30 % of the foregrounds are drawn shapes (ellipses, blobs, polygons), they
            take 1 to 50 % of the crop, transfers are more frequent, tone curves (`wide.bent_tones`) join the other
            ones, a fifth of the real pictures stay as taken, and small changes (from `_WIDE_FMSE` on) count too.

    Raises:
        ScscoError: no photographs, or a size, length or seed out of range.

    Examples:
        >>> photo = Photo("ramp", np.tile(np.arange(64, dtype=np.uint8)[:, None, None] * 4, (1, 64, 3)),
        ...               np.pad(np.ones((8, 8), np.uint16), 4), ((1,),))
        >>> item = SyntheticComposites([photo], size=32, length=10, seed=0, augment=True)[3]
        >>> item.composite.shape, bool(((item.composite == item.real) | (item.mask == 1)).all())
        (torch.Size([3, 32, 32]), True)
    """

    def __init__(
        self, photos: Sequence[Photo], size: int, length: int, seed: int, augment: bool, wide: bool = False
    ) -> None:
        if not photos:
            raise ScscoError("no photographs were given; load some with load_photos")
        for name, value, least in (("size", size, 16), ("length", length, 1), ("seed", seed, 0)):
            if value < least:
                raise ScscoError(f"{name} {value} is out of range; use {least} or more")
        self.photos, self.size, self.length, self.seed, self.augment = list(photos), size, length, seed, augment
        self.wide = wide
        self.foreground_range = _WIDE_FOREGROUND_RANGE if wide else _FOREGROUND_RANGE
        self.least_fmse = _WIDE_FMSE if wide else VISIBLE_FMSE

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Sample | BadSample]:
        return (self[index] for index in range(self.length))

    def __getitem__(self, index: int) -> Sample | BadSample:
        rng = np.random.default_rng((self.seed, index))
        place = self._draw_place(rng)
        if place is None:
            names = ", ".join(photo.name for photo in self.photos[:3])
            return BadSample(f"item {index}", f"no crop of 3 to 40 % foreground was found in {names}, ...")
        real, mask = _cut(place, self.size)
        flips = [1] if rng.random() < 0.5 else []
        if self.augment:
            flips += [0] if rng.random() < 0.25 else []
            real = self._vary(real, rng)
        real, mask = np.flip(real, flips), np.flip(mask, flips)
        composite = self._recolour(real, mask, place.photo, rng)
        return Sample(
            _tensor(composite),
            _tensor(real),
            torch.from_numpy(mask.astype(np.float32))[None],
            f"{place.photo.name}_{index:05d}",
            "synthetic",
        )

    def _draw_place(self, rng: np.random.Generator) -> _Place | None:
        for _ in range(_PLACE_TRIES):
            photo = self.photos[rng.integers(len(self.photos))]
            if self.wide and rng.random() < _DRAWN_SHARE:
                foreground = drawn_shape(photo.regions.shape[0], photo.regions.shape[1], rng)
            else:
                foreground = photo.foreground(int(rng.integers(len(photo.candidates))))
            if foreground.max() <= 127:  # too thin to outlast the smoothing
                continue
            place = _draw_box(photo, foreground, self.size, self.foreground_range, rng)
            share = _cut_mask(place, self.size).mean()
            if self.foreground_range[0] <= share <= self.foreground_range[1]:
                return place
        return None

    def _vary(self, real: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if not self.wide:
            return _vary_photograph(real, rng)
        if rng.random() < _AS_TAKEN_SHARE:
            return real
        varied = _vary_photograph(real, rng)
        return bent_tones(varied, rng) if rng.random() < _BENT_SHARE else varied

    def _recolour(self, real: np.ndarray, mask: np.ndarray, photo: Photo, rng: np.random.Generator) -> np.ndarray:
        """The composite, (S, S, 3) float32 in [0, 1]; see the class for what is drawn and what is refused."""
        for _ in range(_RECOLOUR_TRIES):
            recoloured = self._draw_recoloured(real, mask, photo, rng)
            change = (recoloured - real) * mask[:, :, None]
            error = _foreground_mse(change, mask)
            if error >= self.least_fmse and _keeps_contrast(real[mask], recoloured[mask]):
                break
        else:
            # Nothing usable was drawn, as on black pixels: move the foreground a quarter towards the far end.
            far = 1.0 if real[mask].mean() < 0.5 else 0.0
            change = 0.25 * (far - real) * mask[:, :, None]
            error = _foreground_mse(change, mask)
        if error > LARGEST_FMSE:
            change = change * np.sqrt(rng.uniform(0.25, 1) * LARGEST_FMSE / error)
        composite: np.ndarray = np.clip(real + change, 0, 1)
        return composite

    def _draw_recoloured(
        self, real: np.ndarray, mask: np.ndarray, photo: Photo, rng: np.random.Generator
    ) -> np.ndarray:
        if rng.random() >= (_WIDE_TRANSFER_SHARE if self.wide else _TRANSFER_SHARE):
            return self._bend(real, rng)
        method = TRANSFERS[rng.integers(len(TRANSFERS))]
        reference = self._draw_reference(photo, rng)
        inside = torch.from_numpy(mask.astype(np.float32))[None, None]
        moved = transfer_color(_tensor(real)[None], _tensor(reference)[None], method, mask=inside)
        recoloured = moved[0].permute(1, 2, 0).numpy()
        recoloured = real + np.float32(rng.uniform(0.5, 1)) * (recoloured - real)
        again = rng.random() < (_WIDE_CURVE_AFTER_TRANSFER if self.wide else _CURVE_AFTER_TRANSFER)
        return self._bend(recoloured, rng) if again else recoloured

    def _bend(self, rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if not self.wide:
            return _photometric_curve(rgb, rng)
        kind = rng.random()  # tones, colours, or both
        bent = bent_tones(rgb, rng) if kind < 2 / 3 else rgb
        return _photometric_curve(bent, rng) if kind >= 1 / 3 else bent

    def _draw_reference(self, photo: Photo, rng: np.random.Generator) -> np.ndarray:
        """(64, 64, 3) float32: a random part of another photograph, of the same one where there is no other."""
        others = [other for other in self.photos if other is not photo] or [photo]
        other = others[rng.integers(len(others))]
        height, width = other.rgb.shape[:2]
        high, wide = rng.uniform(0.2, 0.7, 2) * (height, width)
        top, left = rng.uniform(0, height - high), rng.uniform(0, width - wide)
        part = _resize(other.rgb, (left, top, left + wide, top + high), _REFERENCE_SIDE)
        # Varied without `augment` too: a test set of two photographs would else know two palettes to recolour with.
        return _vary_photograph(part.astype(np.float32) / 255, rng)


class _Place(NamedTuple):
    """A crop of a photograph and its foreground; `box` is (left, top, right, bottom) as shares of width and height."""

    photo: Photo
    foreground: np.ndarray  # (h, w) uint8
    box: tuple[float, float, float, float]


def _draw_box(
    photo: Photo, foreground: np.ndarray, size: int, shares: tuple[float, float], rng: np.random.Generator
) -> _Place:
    """A crop around the foreground, as large as makes a random share of it foreground."""
    height, width = photo.rgb.shape[:2]
    inside = foreground > 127
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    middle = np.array([rows[0] + rows[-1] + 1, columns[0] + columns[-1] + 1]) / 2 / inside.shape  # share
    low, high = np.log(shares)
    pixels = inside.mean() * height * width / np.exp(rng.uniform(low, high))
    # Not below three quarters of the output's size: an enlarged crop teaches blur.
    side = np.clip(np.sqrt(pixels), min(0.75 * size, height, width), min(height, width))
    aspect = np.exp(rng.uniform(-1, 1) * np.log(_LONGEST_CROP) / 2)
    extent = np.minimum((side / aspect, side * aspect), (height, width)) / (height, width)  # share
    start = np.clip(middle - extent * rng.uniform(0.25, 0.75, 2), 0, 1 - extent)
    return _Place(photo, foreground, (start[1], start[0], start[1] + extent[1], start[0] + extent[0]))


def _cut(place: _Place, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The crop at size x size: the picture (S, S, 3) float32 in [0, 1] and the mask (S, S) bool."""
    picture = _resize(place.photo.rgb, _in_pixels(place.box, place.photo.rgb), size)
    return picture.astype(np.float32) / 255, _cut_mask(place, size)


def _cut_mask(place: _Place, size: int) -> np.ndarray:
    """Bilinear before the threshold: it rounds the steps of regions found at a lower resolution."""
    mask: np.ndarray = _resize(place.foreground, _in_pixels(place.box, place.foreground), size) > 127
    return mask


def _in_pixels(box: tuple[float, float, float, float], array: np.ndarray) -> tuple[float, float, float, float]:
    height, width = array.shape[:2]
    left, top, right, bottom = box
    return left * width, top * height, min(right * width, width), min(bottom * height, height)


def _resize(array: np.ndarray, box: tuple[float, float, float, float], size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(array).resize((size, size), Image.Resampling.BILINEAR, box=box))


def _tensor(rgb: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1), dtype=np.float32))


def _foreground_mse(change: np.ndarray, mask: np.ndarray) -> float:
    return float(np.square(change).sum() / (3 * mask.sum()) * 255**2)


def _keeps_contrast(real: np.ndarray, recoloured: np.ndarray) -> bool:
    """No channel's deviation is more than doubled (noise becomes blotches) or cut below a third (detail is lost)."""
    before, after = real.std(axis=0), recoloured.std(axis=0)
    return bool((after <= 2 * before + 0.03).all() and (after >= before / 3 - 0.03).all())


def _vary_photograph(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another picture of the same scene: exposure, white balance, hue, saturation, gamma; in [0, 1]."""
    gains = np.exp(rng.normal(0, 0.15, 3) + rng.normal(0, 0.2))
    matrix = _colour_matrix(rng.normal(0, 0.1), rng.uniform(0.5, 1.5)) * gains[:, None]
    mixed = rgb @ matrix.T.astype(np.float32)
    mean = mixed.mean()
    mixed = mixed * (np.clip(mean, 0.15, 0.7) / (mean + 1e-6))  # neither burnt out nor black
    return _power(mixed, np.exp(rng.normal(0, 0.2)))


def _photometric_curve(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Exposure, temperature (red against blue), tint (green), saturation and gamma, drawn at random; in [0, 1]."""
    exposure, temperature, tint = rng.normal(0, (0.3, 0.12, 0.06))
    gains = np.exp(exposure + np.array([temperature, tint, -temperature]))
    mixed = rgb @ (_colour_matrix(0.0, rng.uniform(0.5, 1.6)) * gains[:, None]).T.astype(np.float32)
    return _power(mixed, np.exp(rng.normal(0, 0.3)))


def _power(rgb: np.ndarray, gamma: float) -> np.ndarray:
    curved: np.ndarray = np.power(np.clip(rgb, 0, 1), np.float32(gamma))
    return curved


# Luma and two colour differences (YIQ), in which a hue is an angle.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_RGB_OF_YIQ = np.linalg.inv(_YIQ)


def _colour_matrix(hue: float, saturation: float) -> np.ndarray:
    """(3, 3): turns the hue by an angle and scales the saturation, luma unchanged."""
    cosine, sine = saturation * np.cos(hue), saturation * np.sin(hue)
    turn = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    return np.asarray(_RGB_OF_YIQ @ turn @ _YIQ)
