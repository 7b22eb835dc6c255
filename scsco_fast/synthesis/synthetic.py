"""Composites made on the fly from photographs: a region of a photograph is recoloured, the photograph is the answer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from scsco_fast.data.photos import Photo, Split, Window, load_photos
from scsco_fast.data.samples import BadSample, Sample
from scsco_fast.errors import ScscoError
from scsco_fast.ops._transfer_color import TRANSFERS
from scsco_fast.reference.color import LUMA
from scsco_fast.synthesis.pixel_transfer import mix, transfer_pixels
from scsco_fast.synthesis.resample import Box, cut
from scsco_fast.synthesis.wide import bent_tones, drawn_shape

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
_KEPT_FOREGROUNDS = 1024  # about 10 kB each of segmented photographs
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
        # The order in memory that `cut` is quickest with.
        self.photos = [dataclasses.replace(photo, rgb=np.asfortranarray(photo.rgb)) for photo in photos]
        self.size, self.length, self.seed, self.augment, self.wide = size, length, seed, augment, wide
        self.foreground_range = _WIDE_FOREGROUND_RANGE if wide else _FOREGROUND_RANGE
        self.least_fmse = _WIDE_FMSE if wide else VISIBLE_FMSE
        self._foregrounds: dict[tuple[int, int], _Foreground] = {}

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Sample | BadSample]:
        return (self[index] for index in range(self.length))

    def __getitem__(self, index: int) -> Sample | BadSample:
        rng = np.random.default_rng((self.seed, index))
        place = self._draw_place(rng)
        if place is None:
            names = ", ".join(photo.name for photo in self.photos[:3])
            low, high = self.foreground_range
            return BadSample(
                f"item {index}",
                f"no crop of {100 * low:.0f} to {100 * high:.0f} % foreground was found in {names}, ...",
            )
        photo = self.photos[place.photo]
        flips = [2] if rng.random() < 0.5 else []
        if self.augment:
            flips += [1] if rng.random() < 0.25 else []
        picture = np.flip(cut(photo.rgb, _in_pixels(place.box, photo.rgb.shape), self.size), flips)
        real = np.ascontiguousarray(picture).reshape(3, -1) / np.float32(255)
        if self.augment:
            real = self._vary(real, rng)
        mask = np.flip(place.mask, [axis - 1 for axis in flips])
        # Colours outside the mask never change: what is recoloured is the foreground's pixels, a seventh of the crop.
        inside = np.flatnonzero(mask)
        composite = real.copy()
        recoloured = self._recolour(np.take(real, inside, axis=1), place.photo, rng)
        for channel in range(3):  # at once takes three times as long
            composite[channel][inside] = recoloured[channel]
        shape = (3, self.size, self.size)
        return Sample(
            torch.from_numpy(composite.reshape(shape)),
            torch.from_numpy(real.reshape(shape)),
            torch.from_numpy(mask.astype(np.float32, order="C"))[None],
            f"{photo.name}_{index:05d}",
            "synthetic",
        )

    def _draw_place(self, rng: np.random.Generator) -> _Place | None:
        for _ in range(_PLACE_TRIES):
            number = int(rng.integers(len(self.photos)))
            photo = self.photos[number]
            if self.wide and rng.random() < _DRAWN_SHARE:
                height, width = photo.regions.shape
                shape = drawn_shape(height, width, rng)
                foreground = _foreground(shape, (slice(0, height), slice(0, width)), shape.shape)
            else:
                foreground = self._candidate(number, int(rng.integers(len(photo.candidates))))
            if foreground.share == 0:  # too thin to outlast the smoothing
                continue
            box = _draw_box(photo, foreground, self.size, self.foreground_range, rng)
            mask = foreground.cut(box, self.size)
            if self.foreground_range[0] <= np.count_nonzero(mask) / mask.size <= self.foreground_range[1]:
                return _Place(number, box, mask)
        return None

    def _candidate(self, number: int, candidate: int) -> _Foreground:
        """Kept: finding one again takes as long as a tenth of an item."""
        key = (number, candidate)
        if key not in self._foregrounds:
            if len(self._foregrounds) == _KEPT_FOREGROUNDS:
                self._foregrounds.pop(next(iter(self._foregrounds)))  # the oldest
            photo = self.photos[number]
            self._foregrounds[key] = _foreground(*photo.cut_out(candidate), photo.regions.shape)
        return self._foregrounds[key]

    def _vary(self, real: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if not self.wide:
            return _vary_photograph(real, rng)
        if rng.random() < _AS_TAKEN_SHARE:
            return real
        varied = _vary_photograph(real, rng)
        return bent_tones(varied, rng) if rng.random() < _BENT_SHARE else varied

    def _recolour(self, pixels: np.ndarray, photo: int, rng: np.random.Generator) -> np.ndarray:
        """A foreground's pixels (3, n) in the composite; see the class for what is drawn and what is refused."""
        deviation = pixels.std(axis=1)
        for _ in range(_RECOLOUR_TRIES):
            recoloured = self._draw_recoloured(pixels, photo, rng)
            change = recoloured - pixels
            error = _mean_square(change)
            if error >= self.least_fmse and _keeps_contrast(deviation, recoloured.std(axis=1)):
                break
        else:
            # Nothing usable was drawn, as on black pixels: move the foreground a quarter towards the far end.
            far = np.float32(1 if pixels.mean() < 0.5 else 0)
            change = np.float32(0.25) * (far - pixels)
            error = _mean_square(change)
        if error > LARGEST_FMSE:
            change *= np.float32(np.sqrt(rng.uniform(0.25, 1) * LARGEST_FMSE / error))
        composite: np.ndarray = np.clip(pixels + change, 0, 1)
        return composite

    def _draw_recoloured(self, pixels: np.ndarray, photo: int, rng: np.random.Generator) -> np.ndarray:
        if rng.random() >= (_WIDE_TRANSFER_SHARE if self.wide else _TRANSFER_SHARE):
            return self._bend(pixels, rng)
        method = TRANSFERS[rng.integers(len(TRANSFERS))]
        change = transfer_pixels(pixels, self._draw_reference(photo, rng), method) - pixels
        recoloured = pixels + np.float32(rng.uniform(0.5, 1)) * change
        again = rng.random() < (_WIDE_CURVE_AFTER_TRANSFER if self.wide else _CURVE_AFTER_TRANSFER)
        return self._bend(recoloured, rng) if again else recoloured

    def _bend(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if not self.wide:
            return _photometric_curve(pixels, rng)
        kind = rng.random()  # tones, colours, or both
        bent = bent_tones(pixels, rng) if kind < 2 / 3 else pixels
        return _photometric_curve(bent, rng) if kind >= 1 / 3 else bent

    def _draw_reference(self, photo: int, rng: np.random.Generator) -> np.ndarray:
        """(3, 64 * 64) float32: a random part of another photograph, of the same one where there is no other."""
        others = len(self.photos) - 1
        other = int(rng.integers(max(others, 1)))
        rgb = self.photos[other + (other >= photo and others > 0)].rgb
        height, width = rgb.shape[:2]
        high, wide = rng.uniform(0.2, 0.7, 2) * (height, width)
        top, left = rng.uniform(0, height - high), rng.uniform(0, width - wide)
        part = cut(rgb, (left, top, left + wide, top + high), _REFERENCE_SIDE)
        # Varied without `augment` too: a test set of two photographs would else know two palettes to recolour with.
        return _vary_photograph(part.reshape(3, -1) / np.float32(255), rng)


class _Foreground(NamedTuple):
    """What is foreground in a photograph, by the part of its mask that is not 0.

    `middle` is the row and column half-way between its edges, and `share` its area, as shares of the photograph.
    """

    grey: np.ndarray  # uint8, foreground above 127
    window: Window
    shape: tuple[int, ...]  # of the whole mask
    middle: tuple[float, ...]
    share: float

    def cut(self, box: Box, size: int) -> np.ndarray:
        """(size, size) bool. Bilinear before the threshold rounds the steps of regions found at a lower resolution."""
        whole = np.zeros(self.shape, dtype=np.uint8)
        whole[self.window] = self.grey
        # By Pillow: a value that `resample.cut` rounds otherwise would move a pixel to the other side of the threshold.
        image, pixels = Image.fromarray(whole), _in_pixels(box, self.shape)
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=pixels)) > 127


