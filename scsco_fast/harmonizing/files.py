"""Harmonize picture files: a composite and its mask, a cut-out and its background, an edit and what was before."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from scsco_fast.data.colour_profiles import converted
from scsco_fast.data.deep_color import SUFFIXES, DeepPicture, read_deep, write_deep
from scsco_fast.data.images import is_high_depth, read_picture, stored_orientation
from scsco_fast.data.masks import check_two_sided, read_mask
from scsco_fast.data.strips import write_strip
from scsco_fast.errors import ScscoError
from scsco_fast.harmonizing.formats import check_size
from scsco_fast.harmonizing.image_files import DeepColorError, read_image, save_options, write_image
from scsco_fast.harmonizing.masks import RegionWarning
from scsco_fast.harmonizing.pictures import harmonize, has_transparency
from scsco_fast.harmonizing.settings import Settings
from scsco_fast.nn.unet import HarmonizationUNet
from scsco_fast.system.files import check_writable, is_same_path

# Standard deviation, of 255, of the colours behind an alpha channel: a removed background is less than this.
_LEAST_VARIETY = 2.0
_TURNS = {  # of EXIF orientations that swap the sides
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def harmonize_file(
    image_path: str | Path,
    mask_path: str | Path | None,
    output_path: str | Path,
    model: HarmonizationUNet,
    settings: Settings | None = None,
    *,
    layer: bool = False,
) -> tuple[int, int]:
    """Harmonize a composite file into another; the output's suffix decides its format. Inputs are never overwritten.

    Args:
        mask_path: None: the picture's own alpha channel is its mask, and all its pixels count as opaque.
        layer: write the recoloured foreground alone, with its mask as alpha channel.

    Returns:
        Width and height of what was written.

    Raises:
        ScscoError: a file that cannot be read or written, a mask of another size, without foreground or without
            background, an alpha channel that hides no background; the message names the file.
    """
    settings = settings or Settings()
    target = _target(output_path, image_path, mask_path)
    picture = _read(image_path, settings.max_pixels, layer)
    pixels, alpha = picture.pixels, None
    if mask_path is not None:
        mask = _read_mask(mask_path, picture, settings)
    elif isinstance(pixels, Image.Image):
        mask, alpha = _own_mask(pixels, image_path)
        pixels = _opaque(pixels)
    else:
        raise ScscoError(f"{image_path}: the alpha channel of 16-bit colour is not read as a mask; give a mask file")
    if settings.invert_mask:
        mask = 1 - mask
    check_two_sided(mask, image_path if mask_path is None else mask_path)
    _check_fits(picture, target)
    with _naming(image_path):
        result = harmonize(pixels, mask, model, layer=layer, **_options(settings))
    if alpha is not None and not layer and isinstance(result, Image.Image):
        result.putalpha(alpha)
    _write(result, picture, target)
    return picture.size


def harmonize_cutout_file(
    foreground_path: str | Path,
    background_path: str | Path,
    mask_path: str | Path | None,
    output_path: str | Path,
    model: HarmonizationUNet,
    settings: Settings | None = None,
    *,
    at: tuple[int, int] | None = None,
    scale: float = 1.0,
    linear_light: bool = False,
    layer: bool = False,
) -> tuple[int, int]:
    """Lay a cut-out file on a background file, harmonize it and write the picture, or the foreground as a layer.

    Args:
        mask_path: of the cut-out's size; None: its alpha channel alone.
        at, scale, linear_light, layer: as `scsco_fast.harmonize`.

    Returns:
        Width and height of what was written: the background's.

    Raises:
        ScscoError: as `harmonize_file` and `scsco_fast.harmonize`; the message names the file.
    """
    settings = settings or Settings()
    target = _target(output_path, foreground_path, background_path, mask_path)
    behind = _read(background_path, settings.max_pixels, layer)
    front = _in_colours_of(behind, _read(foreground_path, settings.max_pixels))
    mask = None if mask_path is None else _read_mask(mask_path, front, settings)
    if mask is not None and settings.invert_mask:
        mask = 1 - mask
    _check_fits(behind, target)
    with _naming(foreground_path):
        result = harmonize(
            front.pixels, mask, model, background=behind.pixels, at=at, scale=scale, linear_light=linear_light,
            layer=layer, **_options(settings),
        )  # fmt: skip
    _write(result, behind, target)
    return behind.size


def harmonize_edit_file(
    before_path: str | Path,
    after_path: str | Path,
    mask_path: str | Path | None,
    output_path: str | Path,
    model: HarmonizationUNet,
    settings: Settings | None = None,
    *,
    layer: bool = False,
) -> tuple[int, int]:
    """Harmonize what an edit has changed in a picture file; outside of the mask the picture before the edit is kept.

    Args:
        mask_path: None: the mask is found where the two pictures differ.

    Returns:
        Width and height of what was written.

    Raises:
        ScscoError: as `harmonize_file` and `scsco_fast.harmonize`; the message names the file.
    """
    settings = settings or Settings()
    target = _target(output_path, before_path, after_path, mask_path)
    before = _read(before_path, settings.max_pixels, layer)
    after = _in_colours_of(before, _read(after_path, settings.max_pixels))
    mask = None if mask_path is None else _read_mask(mask_path, before, settings)
    if mask is not None and mask_path is not None:
        mask = 1 - mask if settings.invert_mask else mask
        check_two_sided(mask, mask_path)
    _check_fits(before, target)
    with _naming(after_path):
        result = harmonize(after.pixels, mask, model, before=before.pixels, layer=layer, **_options(settings))
    _write(result, before, target)
    return before.size


def write_file_strip(strip: str | Path, before: str | Path, after: str | Path, real: str | Path | None = None) -> None:
    """Write picture files side by side; a real picture of another size is an error."""
    paths = {name: path for name, path in (("before", before), ("after", after), ("real", real)) if path}
    images = {name: read_picture(path).rgb for name, path in paths.items()}  # (H, W, 3) uint8 each
    for image in images.values():
        if image.shape != images["before"].shape:
            size = f"{image.shape[1]}x{image.shape[0]}"
            raise ScscoError(f"{real}: is {size}, not of the picture's size; leave it out")
    write_strip([list(images.values())], list(images), strip)


class _File(NamedTuple):
    """A decoded file: a PIL image, or an array (H, W, channels) of 16-bit colour with its profile and EXIF block."""

    path: str | Path
    pixels: Any
    deep: DeepPicture | None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.pixels.size if self.deep is None else (self.pixels.shape[1], self.pixels.shape[0])


def _read(path: str | Path, max_pixels: int, layer: bool = False) -> _File:
    """The file; 16-bit grey as an array too where a layer is made of it, which is colour."""
    try:
        image = read_image(path, max_pixels)
    except DeepColorError:
        deep = read_deep(path, max_pixels)
        return _File(path, deep.pixels, deep)
    if layer and image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.uint16)[..., None]
        return _File(path, grey, DeepPicture(grey, image.info.get("icc_profile"), image.info.get("exif")))
    return _File(path, image, None)


def _in_colours_of(other: _File, file: _File) -> _File:
    """With its colours in the other file's profile, which the output keeps; a warning where 16 bits keep them out."""
    given, wanted = _rgb_profile(file), _rgb_profile(other)
    if given == wanted:
        return file
    if file.deep is not None or is_high_depth(file.pixels):
        warnings.warn(
            f"{file.path}: its colour profile is not that of {other.path}, and 16-bit colours are not converted",
            stacklevel=3,
        )
        return file
    image = file.pixels.convert("RGBA" if has_transparency(file.pixels) else "RGB")
    image.info = {"icc_profile": given}
    result = converted(image, wanted)
    return file if result is None else file._replace(pixels=result)


