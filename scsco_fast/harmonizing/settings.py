"""What can be asked of a harmonization, whatever the picture comes as: an array, a tensor, a file or a folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from scsco_fast.errors import ScscoError

if TYPE_CHECKING:  # the command line refuses wrong options before it waits for PyTorch
    import torch

Keep = Literal["luma", "colour"]
MAX_PIXELS = 250_000_000  # about 7 GB at 8 bits; a file of a few kB can claim any size
MOST_GROWTH = 4096  # pixels


@dataclass(frozen=True)
class Settings:
    """Options of one harmonization. A value that cannot be used is a `ScscoError` that names it.

    Attributes:
        working_size: long side in pixels at which the network works; None is the model's own.
        device: where the network computes; None is where the model is.
        native: work at the picture's own size.
        strength: share of the change that is applied, from 0 (nothing) to 1 (all of it).
        keep: "luma" keeps the brightness of each foreground pixel and changes its colour only; "colour" the other way
            round. None changes both.
        grow_mask: pixels by which the foreground grows to each side; negative ones shrink it.
        invert_mask: swap foreground and background.
        fit_mask: resize a mask file of another size to its picture's, with a warning, instead of refusing it.
        max_pixels: larger files are refused.

    Examples:
        >>> Settings(strength=2)
        Traceback (most recent call last):
        scsco_fast.errors.ScscoError: the strength is 2; wanted a number from 0 (no change) to 1 (all of it)
    """

    working_size: int | None = None
    device: str | torch.device | None = None
    native: bool = False
    strength: float = 1.0
    keep: Keep | None = None
    grow_mask: int = 0
    invert_mask: bool = False
    fit_mask: bool = False
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if self.native and self.working_size is not None:
            raise ScscoError(f"both native and working_size={self.working_size} are given; choose one")
        if self.working_size is not None and self.working_size < 1:
            raise ScscoError(f"working_size is {self.working_size}; wanted at least 1 pixel")
        if not 0 <= self.strength <= 1:
            raise ScscoError(f"the strength is {self.strength:g}; wanted a number from 0 (no change) to 1 (all of it)")
        if self.keep is not None and self.keep not in get_args(Keep):
            raise ScscoError(f"keep is {self.keep!r}; wanted {' or '.join(map(repr, get_args(Keep)))}, or None")
        if abs(self.grow_mask) > MOST_GROWTH:
            raise ScscoError(f"grow_mask is {self.grow_mask}; wanted -{MOST_GROWTH} to {MOST_GROWTH} pixels")
