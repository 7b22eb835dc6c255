"""From what the fields of the page hold to files that can be harmonized, or to one line that says what is missing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from scsco_fast.data.images import open_unlimited, read_picture, upright_size
from scsco_fast.data.masks import binary_mask, read_mask
from scsco_fast.demo.jobs import Composite, CutOut, Edit, Job
from scsco_fast.demo.painting import read_painted
from scsco_fast.demo.previews import resized
from scsco_fast.demo.stage import read_place
from scsco_fast.errors import ScscoError
from scsco_fast.harmonizing.files import hidden_colour
from scsco_fast.harmonizing.pictures import has_transparency
from scsco_fast.harmonizing.placing import changed_mask
from scsco_fast.harmonizing.settings import Keep, Settings

Way = Literal["composite", "cutout", "edit"]
TITLES: dict[Way, str] = {"composite": "Composite", "cutout": "Cut-out", "edit": "Edit"}
UPLOAD, PAINT, FIND = "Upload it", "Paint it", "Find it"
OWN: dict[Way, str] = {"cutout": "Its transparency", "edit": "Where the two differ"}  # masks that nobody gives
KEEP: dict[str, Keep | None] = {"Nothing": None, "Brightness": "luma", "Colour": "colour"}
_CUT_OUT = 0.95  # share of what is visible that a mask covers, above which a composite has no background


@dataclass(frozen=True)
class Request:
    """What the fields of one way hold.

    Attributes:
        image: file of the composite, the cut-out or the picture after the edit.
        under: file of the background, or of the picture before the edit.
        source: where the mask comes from: `UPLOAD`, `PAINT`, `FIND` or one of `OWN`.
        uploaded: file of the mask.
        painted: what the painting says.
        grow, invert: of the mask.
        place: what the stage says.
    """

    way: Way
    image: str | None
    under: str | None = None
    source: str = UPLOAD
    uploaded: str | None = None
    painted: Any = None
    grow: float = 0
    invert: bool = False
    place: Any = None

    @property
    def has_mask(self) -> bool:
        """Whether the visitor has given a mask by what `source` says."""
        if self.source == UPLOAD:
            return self.uploaded is not None
        return self.source != OWN.get(self.way) and read_painted(self.painted) is not None


class RequestReader:
    """Makes a job of a request, or says in one line why it cannot be done.

    Args:
        max_megapixels: larger pictures are refused before they are decoded.
    """

    def __init__(self, max_megapixels: float) -> None:
        self.max_megapixels = max_megapixels

    def job(self, request: Request, strength: float, keep: str, folder: Path) -> Job:
        """What is to be harmonized; a painted mask is written to `folder`.

        Raises:
            ScscoError: something is missing, too large, or cannot be read.
        """
        make = {"composite": self._composite, "cutout": self._cutout, "edit": self._edit}[request.way]
        return make(request, self.settings(request, strength, keep), folder)

    def _composite(self, request: Request, settings: Settings, folder: Path) -> Job:
        image = self._given(request.image, "composite", "upload one, or take a sample picture")
        self._check_background(image, request, None)
        mask = self.mask(request, image, folder)
        self._check_background(image, request, mask)
        return Composite(image, mask, settings)

    def _cutout(self, request: Request, settings: Settings, folder: Path) -> Job:
        image = self._given(request.image, "cut-out", "upload one with transparency, or any picture and its mask")
        background = self._given(request.under, "background", "upload the picture that the cut-out is laid on")
        at, scale = read_place(request.place)
        mask = None if self._has_own(request) else self.mask(request, image, folder)
        return CutOut(image, background, mask, settings, at, scale)

    def _edit(self, request: Request, settings: Settings, folder: Path) -> Job:
        before = self._given(request.under, "picture before the edit", "upload it")
        image = self._given(request.image, "picture after the edit", "upload it")
        found = self._has_own(request)
        mask = _difference(before, image, folder) if found else self.mask(request, before, folder)
        return Edit(image, before, mask, found, settings)

    def mask(self, request: Request, image: Path, folder: Path) -> Path:
        """The mask's file; a painted one is written to `folder` in the size of its picture."""
        if request.source == UPLOAD and request.uploaded is not None:
            self.check_pixels(request.uploaded)
            return Path(request.uploaded)
        painted = None if request.source == UPLOAD else read_painted(request.painted)
        if painted is None:
            raise ScscoError("there is no mask; upload one, or paint over the foreground")
        path = folder / "painted mask.png"
        Image.fromarray(np.rint(resized(painted / 255, upright_size(image)) * 255).astype(np.uint8)).save(path)
        return path

    def settings(self, request: Request, strength: float, keep: str) -> Settings:
        return Settings(
            strength=strength, keep=KEEP[keep], grow_mask=round(request.grow), invert_mask=request.invert,
            max_pixels=round(self.max_megapixels * 1e6),
        )  # fmt: skip

    def check_pixels(self, path: str | Path) -> None:
        """By the header, before anything is decoded; what has none is for the readers to name."""
        try:
            with Image.open(path) as opened:
                width, height = opened.size
        except Image.DecompressionBombError:
            raise ScscoError(f"{path}: far more than {self.max_megapixels:g} megapixels; make it smaller") from None
        except Exception:
            return
        if width * height > self.max_megapixels * 1e6:
            raise ScscoError(
                f"{path}: {width}x{height} are {width * height / 1e6:.1f} megapixels, the limit is "
                f"{self.max_megapixels:g}; make it smaller, or start scsco demo with --max-megapixels"
            )

    def _given(self, path: str | None, name: str, otherwise: str) -> Path:
        if path is None:
            raise ScscoError(f"there is no {name}; {otherwise}")
        self.check_pixels(path)
        return Path(path)

    def _has_own(self, request: Request) -> bool:
        """Whether the picture itself tells the mask."""
        own = request.source == OWN[request.way]
        if own and request.invert:
            raise ScscoError("there is no mask to invert: give one, or leave it as it is")
        return own

    def _check_background(self, image: Path, request: Request, mask: Path | None) -> None:
        """Refuse a cut-out as a composite: it hides one colour only, and no mask leaves something visible around it.

        Without a mask, only where the visitor has given none.
        """
        if (mask is None and request.has_mask) or not _is_transparent(image):
            return
        picture = read_picture(image)
        colour = None if picture.alpha is None else hidden_colour(picture.rgb, picture.alpha)
        if picture.alpha is None or colour is None:
            return
        if mask is not None:
            inside = binary_mask(read_mask(mask, (picture.alpha.shape[0], picture.alpha.shape[1]))) ^ request.invert
            if inside[picture.alpha > 127].mean() < _CUT_OUT:
                return
        raise ScscoError(
            f"{image}: behind its transparency there is only one colour ({colour}), so this is a cut-out and no "
            f'composite; go to "{TITLES["cutout"]}", and give its background'
        )


def _difference(before: Path, after: Path, folder: Path) -> Path:
    """The file of the mask of where two pictures differ. It is looked for once: that takes longer than harmonizing."""
    old, new = read_picture(before).rgb, read_picture(after).rgb
    if old.shape != new.shape:
        sizes = [f"{rgb.shape[1]}x{rgb.shape[0]}" for rgb in (new, old)]
        raise ScscoError(f"{after}: is {sizes[0]} but the picture before the edit is {sizes[1]}; give it in that size")
    mask = changed_mask(old, new)
    if mask.min() == mask.max():
        differ = "everywhere" if mask.any() else "nowhere"
        raise ScscoError(f"the pictures before and after the edit differ {differ}; give the mask of the edit")
    path = folder / "mask of the edit.png"
    Image.fromarray(np.rint(mask * 255).astype(np.uint8)).save(path)
    return path


def _is_transparent(path: Path) -> bool:
    """By the header; what cannot be opened is for the readers to name."""
    try:
        with open_unlimited(path) as opened:
            return has_transparency(opened)
    except Exception:
        return False