def _rgb_profile(file: _File) -> bytes | None:
    """Its colour profile if that is one of RGB; others say nothing of the RGB that is made of grey and CMYK."""
    profile = file.pixels.info.get("icc_profile") if file.deep is None else file.deep.icc_profile
    return profile if profile is not None and profile[16:20] == b"RGB " else None


def _write(result: Any, like: _File, target: Path) -> None:
    """In the kind of file that `like` was."""
    if like.deep is None:
        write_image(result, target)
    else:
        write_deep(replace(like.deep, pixels=result), target)


def _target(output: str | Path, *inputs: str | Path | None) -> Path:
    """The output's path, which can be written and is none of the inputs."""
    path = Path(output)
    save_options(path)
    for source in inputs:
        if source is not None and is_same_path(path, source):
            raise ScscoError(f"{path}: the output would overwrite an input; name another file")
    check_writable(path.parent)
    return path


def _check_fits(file: _File, target: Path) -> None:
    """Before the work rather than after it: that the target can hold the picture."""
    check_size(target, file.size)
    if file.deep is not None and target.suffix.lower() not in SUFFIXES:
        raise ScscoError(f"{target}: {target.suffix} cannot hold 16-bit colour; name a .png or a .tif")


def _options(settings: Settings) -> dict[str, Any]:
    """What of the settings `harmonize` takes; the rest is about files."""
    names = ("working_size", "device", "native", "strength", "keep", "grow_mask")
    return {name: getattr(settings, name) for name in names}


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Errors begin with the file; a region that is empty, for transparent pixels, is an error too."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RegionWarning)
            yield
    except RegionWarning as error:
        raise ScscoError(f"{path}: {error.reason}; nothing was written") from error
    except ScscoError as error:
        raise ScscoError(f"{path}: {error}") from error


