"""Harmonize one picture of any size, as a numpy array or a PIL image.

The network sees the picture at its working size (the size that it was trained at). What is carried back to full
resolution is the *change* that it makes, smoothly enlarged, so that no detail of the foreground is lost:

    output = picture + mask * enlarge(network(small picture) - small picture)

Pixels where the mask is 0, and fully transparent ones, keep their exact values.
"""

import warnings
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from scsco_fast.errors import ScscoError
from scsco_fast.nn.unet import HarmonizationUNet
from scsco_fast.regions import THRESHOLD
from scsco_fast.weights import shared_default_model

PictureT = TypeVar("PictureT", np.ndarray, Image.Image)

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_PEAK = {"uint8": 255.0, "uint16": 65535.0, "float16": 1.0, "float32": 1.0, "float64": 1.0}


def harmonize(
    image: PictureT,
    mask: np.ndarray | Image.Image,
    model: HarmonizationUNet | None = None,
    working_size: int | None = None,
    device: str | torch.device | None = None,
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
        device: where to compute; the model is moved there. None is where the model is (the package's: on the CPU).

    Returns:
        The harmonized picture: an array of the input's shape and type, or a PIL image of its size and mode (palette
        images come back as RGB or RGBA, CMYK and YCbCr as RGB, 1-bit as grey). Input arrays are not changed. An empty
        mask gives the picture back unchanged, and a full one is processed; both with a warning.

    Raises:
        ScscoError: another shape, type or size, values outside of [0, 1], NaN.

    Example:
        >>> model = HarmonizationUNet(base_channels=4, levels=5).eval()
        >>> picture, mask = np.zeros((48, 40, 3), np.uint8), np.zeros((48, 40), bool)
        >>> mask[10:20, 10:20] = True
        >>> harmonize(picture, mask, model).shape
        (48, 40, 3)
    """
    values = _mask_values(mask)
    model = shared_default_model() if model is None else model
    if isinstance(image, Image.Image):
        result = _harmonize_array(_array_of(image), values, model, working_size, device)
        return _image_of(result, image)
    return _harmonize_array(np.asarray(image), values, model, working_size, device)


def _harmonize_array(
    image: np.ndarray,
    mask: np.ndarray,
    model: HarmonizationUNet,
    working_size: int | None,
    device: str | torch.device | None,
) -> np.ndarray:
    _check_image(image, mask.shape)
    peak = _PEAK[image.dtype.name]
    pixels = image.reshape(*image.shape[:2], -1)  # (H, W, channels)
    colours = 3 if pixels.shape[2] >= 3 else 1
    colour = pixels[:, :, :colours]
    has_alpha = pixels.shape[2] in (2, 4)
    valid = pixels[:, :, -1] > 0 if has_alpha else np.ones(mask.shape, dtype=bool)  # (H, W)

    weight = np.where(valid, mask, 0)[:, :, None]  # (H, W, 1)
    if not _check_regions(weight[:, :, 0], valid):
        return image.copy()
    rgb = np.broadcast_to(colour.astype(np.float32) / peak, (*mask.shape, 3))
    change = _predict_change(rgb, weight[:, :, 0], valid, model, working_size, device)  # (H, W, 3)
    if colours == 1:
        change = (change @ _LUMA)[:, :, None]

    changed = (colour / peak + weight * change).clip(0, 1) * peak
    if image.dtype.kind == "u":
        changed = np.rint(changed)
    result = pixels.copy()
    result[:, :, :colours] = np.where(weight > 0, changed.astype(image.dtype), colour)
    return result.reshape(image.shape)


def _predict_change(
    rgb: np.ndarray,
    mask: np.ndarray,
    valid: np.ndarray,
    model: HarmonizationUNet,
    working_size: int | None,
    device: str | torch.device | None,
) -> np.ndarray:
    """(H, W, 3) float32: what the network adds to each foreground pixel, continued smoothly outside of it."""
    if device is not None:
        model = model.to(device)
    like = next(model.parameters())
    full = mask.shape
    small = _small_size(full, _working_size(model, working_size))
    foreground = mask > THRESHOLD
    if not foreground.any():  # only soft values: the region is all that the mask touches
        foreground = mask > 0

    with torch.inference_mode():
        # (1, C, H, W) each; colours and regions are means over valid pixels, so transparent ones bleed in nowhere.
        seen = _tensor(valid, like)
        fore_share = _shrink(_tensor(foreground, like), small)
        valid_share = _shrink(seen, small)
        colour = _shrink(_tensor(rgb, like) * seen, small) / valid_share.clamp_min(1e-6)
        region = fore_share > valid_share / 2
        if not region.any():  # a foreground smaller than a working pixel
            region = fore_share > 0
        region = region.to(like.dtype)
        usable = torch.maximum((valid_share >= 0.5).to(like.dtype), region)
        output = _run(model, colour, region, None if valid.all() else usable)
        change = _extend((output.clamp(0, 1) - colour) * region, region)
        if small != full:
            change = F.interpolate(change, size=full, mode="bilinear", align_corners=False)
        result = change[0].permute(1, 2, 0).float().cpu().numpy()
    if not np.isfinite(result).all():
        raise ScscoError("the network's output holds NaN or infinite values; its weights or the picture are not usable")
    return result


def _run(model: HarmonizationUNet, composite: Tensor, mask: Tensor, valid: Tensor | None) -> Tensor:
    """The network's output in eval mode; the model's own mode is restored."""
    training = model.training
    model.eval()
    try:
        return model(composite, mask, valid)
    finally:
        model.train(training)


def _extend(values: Tensor, known: Tensor) -> Tensor:
    """Continue `values` (1, C, H, W) from where `known` (1, 1, H, W) is 1 to everywhere, by ever coarser means.

    Without it the change would fade out along the border of the mask when it is enlarged, and leave a rim.
    """
    if known.all() or max(known.shape[-2:]) == 1:
        return values
    share = _halve(known)
    coarse = _extend(_halve(values) / share.clamp_min(1e-6), (share > 0).to(known.dtype))
    filled = F.interpolate(coarse, size=values.shape[-2:], mode="bilinear", align_corners=False)
    return torch.where(known > 0, values, filled)


def _halve(x: Tensor) -> Tensor:
    """Mean over 2x2 pixels; an odd last row or column counts as half empty."""
    height, width = x.shape[-2:]
    return F.avg_pool2d(F.pad(x, (0, width % 2, 0, height % 2)), 2)


def _shrink(x: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(x.shape[-2:]) == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=True)


def _small_size(full: tuple[int, ...], long_side: int) -> tuple[int, int]:
    scale = min(1.0, long_side / max(full))
    return max(1, round(full[0] * scale)), max(1, round(full[1] * scale))


def _working_size(model: HarmonizationUNet, wanted: int | None) -> int:
    size = model.working_size if wanted is None else wanted
    if size < 1:
        raise ScscoError(f"working_size is {size}; wanted at least 1 pixel")
    return size


def _tensor(array: np.ndarray, like: Tensor) -> Tensor:
    """(H, W) or (H, W, C) to (1, C, H, W) of the weights' device and type."""
    channels_first = np.atleast_3d(array).transpose(2, 0, 1).astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(channels_first))[None].to(like.device, like.dtype)


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


def _check_regions(weight: np.ndarray, valid: np.ndarray) -> bool:
    """Whether there is a foreground; warns where a region is empty."""
    if not (weight > 0).any():
        warnings.warn("the mask is empty: the picture is returned unchanged", stacklevel=4)
        return False
    if (weight[valid] > THRESHOLD).all():
        warnings.warn("the mask is full: there is no background to adapt to", stacklevel=4)
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
        return mask.astype(np.float32)
    if mask.dtype.kind == "b" or (mask.dtype.kind in "iu" and np.isin(mask, (0, 1)).all()):
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
