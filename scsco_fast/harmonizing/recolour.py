"""The network at its working size, and what it does to colours carried to the full size.

The network sees the picture at its working size (the size that it was trained at). What is carried to full resolution
is not its output but the *change* that it makes, as a local affine transform of colours (`local_affine`)::

    D, b: network(small) - small = D small + b       around each small pixel
    output = picture + mask * (enlarge(D) picture + enlarge(b))

A network with head="affine" predicts D and b itself; to the change of any other they are fitted. So every detail of
the full-size picture is recoloured and none is lost. Pixels where the mask is 0, and fully transparent ones, keep their
exact values. At the working size the output is the network's own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scsco_fast.errors import ScscoError, is_out_of_memory
from scsco_fast.harmonizing.masks import PEAK, bounds
from scsco_fast.harmonizing.settings import Settings
from scsco_fast.nn.affine import AFFINE_CHANNELS
from scsco_fast.nn.local_affine import WINDOW, apply_local_affine, enlarged_rows, extend, fit_local_affine
from scsco_fast.nn.sizes import MAJORITY, reduced_size, shrink
from scsco_fast.nn.unet import HarmonizationUNet
from scsco_fast.reference import color
from scsco_fast.regions import THRESHOLD

LUMA = np.array(color.LUMA, dtype=np.float32)
_DARK = np.float32(1 / 16)  # colours below this are rather shifted than scaled
_STRIP = 2**18  # pixels: the floats of a strip stay in the cache


def predict(
    pixels: np.ndarray, weight: np.ndarray, valid: np.ndarray | None, model: HarmonizationUNet, settings: Settings
) -> Tensor:
    """What the network does to colours: (1, 12, h, w) coefficients at the working size, or (1, 3, H, W) at full size.

    They are continued smoothly outside of the foreground, where an affine head's mean nothing.

    Args:
        pixels: (H, W, 1 to 4), the composite.
        weight: (H, W) float32 in [0, 1], the foreground; some of it above 0.
        valid: (H, W) bool, the pixels that count, or None for all.

    Raises:
        ScscoError: the network's output is not finite.
    """
    if settings.device is not None:
        model = model.to(settings.device)
    like = next(model.parameters())
    small = _working_shape(weight.shape, model, settings)
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


def recolour(
    pixels: np.ndarray,
    weight: np.ndarray,
    coefficients: Tensor,
    settings: Settings,
    size: tuple[int, int] | None = None,
    corner: tuple[int, int] = (0, 0),
) -> np.ndarray:
    """A copy of `pixels` with its foreground changed, strip by strip of the foreground's bounding box.

    Args:
        pixels: (h, w, 1 to 4) of a type in `PEAK`, a part of the picture.
        weight: (h, w) float32 in [0, 1], some of it above 0.
        coefficients: of `predict`, for the whole picture.
        size: height and width of the whole picture; None is those of `pixels`.
        corner: row and column of the part in the whole picture.
    """
    result = pixels.copy()
    peak = PEAK[pixels.dtype.name]
    precise: Any = np.float64 if pixels.dtype == np.float64 else np.float32
    colours = 3 if pixels.shape[2] >= 3 else 1
    (top, bottom), (left, right) = bounds(weight)
    rows, columns = (top + corner[0], bottom + corner[0]), (left + corner[1], right + corner[1])
    step = max(1, _STRIP // (right - left))
    for start, stop, part in enlarged_rows(coefficients, size or weight.shape, rows, columns, step):
        box = np.s_[start - corner[0] : stop - corner[0], left:right]
        before = pixels[box][:, :, :colours]
        colour = unit_rgb(before)  # (3, rows, columns)
        change = apply_local_affine(part, colour).permute(1, 2, 0).numpy()  # (rows, columns, 3)
        change = _adjusted(change, colour.permute(1, 2, 0).numpy(), settings)
        if colours == 1:
            change = (change @ LUMA)[:, :, None]
        change = change * weight[box][:, :, None]
        after = (before.astype(precise) / precise(peak) + change).clip(0, 1) * precise(peak)
        if pixels.dtype.kind == "u":
            np.rint(after, out=after)
        # -0.0 + 0 is 0.0: what does not change is not written.
        np.copyto(result[box][:, :, :colours], after.astype(pixels.dtype), where=change != 0)
    return result


@contextmanager
def named_memory(shape: tuple[int, ...], model: HarmonizationUNet, settings: Settings) -> Iterator[None]:
    """Where memory runs out, a ScscoError that names the working size of a picture of `shape`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        small = _working_shape(shape, model, settings)
        raise ScscoError(
            f"not enough memory to work at {small[1]}x{small[0]}; give a smaller working size (the model's own is "
            f"{model.working_size})"
        ) from error