def _read_mask(path: str | Path, picture: _File, settings: Settings) -> np.ndarray:
    """(H, W) float32 in [0, 1] of the picture's size."""
    mask = read_mask(path, max_pixels=settings.max_pixels)
    found, size = (mask.shape[1], mask.shape[0]), picture.size
    if found == size:
        return mask
    sizes = f"{found[0]}x{found[1]} (width x height)", f"{size[0]}x{size[1]}"
    if not settings.fit_mask:
        raise ScscoError(
            f"{path}: the mask is {sizes[0]} but its picture is {sizes[1]}; give a mask of the picture's size, or "
            "--fit-mask to resize it"
        )
    mask, turned = _turned(mask, picture, settings.max_pixels)
    how = "turned as the picture's EXIF orientation says, and " if turned else ""
    warnings.warn(f"{path}: the mask is {sizes[0]}; {how}resized to its picture's {sizes[1]}", stacklevel=3)
    fitted = Image.fromarray(mask).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(fitted).clip(0, 1)


def _turned(mask: np.ndarray, picture: _File, max_pixels: int) -> tuple[np.ndarray, bool]:
    """The mask of a picture that lies on its side in its file, if it was drawn on that; and whether it was.

    It was where the mask's sides are nearer to the picture's stored ones than to its upright ones. An orientation that
    keeps the sides (mirrored, upside down) and a square picture cannot be told so: their masks stay as they are.
    """
    turn = _TURNS.get(stored_orientation(picture.path, max_pixels))
    ratio, upright = mask.shape[1] / mask.shape[0], picture.size[0] / picture.size[1]
    if turn is None or abs(math.log(ratio * upright)) >= abs(math.log(ratio / upright)):
        return mask, False
    return np.asarray(Image.fromarray(mask).transpose(turn)), True


def _own_mask(image: Image.Image, path: str | Path) -> tuple[np.ndarray, Image.Image]:
    """The alpha channel, as a mask (H, W) in [0, 1] and as it is."""
    if not has_transparency(image):
        raise ScscoError(f"{path}: has no alpha channel to be its mask (mode {image.mode}); give a mask file")
    rgba = np.asarray(image.convert("RGBA"))
    colour = hidden_colour(rgba[:, :, :3], rgba[:, :, 3])
    if colour is not None:
        raise ScscoError(
            f"{path}: behind its alpha channel there is no background, only one colour ({colour}); give the "
            "background: --foreground FILE --background FILE"
        )
    return rgba[:, :, 3].astype(np.float32) / 255, Image.fromarray(rgba[:, :, 3])


def hidden_colour(rgb: np.ndarray, alpha: np.ndarray) -> str | None:
    """The one colour, as "r, g, b", of all fully transparent pixels: a cut-out's; None where they are a picture.

    Args:
        rgb: (H, W, 3) uint8.
        alpha: (H, W) uint8.

    Examples:
        >>> hidden_colour(np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8))
        '0, 0, 0'
    """
    hidden = rgb[alpha == 0]  # (N, 3)
    if not len(hidden) or hidden.std(axis=0).max() >= _LEAST_VARIETY:
        return None
    return ", ".join(f"{value:.0f}" for value in np.median(hidden, axis=0))


def _opaque(image: Image.Image) -> Image.Image:
    grey = image.mode in ("1", "L", "LA", "La")
    opaque = image.convert("LA" if grey else "RGBA").convert("L" if grey else "RGB")
    opaque.info.pop("transparency", None)
    return opaque
