"""Colours of one profile in those of another, where two pictures become one: a cut-out and its background."""

import io

import numpy as np
from PIL import Image, ImageCms

_SAME = 2  # levels: profiles that differ less are two writings of the same colour space
_GRID = 6  # values of each channel at which that is tested


def converted(image: Image.Image, wanted: bytes | None) -> Image.Image | None:
    """An RGB or RGBA image of 8 bits in the colours of another ICC profile; None where nothing is to be converted.

    Nothing is where both profiles mean the same colours, and where one of them is damaged or not one of RGB. A picture
    without a profile is sRGB. The conversion is relative colorimetric with black point compensation, as editors do it;
    colours that the other profile does not have are cut off at its border. Alpha stays.

    Args:
        image: mode RGB or RGBA, with its profile in `image.info["icc_profile"]`.
        wanted: the other profile, None for sRGB.

    Examples:
        >>> srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        >>> converted(Image.new("RGB", (2, 2), "red"), srgb) is None
        True
    """
    given = image.info.get("icc_profile")
    if given == wanted or image.mode not in ("RGB", "RGBA"):
        return None
    try:
        transform = ImageCms.buildTransform(
            _profile(given),
            _profile(wanted),
            "RGB",
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    grid = _grid()
    moved = ImageCms.applyTransform(grid, transform)
    if moved is None or np.abs(np.asarray(moved).astype(int) - np.asarray(grid)).max() <= _SAME:
        return None
    result = ImageCms.applyTransform(image.convert("RGB"), transform)
    if result is not None and image.mode == "RGBA":
        result.putalpha(image.getchannel("A"))
    return result


def _profile(icc: bytes | None) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB") if icc is None else io.BytesIO(icc))


def _grid() -> Image.Image:
    levels = np.linspace(0, 255, _GRID).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1)  # (n, n, n, 3)
    return Image.fromarray(colours.reshape(_GRID, -1, 3))
