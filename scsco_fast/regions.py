"""Foreground, background and excluded pixels of a mask, at every resolution that a network asks for."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

THRESHOLD = 0.5  # a pixel is foreground where its mask value is above this: grey 128 and up of 0..255


class RegionLevel:
    """The regions of one batch at one resolution.

    Attributes:
        foreground: (B, 1, H, W) bool.
        valid: (B, 1, H, W) bool, or None where every pixel counts. Pixels that are not valid enter no statistic.
        background: (B, 1, H, W) bool: valid pixels that are not foreground.
        order: (B, H*W) int64, a permutation of the pixels: foreground first, then the excluded ones, background last,
            each in raster order. Its shape does not depend on the mask, so nothing has to wait for the device.
        counts: (B, 2) int64, the number of foreground and of background pixels.

    `order` and `counts` are computed when they are first read: only the attention reads them, which networks have at
    some resolutions.
    """

    def __init__(self, foreground: Tensor, valid: Tensor | None) -> None:
        self.foreground = foreground
        self.valid = valid
        self._sorted: tuple[Tensor, Tensor] | None = None

    @property
    def background(self) -> Tensor:
        return ~self.foreground if self.valid is None else ~self.foreground & self.valid

    @property
    def order(self) -> Tensor:
        return self._sort()[0]

    @property
    def counts(self) -> Tensor:
        return self._sort()[1]

    def _sort(self) -> tuple[Tensor, Tensor]:
        if self._sorted is None:
            # What inference mode makes cannot be saved for a backward, and the level may be trained with later.
            # Dynamo refuses to be asked about the mode, so a compiled graph keeps what it makes.
            inference = not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()
            with torch.inference_mode(False) if inference else nullcontext():
                self._sorted = _foreground_first(self.foreground, self.valid)
        return self._sorted


class Regions:
    """Masks at every resolution and their foreground-first permutation, each built once, when it is needed, and kept.

    A pixel is foreground where `mask > 0.5` and, if `valid` is given, `valid > 0.5`; a valid pixel that is not
    foreground is background. Another resolution is taken by nearest neighbour, as RainNet does, and is binary too.

    Args:
        mask: (B, 1, H, W) bool, or floating in [0, 1]; 1 = foreground.
        valid: (B, 1, H, W) like `mask`, or None: every pixel counts.

    Raises:
        TypeError: `mask` or `valid` is neither a bool nor a floating tensor.
        ValueError: their shapes are not (B, 1, H, W) or differ.

    Examples:
        >>> import torch, scsco_fast as sf
        >>> mask = torch.zeros(1, 1, 4, 4)
        >>> mask[..., 1:3, 1:3] = 1
        >>> sf.Regions(mask).at(4, 4).counts.tolist()
        [[4, 12]]
        >>> sf.Regions(mask).at(2, 2).foreground.flatten().tolist()
        [False, False, False, True]
    """

    def __init__(self, mask: Tensor, valid: Tensor | None = None) -> None:
        _check("mask", mask)
        if valid is not None:
            _check("valid", valid)
            if valid.shape != mask.shape:
                raise ValueError(f"valid must have the mask's shape {tuple(mask.shape)}, got {tuple(valid.shape)}")
        self._valid = None if valid is None else _binary(valid.detach())
        foreground = _binary(mask.detach())
        self._foreground = foreground if self._valid is None else foreground & self._valid
        self._levels: list[RegionLevel] = []

    def at(self, height: int, width: int) -> RegionLevel:
        """The regions at `height` x `width`, by nearest neighbour; the second call returns the first one's object."""
        size = (height, width)
        # A list, not a dict: hashing a size under torch.compile would fix it and recompile for the next one.
        for level in self._levels:
            if tuple(level.foreground.shape[-2:]) == size:
                return level
        valid = None if self._valid is None else _resize(self._valid, size)
        self._levels.append(RegionLevel(_resize(self._foreground, size), valid))
        return self._levels[-1]


def foreground_boxes(mask: Tensor) -> Tensor | None:
    """Bounding boxes of what is not 0 in masks (B, 1, H, W): (B, 4) int64 on the CPU, or None for a mask elsewhere.

    Each is top, left, bottom, right with bottom and right one past the last; 0, 0, 0, 0 where all is 0. Reading a mask
    on another device would wait for it: take the boxes before the mask goes there.

    Examples:
        >>> import torch, scsco_fast as sf
        >>> mask = torch.zeros(1, 1, 4, 4)
        >>> mask[..., 1:3, 2] = 1
        >>> sf.foreground_boxes(mask).tolist()
        [[1, 2, 3, 3]]
    """
    _check("mask", mask)
    if mask.device.type != "cpu":
        return None
    sides = []
    for axis in (3, 2):
        line = (mask != 0).any(dim=axis).squeeze(1).long()  # (B, side)
        length = line.shape[1]
        first, after = line.argmax(1), length - line.flip(1).argmax(1)
        occupied = line.any(dim=1)
        sides.append((first * occupied, after * occupied))
    (top, bottom), (left, right) = sides
    return torch.stack([top, left, bottom, right], dim=1)


def level_of(regions_or_mask: "Regions | RegionLevel | Tensor", height: int, width: int) -> RegionLevel:
    """The regions at `height` x `width` of whatever an operation was given: a mask, `Regions` or one ready level."""
    if isinstance(regions_or_mask, RegionLevel):
        size = tuple(regions_or_mask.foreground.shape[-2:])
        if size != (height, width):
            raise ValueError(f"regions are {size[0]}x{size[1]}, the features are {height}x{width}: use Regions.at")
        return regions_or_mask
    regions = regions_or_mask if isinstance(regions_or_mask, Regions) else Regions(regions_or_mask)
    return regions.at(height, width)


def _check(name: str, mask: Tensor) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(mask).__name__}")
    if mask.dim() != 4 or mask.shape[1] != 1:
        raise ValueError(f"{name} must have shape (B, 1, H, W), got {tuple(mask.shape)}")
    if mask.dtype != torch.bool and not mask.dtype.is_floating_point:
        raise TypeError(f"{name} must be bool or floating in [0, 1], got {mask.dtype}: divide an 8-bit mask by 255")


def _binary(mask: Tensor) -> Tensor:
    return mask if mask.dtype == torch.bool else mask > THRESHOLD


def _resize(mask: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(mask.shape[-2:]) == size:
        return mask
    return F.interpolate(mask.float(), size=size, mode="nearest") > THRESHOLD


def _foreground_first(foreground: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """`RegionLevel`'s order and counts."""
    batch, pixels = foreground.shape[0], foreground.shape[-2] * foreground.shape[-1]
    fg = foreground.reshape(batch, pixels)
    bg = ~fg if valid is None else ~fg & valid.reshape(batch, pixels)
    rank_fg, rank_bg = fg.cumsum(1), bg.cumsum(1)
    n_fg, n_bg = rank_fg[:, -1:], rank_bg[:, -1:]
    position = torch.where(fg, rank_fg - 1, pixels - n_bg + rank_bg - 1)
    if valid is not None:
        excluded = ~fg & ~bg
        position = torch.where(excluded, n_fg + excluded.cumsum(1) - 1, position)
    source = torch.arange(pixels, device=fg.device).expand(batch, pixels)
    order = torch.empty_like(position).scatter_(1, position, source)
    return order, torch.cat([n_fg, n_bg], dim=1)
