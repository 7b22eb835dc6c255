"""Harmonize one picture of any size, as a numpy array or a PIL image.

The network sees the picture at its working size (the size that it was trained at). What is carried to full resolution
is not its output but the *change* that it makes, as a local affine transform of colours (`local_affine`)::

    D, b: network(small) - small = D small + b       around each small pixel
    output = picture + mask * (enlarge(D) picture + enlarge(b))

A network with head="affine" predicts D and b itself; to the change of any other they are fitted. So every detail of
the full-size picture is recoloured and none is lost. Pixels where the mask is 0, and fully transparent ones, keep their
exact values. At the working size the output is the network's own.
"""

import warnings
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from scsco_fast.errors import ScscoError
from scsco_fast.local_affine import WINDOW, apply_local_affine, enlarged_rows, extend, fit_local_affine
from scsco_fast.nn.unet import AFFINE_CHANNELS, MAJORITY, HarmonizationUNet, reduced_size
from scsco_fast.regions import THRESHOLD
from scsco_fast.weights import shared_default_model

PictureT = TypeVar("PictureT", np.ndarray, Image.Image)

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_STRIP = 2**18  # pixels: the floats of a strip stay in the cache
_PEAK = {"uint8": 255.0, "uint16": 65535.0, "float16": 1.0, "float32": 1.0, "float64": 1.0}


class RegionWarning(UserWarning):
    """A mask without foreground, or without background."""


def harmonize(
    image: PictureT,
    mask: np.ndarray | Image.Image,
    model: HarmonizationUNet | None = None,
    working_size: int | None = None,
    device: str | torch.device | None = None,
    native: bool = False,
) -> PictureT:
    """Adapt the foreground of a composite picture to its background.

    Args:
        image: the composite. An array (H, W), (H, W, 1), (H, W, 2), (H, W, 3) or (H, W, 4) (grey, grey and alpha, RGB,
            RGBA) of type uint8, uint16 or float in [0, 1]; or a PIL image. The alpha channel is kept, and pixels with
            alpha 0 count neither as foreground nor as background.
        mask: 1 is foreground, 0 is background, values between blend. An array (H, W) or (H, W, 1) of type bool, float
            in [0, 1], uint8 or uint16 (grey value over 255 or 65535; an integer array of only 0 and 1 is taken as
            such); or a PIL image (colour is read as grey).
        model: a trained network, from `load_model`; None is the one in the package (`load_default_model`).
        working_size: long side in pixels at which the network works; a smaller picture stays as it is. None is the
            model's own.
        device: where the network computes; the model is moved there. None is where the model is (the package's: on the
            CPU).
        native: work at the picture's own size, whatever it is; memory grows with the number of pixels.

    Returns:
        The harmonized picture: an array of the input's shape and type, or a PIL image of its size and mode (palette
        images come back as RGB or RGBA, CMYK and YCbCr as RGB, 1-bit as grey). Input arrays are not changed. An empty
        mask gives the picture back unchanged, and a full one is processed; both with a `RegionWarning`.

    Raises:
        ScscoError: another shape, type or size, values outside of [0, 1], NaN; not enough memory for the working size;
            both `working_size` and `native`.

    Examples:
        >>> model = HarmonizationUNet(base_channels=4, levels=5).eval()
        >>> picture, mask = np.zeros((48, 40, 3), np.uint8), np.zeros((48, 40), bool)
        >>> mask[10:20, 10:20] = True
        >>> harmonize(picture, mask, model).shape
        (48, 40, 3)
    """
    if native and working_size is not None:
        raise ScscoError(f"both native and working_size={working_size} are given; choose one")
    values = _mask_values(mask)
    model = shared_default_model() if model is None else model
    pixels = _array_of(image) if isinstance(image, Image.Image) else np.asarray(image)
    size = max(values.shape) if native else working_size
    result = _harmonize_array(pixels, values, model, size, device)
    return _image_of(result, image) if isinstance(image, Image.Image) else result


def _harmonize_array(
    image: np.ndarray,
    mask: np.ndarray,
    model: HarmonizationUNet,
    working_size: int | None,
    device: str | torch.device | None,
) -> np.ndarray:
    _check_image(image, mask.shape)
    pixels = image.reshape(*image.shape[:2], -1)  # (H, W, channels)
    valid = pixels[:, :, -1] > 0 if pixels.shape[2] in (2, 4) else None  # (H, W)
    weight = mask if valid is None else np.where(valid, mask, 0)  # (H, W)
    if not _check_regions(weight, valid):
        return image.copy()
    try:
        coefficients = _predict(pixels, weight, valid, model, working_size, device)
        result = pixels.copy()
        _recolour(pixels, result, weight, coefficients)
    except (MemoryError, RuntimeError) as error:
        if not _is_memory(error):
            raise
        small = reduced_size(mask.shape, _working_size(model, working_size))
        raise ScscoError(
            f"not enough memory to work at {small[1]}x{small[0]}; give a smaller working size (the model's own is "
            f"{model.working_size})"
        ) from error
    return result.reshape(image.shape)


