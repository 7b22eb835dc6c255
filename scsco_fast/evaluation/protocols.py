"""The named protocols: how pictures and masks are brought to the scored resolution, and what is averaged.

A protocol is a handful of choices (`Protocol`); `PROTOCOLS` holds the six. Five describe how other projects score; what
of them is verified and what is our reading is in docs/evaluation.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from scsco_fast.errors import ScscoError
from scsco_fast.regions import THRESHOLD

PEAK = 255.0

_PIL_FILTERS = {"pil-bilinear": Image.Resampling.BILINEAR, "pil-bicubic": Image.Resampling.BICUBIC}
_CV2_BITS = 11  # of OpenCV's fixed-point weights for 8-bit pictures


@dataclass(frozen=True)
class Protocol:
    """The choices that make one project's figures differ from another's.

    Attributes:
        name: what `--protocol` takes.
        resize: filter for composite and real picture, where the scored resolution is not the full one.
            "pil-bilinear" and "pil-bicubic" are antialiased, "cv2-bilinear" is not.
        mask: "threshold": above grey 127, resized by nearest neighbour. "dithered": PIL's mode "1", which dithers grey
            values, resized as PIL resizes mode "1": by nearest neighbour. "soft": grey / 255, resized by cv2-bilinear.
        rounding: of the output: "float": clamped only; "nearest": stored as 8 bits; "truncate": 8 bits, rounded down.
        mse_over: pixels whose squared error is summed: "all", or "foreground": weighted by the mask. Divided by the
            number of all pixels in both cases.
        peak: of the PSNR: "255"; "range of the output", its maximum less its minimum; or "maximum of the real".
        background: "composite": the output's own; "real": the real picture's pixels are put into composite and output.
        resizes_outputs: whether an output file of another size is resized like the composite; otherwise it is refused.
    """

    name: str
    resize: Literal["pil-bilinear", "pil-bicubic", "cv2-bilinear"]
    mask: Literal["threshold", "dithered", "soft"]
    rounding: Literal["float", "nearest", "truncate"]
    mse_over: Literal["all", "foreground"]
    peak: Literal["255", "range of the output", "maximum of the real"]
    background: Literal["composite", "real"] = "composite"
    resizes_outputs: bool = False

    def describe(self) -> str:
        """The choices in one line.

        Examples:
            >>> PROTOCOLS["idih"].describe()
            'cv2-bilinear, soft mask, float, MSE over all pixels, PSNR peak maximum of the real, background composite'
        """
        return (
            f"{self.resize}, {self.mask} mask, {self.rounding}, MSE over {self.mse_over} pixels, "
            f"PSNR peak {self.peak}, background {self.background}"
        )


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("strict", "pil-bilinear", "threshold", "float", "all", "255"),
        Protocol("dovenet", "pil-bicubic", "dithered", "nearest", "all", "range of the output", resizes_outputs=True),
        Protocol("rainnet", "pil-bilinear", "dithered", "truncate", "all", "255", background="real"),
        Protocol("idih", "cv2-bilinear", "soft", "float", "all", "maximum of the real"),
        Protocol("pctnet", "cv2-bilinear", "soft", "float", "foreground", "255"),
        Protocol("harmonizer", "pil-bilinear", "dithered", "float", "all", "range of the output"),
    )
}


def protocol_named(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        ScscoError: there is none.
    """
    if name not in PROTOCOLS:
        raise ScscoError(f"protocol {name!r} is unknown; use one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def scored_picture(rgb: np.ndarray, protocol: Protocol, size: tuple[int, int]) -> np.ndarray:
    """A picture (H, W, 3) uint8 at `size` (height, width), as the protocol resizes it; still uint8.

    Examples:
        >>> scored_picture(np.zeros((8, 6, 3), np.uint8), PROTOCOLS["strict"], (4, 4)).shape
        (4, 4, 3)
    """
    if rgb.shape[:2] == size:
        return rgb
    if protocol.resize == "cv2-bilinear":
        return resize_cv2(rgb, size)
    return np.asarray(Image.fromarray(rgb).resize(size[::-1], _PIL_FILTERS[protocol.resize]))


def scored_mask(grey: np.ndarray, protocol: Protocol, size: tuple[int, int]) -> np.ndarray:
    """A mask (H, W) in [0, 1] at `size` (height, width) as the protocol reads it: float32 weights in [0, 1].

    Examples:
        >>> scored_mask(np.full((8, 8), 0.25, np.float32), PROTOCOLS["pctnet"], (4, 4))[0, 0]
        np.float32(0.25)
    """
    if protocol.mask == "soft":
        return (grey if grey.shape == size else resize_cv2(grey, size)).astype(np.float32)
    if protocol.mask == "threshold":
        binary = Image.fromarray((grey > THRESHOLD).astype(np.uint8))
    else:
        binary = Image.fromarray(np.rint(grey * PEAK).astype(np.uint8)).convert("1")
    if grey.shape != size:
        binary = binary.resize(size[::-1], Image.Resampling.NEAREST)
    return np.asarray(binary).astype(np.float32)


def resize_cv2(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize as OpenCV's `INTER_LINEAR` does: half-pixel centres, two taps per axis, no antialiasing.

    For uint8 the result is OpenCV's bit for bit: weights of 11 bits, the row sums cut by 4 bits and then by 16. Floats
    are computed in float64. OpenCV with Intel's IPP, as in its x86 wheels, differs by its float32 rounding (1.2e-7); an
    OpenCV without it keeps the sampling positions in float32 and differs by up to 4e-5.

    Args:
        image: (H, W) or (H, W, C), uint8 or floating.
        size: (height, width).

    Returns:
        `size` x C, uint8 or float64.

    Examples:
        >>> resize_cv2(np.array([[0, 100]], np.uint8), (1, 4))
        array([[  0,  25,  75, 100]], dtype=uint8)
    """
    if image.dtype != np.uint8:
        return _resize_float(image.astype(np.float64), size)
    if image.shape[:2] == size:
        return image.copy()
    top, bottom, down = _cv2_taps(image.shape[0], size[0], np.float32)
    left, right, across = _cv2_taps(image.shape[1], size[1], np.float32)
    extra = (1,) * (image.ndim - 2)
    x_weights = [_fixed(weight).reshape(-1, *extra) for weight in (np.float32(1) - across, across)]
    y_weights = [_fixed(weight).reshape(-1, 1, *extra) for weight in (np.float32(1) - down, down)]
    total = np.zeros((*size, *image.shape[2:]), np.int32)
    for rows, y_weight in zip((top, bottom), y_weights, strict=True):
        taken = image[rows].astype(np.int32)  # (height, W, C)
        line = taken[:, left] * x_weights[0] + taken[:, right] * x_weights[1]  # at most 255 * 2^11
        total += (y_weight * (line >> 4)) >> 16
    return ((total + 2) >> 2).clip(0, 255).astype(np.uint8)


def _resize_float(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    top, bottom, down = _cv2_taps(image.shape[0], size[0], np.float64)
    left, right, across = _cv2_taps(image.shape[1], size[1], np.float64)
    extra = (1,) * (image.ndim - 2)
    down, across = down.reshape(-1, 1, *extra), across.reshape(-1, *extra)
    upper, lower = (image[rows][:, left] * (1 - across) + image[rows][:, right] * across for rows in (top, bottom))
    return upper * (1 - down) + lower * down


def _cv2_taps(
    length: int, wanted: int, kind: type[np.float32] | type[np.float64]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First and second tap of each output pixel along an axis, and the second one's weight."""
    position = ((np.arange(wanted) + 0.5) * (length / wanted) - 0.5).astype(kind)
    first = np.floor(position)
    weight = position - first
    index = first.astype(np.int64)
    return index.clip(0, length - 1), (index + 1).clip(0, length - 1), weight


def _fixed(weight: np.ndarray) -> np.ndarray:
    return np.rint(weight * np.float32(1 << _CV2_BITS)).astype(np.int32)