def _foreground(grey: np.ndarray, window: Window, shape: tuple[int, ...]) -> _Foreground:
    inside = grey > 127
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if len(rows) == 0:
        return _Foreground(grey, window, shape, (0.0, 0.0), 0.0)
    middle = tuple(
        (int(line[0] + line[-1] + 1) / 2 + part.start) / side
        for line, part, side in zip((rows, columns), window, shape, strict=True)
    )
    return _Foreground(grey, window, shape, middle, int(inside.sum()) / math.prod(shape))


class _Place(NamedTuple):
    """A crop of a photograph; `box` is (left, top, right, bottom) as shares of width and height."""

    photo: int
    box: Box
    mask: np.ndarray  # (S, S) bool


def _draw_box(
    photo: Photo, foreground: _Foreground, size: int, shares: tuple[float, float], rng: np.random.Generator
) -> Box:
    """A crop around the foreground, as large as makes a random share of it foreground."""
    height, width = photo.rgb.shape[:2]
    low, high = np.log(shares)
    pixels = foreground.share * height * width / np.exp(rng.uniform(low, high))
    # Not below three quarters of the output's size: an enlarged crop teaches blur.
    side = min(max(np.sqrt(pixels), min(0.75 * size, height, width)), min(height, width))
    aspect = np.exp(rng.uniform(-1, 1) * np.log(_LONGEST_CROP) / 2)
    extents = min(side / aspect, height) / height, min(side * aspect, width) / width  # share
    shifts = rng.uniform(0.25, 0.75, 2)
    top, left = (
        min(max(middle - extent * shift, 0), 1 - extent)
        for middle, extent, shift in zip(foreground.middle, extents, shifts, strict=True)
    )
    return left, top, left + extents[1], top + extents[0]


