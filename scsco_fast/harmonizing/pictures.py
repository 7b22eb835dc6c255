"""Harmonize one picture of any size, as a numpy array or a PIL image, or a batch of them as a tensor.

What was pasted is said by a composite and its mask, by a cut-out and a background, or by a picture before and after an
edit. How the network's change gets from its working size to the full size is in `recolour`.
"""

import warnings
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scsco_fast.errors import ScscoError
from scsco_fast.harmonizing.masks import PEAK, check_coverage, check_range, check_regions, grown, mask_values
from scsco_fast.harmonizing.placing import Layer, canvas, changed_mask, over, place, whole_layer
from scsco_fast.harmonizing.recolour import named_memory, predict, recolour, unit_rgb
from scsco_fast.harmonizing.settings import Keep, Settings
from scsco_fast.harmonizing.tensors import each_picture
from scsco_fast.nn.unet import HarmonizationUNet
from scsco_fast.nn.weights import shared_default_model

PictureT = TypeVar("PictureT", np.ndarray, Image.Image, Tensor)
Picture = np.ndarray | Image.Image
_CALLER = 4  # stack levels from a warning, two functions below `harmonize`, up to whoever called that


class UnchangedWarning(UserWarning):
    """The result is the picture that was given."""


def harmonize(
    image: PictureT,
    mask: np.ndarray | Image.Image | Tensor | None = None,
    model: HarmonizationUNet | None = None,
    working_size: int | None = None,
    device: str | torch.device | None = None,
    native: bool = False,
    *,
    strength: float = 1.0,
    grow_mask: int = 0,
    keep: Keep | None = None,
    background: PictureT | None = None,
    at: tuple[int, int] | None = None,
    scale: float = 1.0,
    linear_light: bool = False,
    before: PictureT | None = None,
    layer: bool = False,
) -> PictureT:
    """Adapt a pasted foreground's colours to its background.

    There are three ways to say what was pasted::

        harmonize(composite, mask)                                        a composite and the mask of its foreground
        harmonize(cutout, background=photograph, at=(x, y), scale=s)      a cut-out, to be laid on a background
        harmonize(edited, before=original)                                a picture of which a part was edited

    Args:
        image: the composite, the cut-out or the edited picture. An array (H, W), (H, W, 1), (H, W, 2), (H, W, 3) or
            (H, W, 4) (grey, grey and alpha, RGB, RGBA) of type uint8, uint16 or float in [0, 1]; or a PIL image. A
            composite's alpha channel is kept, and its pixels with alpha 0 count neither as foreground nor as
            background. A composite may also be a tensor (B, 3, H, W) or (B, H, W, 3) on any device, uint8 or floating
            in [0, 1].
        mask: 1 is foreground, 0 is background, values between blend; values up to 3/255 count as 0. An array (H, W) or
            (H, W, 1) of type bool, float in [0, 1], uint8 or uint16 (grey value over 255 or 65535; an integer array of
            only 0 and 1 is taken as such); or a PIL image (colour is read as grey); for tensors a tensor (B, H, W),
            (B, 1, H, W), (B, H, W, 1) or (H, W), of which B may be 1. A cut-out's mask has the cut-out's size and is
            multiplied with its alpha channel; None is the alpha channel alone. An edited picture's mask is found where
            the two pictures differ if it is None.
        model: a trained network, from `load_model`; None is the one in the package (`load_default_model`).
        working_size: long side in pixels at which the network works; a smaller picture stays as it is. None is the
            model's own.
        device: where the network computes; the model is moved there. None is where the model is (the package's: on the
            CPU).
        native: work at the picture's own size, whatever it is; memory grows with the number of pixels.
        strength: share of the change that is applied, from 0 to 1.
        grow_mask: pixels by which the mask grows to each side; negative ones shrink it.
        keep: "luma" keeps each pixel's luma (0.299 R + 0.587 G + 0.114 B) and changes its colour only; "colour" makes
            it brighter or darker only, by scaling R, G and B together. Exact up to what is cut off at 0 and 1.
        background: the picture that the cut-out is laid on.
        at: x and y of the cut-out's upper left corner in the background, in pixels; None is the middle.
        scale: by which the cut-out's sides are multiplied first.
        linear_light: blend a cut-out's edges in linear light instead of sRGB values.
        before: the picture before the edit; outside of the mask the result is this one.
        layer: return the recoloured foreground alone, RGBA and of the whole picture's size, with the mask as its alpha.
            Laid over the background (over a composite: over the composite) it is the result.

    Returns:
        The harmonized picture: an array of the shape and type of the composite, of the background or of `before`; or a
        PIL image of its size and mode (palette images come back as RGB or RGBA, CMYK and YCbCr as RGB, 1-bit as grey);
        or a tensor of the same layout, type and device. What is given is not changed. An empty mask gives the picture
        back unchanged, and a full one is processed; both with a `RegionWarning`. A foreground that is most of the
        picture or of its frame draws a `CoverageWarning`, a result without any change an `UnchangedWarning`.

    Raises:
        ScscoError: another shape, type or size, values outside of [0, 1], NaN; not enough memory for the working size;
            options that do not go together; a cut-out without alpha channel and mask, or outside of its background;
            pictures before and after an edit that do not differ, or differ everywhere.

    Examples:
        >>> model = HarmonizationUNet(base_channels=4, levels=5).eval()
        >>> picture, mask = np.zeros((48, 40, 3), np.uint8), np.zeros((48, 40), bool)
        >>> mask[10:20, 10:20] = True
        >>> harmonize(picture, mask, model, strength=0.8).shape
        (48, 40, 3)
        >>> cutout = np.full((20, 20, 4), 128, np.uint8)
        >>> harmonize(cutout, model=model, background=picture, at=(5, 7), scale=0.5).shape
        (48, 40, 3)
    """
    settings = Settings(working_size, device, native, strength, keep, grow_mask)
    if background is not None and before is not None:
        raise ScscoError("both background and before are given; a picture is either a cut-out or edited")
    if background is None and (at is not None or scale != 1 or linear_light):
        raise ScscoError("at, scale and linear_light place a cut-out; give its background too")
    model = shared_default_model() if model is None else model
    if isinstance(image, Tensor):
        if layer or background is not None or before is not None:
            raise ScscoError("layer, background and before are for arrays and PIL images; tensors are composites")
        return each_picture(
            image, mask, lambda one, its: _composite(_pixels(one), mask_values(its), model, settings, False)
        )
    if isinstance(mask, Tensor):
        raise ScscoError("the mask is a tensor and the picture is not; give both as tensors, or both as arrays")
    given = None if mask is None else mask_values(mask)
    pixels, below = _pixels(image), background if background is not None else before
    if below is None:
        if given is None:
            raise ScscoError("a composite needs its mask; give one, or background for a cut-out, before for an edit")
        result, like = _composite(pixels, given, model, settings, layer), image
    else:
        under = _pixels(below)
        front = (
            _cut_out(pixels, given, under.shape, at, scale, settings)
            if before is None
            else _edited(pixels, given, under, settings)
        )
        result, like = _laid_over(front, under, model, settings, linear_light, layer), below
    if isinstance(like, Image.Image):
        return _image_of(result[:, :, 0] if result.shape[2] == 1 else result, like)
    return result if layer else result.reshape(np.shape(like))