def _predict(
    pixels: np.ndarray,
    weight: np.ndarray,
    valid: np.ndarray | None,
    model: HarmonizationUNet,
    working_size: int | None,
    device: str | torch.device | None,
) -> Tensor:
    """(1, 12, h, w) coefficients of the change at the working size, or (1, 3, H, W), the change, at full size.

    They are continued smoothly outside of the foreground, where an affine head's mean nothing.
    """
    if device is not None:
        model = model.to(device)
    like = next(model.parameters())
    small = reduced_size(weight.shape, _working_size(model, working_size))
    with torch.inference_mode():
        colour, region, usable = _shrunk(pixels, weight, valid, small)
        colour = colour.to(like.device, like.dtype)
        given = None if usable is None else usable.to(like.device, like.dtype)
        output = _run(model, colour, region.to(like.device, like.dtype), given, max(small)).float()
        affine = output.shape[1] == AFFINE_CHANNELS
        change = output.cpu() if affine else (output.clamp(0, 1) - colour.float()).cpu() * region
        if not bool(torch.isfinite(change).all()):
            raise ScscoError(
                "the network's output holds NaN or infinite values; its weights or the picture are not usable"
            )
        if small != weight.shape and not affine:
            change = _fit(colour.float().cpu(), change, region)
        return extend(change, region)


def _fit(colour: Tensor, change: Tensor, region: Tensor) -> Tensor:
    """(1, 12, h, w): matrix and offset, fitted within the region's bounding box."""
    rows, columns = (_span(region[0, 0].any(dim=axis).numpy()) for axis in (1, 0))
    box = (..., slice(*rows), slice(*columns))
    radius = max(2, round(WINDOW * max(region.shape[-2:])))
    coefficients = region.new_zeros(1, AFFINE_CHANNELS, *region.shape[-2:])
    coefficients[box] = torch.cat(fit_local_affine(colour[box], change[box], region[box], radius), dim=1)
    return coefficients


