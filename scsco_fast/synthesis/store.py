"""Photographs and their foregrounds as small pictures on one device, for `composer` to make composites of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scsco_fast.data.photos import Photo, grown_regions, name_hash, small_segments, snapped_to_edges
from scsco_fast.errors import ScscoError
from scsco_fast.reference.color import rgb_to_lab

STORE_SCALE = 2  # sides of the stored pictures over those of the composites: crops of half of a picture are sharp
CANDIDATES = 6  # foregrounds kept of a photograph that was segmented
REGIONS = 6  # of each photograph: what follows its edges without being an object
REGION_SIDE, SNAP_SIDE = 96, 128  # pixels at which regions are found, and at which objects are snapped to edges
LEAST_OVERLAP = 0.7  # of an object with what it is snapped to, intersection over union; others are left out
FOREGROUND_RANGE = (0.01, 0.55)  # share of a crop that its foreground takes


class Store(NamedTuple):
    """Photographs and foregrounds on a device.

    Attributes:
        pictures: (N, 3, S, S) uint8, each squeezed to a square.
        masks: (K, 1, S, S) uint8, 255 on a foreground: M objects, then `REGIONS` of each photograph.
        owner: (M,) int64, the photograph of each object.
        first, counts: (N,) int64, where the objects of each photograph begin, and how many they are.
        boxes: (K, 4) float32, left, top, right, bottom of each foreground as shares of the sides.
        areas: (K,) float32, share of the photograph.
        moments: (K, 2, 6) float32, CIE Lab mean and deviation of the foreground and of the rest.
    """

    pictures: Tensor
    masks: Tensor
    owner: Tensor
    first: Tensor
    counts: Tensor
    boxes: Tensor
    areas: Tensor
    moments: Tensor

    def to(self, device: str | torch.device) -> Store:
        return Store(*(tensor.to(device) for tensor in self))


def build_store(photos: Sequence[Photo], size: int) -> Store:
    """Squeeze photographs to squares of `STORE_SCALE` * size, with their foregrounds and `REGIONS` regions each.

    Raises:
        ScscoError: no photograph has a foreground of `FOREGROUND_RANGE`.
    """
    side = STORE_SCALE * size
    pictures: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    regions: list[np.ndarray] = []
    owner: list[int] = []
    for photo in photos:
        found = _foregrounds(photo, side)
        if found:
            owner += [len(pictures)] * len(found)
            masks += found
            regions += _regions(photo, found[0], side)
            pictures.append(_squeeze(photo.rgb, side).transpose(2, 0, 1))
    if not masks:
        raise ScscoError(f"none of the {len(photos)} photographs has a foreground to recolour; give them masks")
    stacked, owners = torch.from_numpy(np.stack(masks + regions)[:, None]), torch.tensor(owner)
    images = torch.from_numpy(np.stack(pictures))
    counts = torch.bincount(owners, minlength=len(pictures))
    inside = stacked[:, 0] > 127
    pictured = torch.cat([owners, torch.arange(len(pictures)).repeat_interleave(REGIONS)])
    parts = torch.arange(len(stacked)).split(64)
    return Store(
        images,
        stacked,
        owners,
        counts.cumsum(0) - counts,
        counts,
        torch.stack([_box(mask) for mask in inside]),
        inside.float().mean(dim=(1, 2)),
        torch.cat([colour_moments(images[pictured[rows]].float() / 255, stacked[rows] > 127) for rows in parts]),
    )


def _foregrounds(photo: Photo, side: int) -> list[np.ndarray]:
    rng = np.random.default_rng(name_hash(photo.name))
    order = rng.permutation(len(photo.candidates))[:CANDIDATES]
    segments = small_segments(_squeeze(photo.rgb, SNAP_SIDE))
    found = []
    for candidate in order:
        drawn = _squeeze(photo.foreground(int(candidate)), SNAP_SIDE) > 127
        snapped = snapped_to_edges(drawn, segments)
        if (drawn & snapped).sum() >= LEAST_OVERLAP * (drawn | snapped).sum():
            found.append(_squeeze(snapped.astype(np.uint8) * 255, side))
    return [mask for mask in found if _is_fit(mask)]


def _regions(photo: Photo, own: np.ndarray, side: int) -> list[np.ndarray]:
    """`REGIONS` regions; where the photograph has too few, its object stands in."""
    small = _squeeze(photo.rgb, REGION_SIDE)
    found = grown_regions(small, REGIONS, np.random.default_rng(name_hash(photo.name)))
    masks = [_squeeze(mask.astype(np.uint8) * 255, side) for mask in found]
    kept = [mask for mask in masks if _is_fit(mask)]
    return kept + [own] * (REGIONS - len(kept))


def _is_fit(mask: np.ndarray) -> bool:
    """Whether a foreground is neither too small for a crop to show it, nor most of the photograph."""
    return bool(FOREGROUND_RANGE[0] / 2 < (mask > 127).mean() < 0.8)


def _squeeze(array: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(array).resize((side, side), Image.Resampling.BILINEAR))


def _box(inside: Tensor) -> Tensor:
    rows, columns = inside.any(1).nonzero()[:, 0], inside.any(0).nonzero()[:, 0]
    edges = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return edges.float() / inside.shape[0]


def colour_moments(pictures: Tensor, masks: Tensor) -> Tensor:
    """(m, 2, 6) of pictures (m, 3, S, S) in [0, 1] and masks (m, 1, S, S) bool."""
    lab, inside = rgb_to_lab(pictures.flatten(2)), masks.flatten(2)
    found = []
    for region in (inside, ~inside):
        size = region.sum(2, keepdim=True).clamp(min=1)
        mean = (lab * region).sum(2, keepdim=True) / size
        deviation = ((lab - mean).square() * region).sum(2, keepdim=True).div(size).sqrt()
        found.append(torch.cat([mean, deviation], dim=1)[:, :, 0])
    return torch.stack(found, dim=1)