def _composite(
    pixels: np.ndarray, mask: np.ndarray, model: HarmonizationUNet, settings: Settings, as_layer: bool
) -> np.ndarray:
    """(H, W, channels), or (H, W, 4) for a layer."""
    _check_size(mask, pixels, "the mask", "its picture")
    check_coverage(mask, _CALLER)
    mask = grown(mask, settings.grow_mask)
    valid = pixels[:, :, -1] > 0 if pixels.shape[2] in (2, 4) else None  # (H, W)
    weight = mask if valid is None else np.where(valid, mask, 0)  # (H, W)
    if as_layer:
        if not weight.any():
            raise ScscoError("the mask is empty: there is no foreground to make a layer of")
        alpha = weight if valid is None else weight * _alpha(pixels)
        return _laid_over(whole_layer(_rgb(pixels), alpha), pixels, model, settings, False, True)
    if not check_regions(weight, valid, _CALLER):
        return pixels.copy()
    with named_memory(weight.shape, model, settings):
        result = recolour(pixels, weight, predict(pixels, weight, valid, model, settings), settings)
    _check_changed(pixels, result, settings)
    return result


def _laid_over(
    front: Layer,
    background: np.ndarray,
    model: HarmonizationUNet,
    settings: Settings,
    linear_light: bool,
    as_layer: bool,
) -> np.ndarray:
    """The layer, recoloured to go with the background: over it, (H, W, channels), or alone, (H, W, 4)."""
    composite = over(front, background, linear_light)
    weight = np.zeros(background.shape[:2], np.float32)
    weight[front.box] = front.alpha
    valid = composite[:, :, -1] > 0 if composite.shape[2] in (2, 4) else None
    check_regions(weight, valid, _CALLER)
    size = background.shape[0], background.shape[1]
    with named_memory(weight.shape, model, settings):
        coefficients = predict(composite, weight, valid, model, settings)
        visible = (front.alpha > 0).astype(np.float32)
        colours = recolour(front.colours, visible, coefficients, settings, size, front.corner)
    new = front._replace(colours=colours)
    result = canvas(new, size, background.dtype) if as_layer else over(new, background, linear_light)
    _check_changed(canvas(front, size, background.dtype) if as_layer else composite, result, settings)
    return result


