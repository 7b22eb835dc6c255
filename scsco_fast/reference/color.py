"""Colour spaces: sRGB in [0, 1] to CIE Lab (D65) and to full-range YCbCr, and back. Channels are dimension 1."""

import torch
from torch import Tensor

# IEC 61966-2-1 primaries and the D65 white point, 2 degrees.
_RGB_TO_XYZ = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
_WHITE = (0.95047, 1.0, 1.08883)
_EPSILON, _KAPPA = 216 / 24389, 24389 / 27  # CIE 15:2004
# ITU-T T.871 (JFIF), chroma shifted to [0, 1].
_RGB_TO_YCBCR = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))
_CHROMA_OFFSET = (0.0, 0.5, 0.5)


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """sRGB in [0, 1] to CIE Lab: L in [0, 100], a and b about [-110, 110]."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb.clamp(min=0) + 0.055) / 1.055) ** 2.4)
    xyz = _mix(linear, _RGB_TO_XYZ) / _vector(_WHITE, rgb)
    f = torch.where(xyz > _EPSILON, xyz.clamp(min=_EPSILON) ** (1 / 3), (_KAPPA * xyz + 16) / 116)
    x, y, z = f.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """CIE Lab to sRGB; colours outside the gamut leave [0, 1] below 0 linearly and above 1 by the curve."""
    lightness, a, b = lab.unbind(1)
    y = (lightness + 16) / 116
    f = torch.stack([y + a / 500, y, y - b / 200], dim=1)
    xyz = torch.where(f**3 > _EPSILON, f**3, (116 * f - 16) / _KAPPA) * _vector(_WHITE, lab)
    linear = _mix(xyz, torch.linalg.inv(torch.tensor(_RGB_TO_XYZ, dtype=torch.float64)).tolist())
    return torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055)


def rgb_to_ycbcr(rgb: Tensor) -> Tensor:
    """RGB in [0, 1] to full-range YCbCr in [0, 1], grey at chroma 0.5."""
    return _mix(rgb, _RGB_TO_YCBCR) + _vector(_CHROMA_OFFSET, rgb)


def ycbcr_to_rgb(ycbcr: Tensor) -> Tensor:
    """The inverse of `rgb_to_ycbcr`."""
    inverse = torch.linalg.inv(torch.tensor(_RGB_TO_YCBCR, dtype=torch.float64)).tolist()
    return _mix(ycbcr - _vector(_CHROMA_OFFSET, ycbcr), inverse)


def _vector(values: tuple[float, ...], like: Tensor) -> Tensor:
    shape = [1, 3] + [1] * (like.dim() - 2)
    return torch.tensor(values, dtype=like.dtype, device=like.device).reshape(shape)


def _mix(image: Tensor, rows: object) -> Tensor:
    """Multiply the three channels by a 3x3 matrix."""
    matrix = torch.tensor(rows, dtype=image.dtype, device=image.device)
    return (matrix @ image.flatten(2)).reshape(image.shape)
