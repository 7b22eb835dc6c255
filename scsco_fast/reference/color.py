"""Colour spaces: sRGB in [0, 1] to CIE Lab (D65) and to full-range YCbCr, and back. Channels are dimension 1.

Matrices are Python numbers: one on a GPU would be copied there by every call, and the host would wait for it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Matrix = tuple[tuple[float, float, float], ...]


def _inverse(rows: Matrix) -> Matrix:
    return tuple((a, b, c) for a, b, c in torch.linalg.inv(torch.tensor(rows, dtype=torch.float64)).tolist())


# IEC 61966-2-1 primaries and the D65 white point, 2 degrees.
RGB_TO_XYZ = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
XYZ_TO_RGB = _inverse(RGB_TO_XYZ)
WHITE = (0.95047, 1.0, 1.08883)
EPSILON, KAPPA = 216 / 24389, 24389 / 27  # CIE 15:2004
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
# ITU-T T.871 (JFIF), chroma shifted to [0, 1].
RGB_TO_YCBCR = (LUMA, (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))
YCBCR_TO_RGB = _inverse(RGB_TO_YCBCR)
GREY = 0.5  # chroma of grey


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """sRGB in [0, 1] to CIE Lab: L in [0, 100], a and b about [-110, 110]."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb.clamp(min=0) + 0.055) / 1.055) ** 2.4)
    xyz = [_curve(value / white) for value, white in zip(_mix(linear.unbind(1), RGB_TO_XYZ), WHITE, strict=True)]
    x, y, z = xyz
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def _curve(share: Tensor) -> Tensor:
    return torch.where(share > EPSILON, share.clamp(min=EPSILON) ** (1 / 3), (KAPPA * share + 16) / 116)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """CIE Lab to sRGB; colours outside the gamut leave [0, 1] below 0 linearly and above 1 by the curve."""
    lightness, a, b = lab.unbind(1)
    y = (lightness + 16) / 116
    roots = (y + a / 500, y, y - b / 200)
    xyz = [
        torch.where(f**3 > EPSILON, f**3, (116 * f - 16) / KAPPA) * white for f, white in zip(roots, WHITE, strict=True)
    ]
    linear = torch.stack(_mix(xyz, XYZ_TO_RGB), dim=1)
    return torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055)


def rgb_to_ycbcr(rgb: Tensor) -> Tensor:
    """RGB in [0, 1] to full-range YCbCr in [0, 1], grey at chroma 0.5."""
    y, cb, cr = _mix(rgb.unbind(1), RGB_TO_YCBCR)
    return torch.stack([y, cb + GREY, cr + GREY], dim=1)


def ycbcr_to_rgb(ycbcr: Tensor) -> Tensor:
    """The inverse of `rgb_to_ycbcr`."""
    y, cb, cr = ycbcr.unbind(1)
    return torch.stack(_mix((y, cb - GREY, cr - GREY), YCBCR_TO_RGB), dim=1)


def _mix(channels: Sequence[Tensor], rows: Matrix) -> list[Tensor]:
    """A 3x3 matrix times three channels."""
    first, second, third = channels
    return [torch.add(torch.add(a * first, second, alpha=b), third, alpha=c) for a, b, c in rows]