def _cut_out(
    pixels: np.ndarray,
    mask: np.ndarray | None,
    shape: tuple[int, ...],
    at: tuple[int, int] | None,
    scale: float,
    settings: Settings,
) -> Layer:
    has_alpha = pixels.shape[2] in (2, 4)
    alpha = _alpha(pixels) if has_alpha else np.ones(pixels.shape[:2], np.float32)
    if mask is not None:
        _check_size(mask, pixels, "the mask", "the cut-out")
        alpha = alpha * grown(mask, settings.grow_mask)
    elif alpha.min() == 1:
        raise ScscoError(
            "the foreground has no transparent pixel and no mask, so all of it would be pasted; give the mask"
        )
    elif settings.grow_mask > 0:
        raise ScscoError("what a cut-out's alpha channel hides cannot be grown into; give its mask, or shrink it")
    else:
        alpha = grown(alpha, settings.grow_mask)
    if not alpha.any():
        raise ScscoError("the foreground is empty: no pixel of the cut-out is visible")
    return place(_rgb(pixels), alpha, (shape[0], shape[1]), at, scale)


def _edited(pixels: np.ndarray, mask: np.ndarray | None, before: np.ndarray, settings: Settings) -> Layer:
    _check_size(pixels, before, "the edited picture", "the picture before")
    if mask is None:
        mask = changed_mask(before, pixels)
        if mask.min() == mask.max():
            differ = "everywhere" if mask.any() else "nowhere"
            raise ScscoError(f"the pictures before and after the edit differ {differ}; give the mask of the edit")
    else:
        _check_size(mask, before, "the mask", "its picture")
        check_coverage(mask, _CALLER)
    mask = grown(mask, settings.grow_mask)
    if not mask.any():
        raise ScscoError("the mask is empty: there is no edit to harmonize")
    return whole_layer(_rgb(pixels), mask)


def _check_changed(before: np.ndarray, after: np.ndarray, settings: Settings) -> None:
    if np.array_equal(before, after):
        why = " (the strength is 0)" if settings.strength == 0 else ""
        warnings.warn(f"no pixel was changed{why}: the result is the picture as it was", UnchangedWarning, _CALLER)


def _check_size(found: np.ndarray, wanted: np.ndarray, name: str, other: str) -> None:
    if found.shape[:2] != wanted.shape[:2]:
        raise ScscoError(
            f"{name} is {found.shape[1]}x{found.shape[0]} (width x height) but {other} is "
            f"{wanted.shape[1]}x{wanted.shape[0]}; give {name} in that size"
        )


def _pixels(image: Picture) -> np.ndarray:
    """(H, W, 1 to 4) of a type in `PEAK`."""
    pixels = _array_of(image) if isinstance(image, Image.Image) else np.asarray(image)
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 2, 3, 4)) or 0 in pixels.shape:
        raise ScscoError(f"the picture is an array of shape {pixels.shape}; wanted (H, W) or (H, W, 1 to 4)")
    if pixels.dtype.name not in PEAK:
        raise ScscoError(f"the picture is an array of type {pixels.dtype}; wanted uint8, uint16 or float in [0, 1]")
    if pixels.dtype.kind == "f":
        check_range(pixels, "the picture")
    return pixels.reshape(*pixels.shape[:2], -1)


def _rgb(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) float32 in [0, 1]."""
    return np.ascontiguousarray(unit_rgb(pixels).permute(1, 2, 0).numpy())


def _alpha(pixels: np.ndarray) -> np.ndarray:
    """(H, W) float32 in [0, 1] of a picture with an alpha channel."""
    return pixels[:, :, -1].astype(np.float32) / np.float32(PEAK[pixels.dtype.name])


def _array_of(image: Image.Image) -> np.ndarray:
    """The image's own values where `_harmonize_array` knows them, else as RGB."""
    if image.mode == "I":
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ScscoError(
                f"the picture has values from {values.min()} to {values.max()}; wanted 16 bits, 0 to 65535"
            )
        return values.astype(np.uint16)
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.mode == "F":
        return np.asarray(image)
    if image.mode in ("1", "L", "LA", "La"):
        return np.asarray(image.convert("LA" if has_transparency(image) else "L"))
    return np.asarray(image.convert("RGBA" if has_transparency(image) else "RGB"))


def has_transparency(image: Image.Image) -> bool:
    """Whether a PIL image has an alpha channel, or a transparent colour or palette entry."""
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info


def _image_of(result: np.ndarray, source: Image.Image) -> Image.Image:
    if result.ndim == 3 and result.dtype != np.uint8:
        raise ScscoError(
            f"PIL has no colour of {result.dtype}, which a layer of its mode {source.mode} is; give arrays"
        )
    image = Image.fromarray(result.astype(np.int32) if source.mode == "I" else result)
    image.info = {key: value for key, value in source.info.items() if key != "transparency"}
    if source.mode not in (image.mode, "P", "PA"):
        image.info.pop("icc_profile", None)  # it describes the source's colour space
    return image