def _in_pixels(box: Box, shape: tuple[int, ...]) -> Box:
    height, width = shape[:2]
    left, top, right, bottom = box
    return left * width, top * height, min(right * width, width), min(bottom * height, height)


def _mean_square(change: np.ndarray) -> float:
    return float(np.square(change).mean()) * 255**2


def _keeps_contrast(before: np.ndarray, after: np.ndarray) -> bool:
    """No channel's deviation is more than doubled (noise becomes blotches) or cut below a third (detail is lost)."""
    return bool((after <= 2 * before + 0.03).all() and (after >= before / 3 - 0.03).all())


def _vary_photograph(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another picture of the same scene: exposure, white balance, hue, saturation, gamma; (3, N) in [0, 1]."""
    gains = np.exp(rng.normal(0, 0.15, 3) + rng.normal(0, 0.2))
    mixed = mix(_colour_matrix(rng.normal(0, 0.1), rng.uniform(0.5, 1.5)) * gains[:, None], pixels)
    mean = mixed.mean()
    mixed *= np.clip(mean, 0.15, 0.7) / (mean + 1e-6)  # neither burnt out nor black
    return _power(mixed, np.exp(rng.normal(0, 0.2)))


def _photometric_curve(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random exposure, temperature (red against blue), tint (green), saturation and gamma; (3, N) in [0, 1]."""
    exposure, temperature, tint = rng.normal(0, (0.3, 0.12, 0.06))
    gains = np.exp(exposure + np.array([temperature, tint, -temperature]))
    mixed = mix(_colour_matrix(0.0, rng.uniform(0.5, 1.6)) * gains[:, None], pixels)
    return _power(mixed, np.exp(rng.normal(0, 0.3)))


def _power(pixels: np.ndarray, gamma: float) -> np.ndarray:
    """Of values that nobody else needs: they are overwritten."""
    np.clip(pixels, 0, 1, out=pixels)
    curved: np.ndarray = np.power(pixels, np.float32(gamma), out=pixels)
    return curved


# Luma and two colour differences (YIQ), in which a hue is an angle.
_YIQ = np.array([LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_RGB_OF_YIQ = np.linalg.inv(_YIQ)


def _colour_matrix(hue: float, saturation: float) -> np.ndarray:
    """(3, 3): turns the hue by an angle and scales the saturation, luma unchanged."""
    cosine, sine = saturation * np.cos(hue), saturation * np.sin(hue)
    turn = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    return np.asarray(_RGB_OF_YIQ @ turn @ _YIQ)