def _shrunk(
    pixels: np.ndarray, weight: np.ndarray, valid: np.ndarray | None, small: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Colours (1, 3, h, w) in [0, 1], foreground (1, 1, h, w) and valid pixels (1, 1, h, w) or None, float32."""
    # Only soft values: the region is all that the mask touches.
    threshold = THRESHOLD if weight.max() > THRESHOLD else 0
    narrow: list[Tensor] = []
    # The width is reduced strip by strip, then the height at once: the full-size floats never exist as a whole.
    for rows in _strips(0, pixels.shape[0], pixels.shape[1]):
        colour = _unit_rgb(pixels[rows])  # (3, rows, W)
        planes = [colour, torch.from_numpy(weight[rows] > threshold).float()[None]]
        if valid is not None:
            seen = torch.from_numpy(valid[rows]).float()[None]
            planes = [colour * seen, planes[1], seen]
        strip = torch.cat(planes)[None]
        narrow.append(_shrink(strip, (strip.shape[2], small[1])))
    planes_small = _shrink(torch.cat(narrow, dim=2), small)
    colour, fore_share = planes_small[:, :3], planes_small[:, 3:4]
    # Colours and regions are means over valid pixels, so transparent ones bleed in nowhere.
    valid_share = planes_small[:, 4:] if valid is not None else torch.ones_like(fore_share)
    region = fore_share > MAJORITY * valid_share
    if not region.any():  # a foreground smaller than a working pixel
        region = fore_share > 0
    usable = None if valid is None or valid.all() else ((valid_share >= 0.5) | region).float()
    return (colour / valid_share.clamp_min(1e-6)).clamp(0, 1), region.float(), usable


def _recolour(pixels: np.ndarray, result: np.ndarray, weight: np.ndarray, coefficients: Tensor) -> None:
    """Write the changed foreground pixels into `result`, strip by strip of the mask's bounding box."""
    peak = _PEAK[pixels.dtype.name]
    precise: Any = np.float64 if pixels.dtype == np.float64 else np.float32
    colours = 3 if pixels.shape[2] >= 3 else 1
    rows, columns = (_span((weight > 0).max(axis=axis)) for axis in (1, 0))
    step = max(1, _STRIP // (columns[1] - columns[0]))
    for top, bottom, part in enlarged_rows(coefficients, weight.shape, rows, columns, step):
        box = np.s_[top:bottom, slice(*columns)]
        before = pixels[box][:, :, :colours]
        change = apply_local_affine(part, _unit_rgb(before)).permute(1, 2, 0).numpy()  # (rows, columns, 3)
        if colours == 1:
            change = (change @ _LUMA)[:, :, None]
        change = change * weight[box][:, :, None]
        after = (before.astype(precise) / precise(peak) + change).clip(0, 1) * precise(peak)
        if pixels.dtype.kind == "u":
            np.rint(after, out=after)
        # -0.0 + 0 is 0.0: what does not change is not written.
        np.copyto(result[box][:, :, :colours], after.astype(pixels.dtype), where=change != 0)


def _unit_rgb(pixels: np.ndarray) -> Tensor:
    """(rows, columns, channels) of any type and number to (3, rows, columns) float32 in [0, 1]."""
    colour = pixels[:, :, :3] if pixels.shape[2] >= 3 else pixels[:, :, :1]
    unit = torch.from_numpy(colour.astype(np.float32)).permute(2, 0, 1) / _PEAK[pixels.dtype.name]
    return unit.expand(3, -1, -1).contiguous()


def _strips(start: int, stop: int, width: int) -> Iterator[slice]:
    """Rows `start` to `stop` in parts of about `_STRIP` pixels."""
    step = max(1, _STRIP // width)
    yield from (slice(top, min(top + step, stop)) for top in range(start, stop, step))


def _span(occupied: np.ndarray) -> tuple[int, int]:
    """The first True, and one past the last."""
    where = np.flatnonzero(occupied)
    return int(where[0]), int(where[-1]) + 1


def _is_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out; PyTorch's for the CPU is a plain RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)


def _run(model: HarmonizationUNet, composite: Tensor, mask: Tensor, valid: Tensor | None, size: int) -> Tensor:
    """The network's output in eval mode, of an affine head its coefficients; the model's own mode is restored."""
    training = model.training
    model.eval()
    try:
        if getattr(model, "head", None) == "affine":
            return model.coefficients(composite, mask, valid, size)
        return model(composite, mask, valid)
    finally:
        model.train(training)


def _shrink(x: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(x.shape[-2:]) == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=True)


def _working_size(model: HarmonizationUNet, wanted: int | None) -> int:
    size = model.working_size if wanted is None else wanted
    if size < 1:
        raise ScscoError(f"working_size is {size}; wanted at least 1 pixel")
    return size


def _check_image(image: np.ndarray, mask_shape: tuple[int, ...]) -> None:
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 2, 3, 4)) or 0 in image.shape:
        raise ScscoError(f"the picture is an array of shape {image.shape}; wanted (H, W) or (H, W, 1 to 4)")
    if image.dtype.name not in _PEAK:
        raise ScscoError(f"the picture is an array of type {image.dtype}; wanted uint8, uint16 or float in [0, 1]")
    if image.dtype.kind == "f":
        _check_range(image, "the picture")
    if image.shape[:2] != mask_shape:
        raise ScscoError(
            f"the mask is {mask_shape[1]}x{mask_shape[0]} (width x height) but its picture is "
            f"{image.shape[1]}x{image.shape[0]}; give a mask of the picture's size"
        )


def _check_range(values: np.ndarray, name: str) -> None:
    if not np.isfinite(values).all():
        raise ScscoError(f"{name} holds NaN or infinite values; replace them")
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        raise ScscoError(
            f"{name} has float values from {low:g} to {high:g}; wanted [0, 1] (divide 8-bit values by 255)"
        )


def _check_regions(weight: np.ndarray, valid: np.ndarray | None) -> bool:
    """Whether there is a foreground; warns where a region is empty."""
    if not weight.any():
        warnings.warn("the mask is empty: the picture is returned unchanged", RegionWarning, stacklevel=4)
        return False
    if ((weight > THRESHOLD) if valid is None else (weight[valid] > THRESHOLD)).all():
        warnings.warn("the mask is full: there is no background to adapt to", RegionWarning, stacklevel=4)
    return True


def _mask_values(mask: np.ndarray | Image.Image) -> np.ndarray:
    """(H, W) float32 in [0, 1]."""
    if isinstance(mask, Image.Image):
        if mask.mode in ("RGB", "P"):
            mask = mask.convert("L")
        if mask.mode not in ("1", "L", "I;16"):
            raise ScscoError(f'the mask is a PIL image of mode {mask.mode}; wanted one channel: mask.convert("L")')
    mask = np.asarray(mask)
    if mask.ndim == 3 and mask.shape[2] == 1:
        mask = mask[:, :, 0]
    if mask.ndim != 2 or mask.size == 0:
        raise ScscoError(f"the mask is an array of shape {mask.shape}; wanted (H, W) or (H, W, 1)")
    if mask.dtype.kind == "f":
        _check_range(mask, "the mask")
        return mask.astype(np.float32, copy=False)
    if mask.dtype.kind == "b" or (mask.dtype.kind in "iu" and mask.min() >= 0 and mask.max() <= 1):
        return mask.astype(np.float32)
    if mask.dtype.name not in ("uint8", "uint16"):
        raise ScscoError(f"the mask is an array of type {mask.dtype}; wanted bool, uint8, uint16 or float in [0, 1]")
    return mask.astype(np.float32) / np.float32(_PEAK[mask.dtype.name])


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
    image = Image.fromarray(result.astype(np.int32) if source.mode == "I" else result)
    image.info = {key: value for key, value in source.info.items() if key != "transparency"}
    if source.mode not in (image.mode, "P", "PA"):
        image.info.pop("icc_profile", None)  # it describes the source's colour space
    return image