def unit_rgb(pixels: np.ndarray) -> Tensor:
    """(rows, columns, channels) of any type and number to (3, rows, columns) float32 in [0, 1]."""
    colour = pixels[:, :, :3] if pixels.shape[2] >= 3 else pixels[:, :, :1]
    unit = torch.from_numpy(colour.astype(np.float32)).permute(2, 0, 1) / PEAK[pixels.dtype.name]
    return unit.expand(3, -1, -1).contiguous()


def _working_shape(shape: tuple[int, ...], model: HarmonizationUNet, settings: Settings) -> tuple[int, int]:
    """Height and width at which the network works on a picture of `shape`."""
    if settings.native:
        return shape[0], shape[1]
    return reduced_size(shape, model.working_size if settings.working_size is None else settings.working_size)


def _adjusted(change: np.ndarray, colour: np.ndarray, settings: Settings) -> np.ndarray:
    """A change of colours (..., 3) in the wanted strength, and without what is to be kept.

    keep="luma" takes the change's own luma out of it. keep="colour" puts the change of luma y' - y into R, G and B in
    proportion to them, (y' - y) (c + e) / (y + e), so that darker stays as saturated; e keeps black from dividing by 0.
    """
    if settings.keep is not None:
        luma = (change @ LUMA)[..., None]
        if settings.keep == "luma":
            change = change - luma
        else:
            change = luma * (colour + _DARK) / ((colour @ LUMA)[..., None] + _DARK)
    return change if settings.strength == 1 else change * np.float32(settings.strength)


def _fit(colour: Tensor, change: Tensor, region: Tensor) -> Tensor:
    """(1, 12, h, w): matrix and offset, fitted within the region's bounding box."""
    rows, columns = bounds(region[0, 0].numpy())
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
        colour = unit_rgb(pixels[rows])  # (3, rows, W)
        planes = [colour, torch.from_numpy(weight[rows] > threshold).float()[None]]
        if valid is not None:
            seen = torch.from_numpy(valid[rows]).float()[None]
            planes = [colour * seen, planes[1], seen]
        strip = torch.cat(planes)[None]
        narrow.append(shrink(strip, (strip.shape[2], small[1])))
    planes_small = shrink(torch.cat(narrow, dim=2), small)
    colour, fore_share = planes_small[:, :3], planes_small[:, 3:4]
    # Colours and regions are means over valid pixels, so transparent ones bleed in nowhere.
    valid_share = planes_small[:, 4:] if valid is not None else torch.ones_like(fore_share)
    region = fore_share > MAJORITY * valid_share
    if not region.any():  # a foreground smaller than a working pixel
        region = fore_share > 0
    usable = None if valid is None or valid.all() else ((valid_share >= 0.5) | region).float()
    return (colour / valid_share.clamp_min(1e-6)).clamp(0, 1), region.float(), usable


def _strips(start: int, stop: int, width: int) -> Iterator[slice]:
    """Rows `start` to `stop` in parts of about `_STRIP` pixels."""
    step = max(1, _STRIP // width)
    yield from (slice(top, min(top + step, stop)) for top in range(start, stop, step))


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
