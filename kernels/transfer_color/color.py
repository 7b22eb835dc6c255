"""Colour spaces inside kernels: sRGB in [0, 1] to CIE Lab (D65) and to full-range YCbCr, and back.

The numbers are those of scsco_fast.reference.color (a test compares them): kernels/ imports nothing of the project.
"""

import torch
import triton
import triton.language as tl

RGB_TO_XYZ = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
RGB_TO_YCBCR = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))
WHITE_X = tl.constexpr(0.95047)
WHITE_Z = tl.constexpr(1.08883)  # of y: 1
EPSILON = tl.constexpr(216 / 24389)
KAPPA = tl.constexpr(24389 / 27)
CHROMA = tl.constexpr(0.5)


def _flat(rows: tuple[tuple[float, ...], ...]) -> tuple[float, ...]:
    return tuple(value for row in rows for value in row)


def _inverse(rows: tuple[tuple[float, ...], ...]) -> tuple[float, ...]:
    return tuple(torch.linalg.inv(torch.tensor(rows, dtype=torch.float64)).flatten().tolist())


_TO_XYZ = tl.constexpr(_flat(RGB_TO_XYZ))
_FROM_XYZ = tl.constexpr(_inverse(RGB_TO_XYZ))
_TO_YCBCR = tl.constexpr(_flat(RGB_TO_YCBCR))
_FROM_YCBCR = tl.constexpr(_inverse(RGB_TO_YCBCR))


@triton.jit
def _mix(a, b, c, MATRIX: tl.constexpr):
    """MATRIX, nine numbers in rows, times the vector (a, b, c)."""
    x = MATRIX[0] * a + MATRIX[1] * b + MATRIX[2] * c
    y = MATRIX[3] * a + MATRIX[4] * b + MATRIX[5] * c
    z = MATRIX[6] * a + MATRIX[7] * b + MATRIX[8] * c
    return x, y, z


@triton.jit
def _power(x, EXPONENT: tl.constexpr):
    """x ** EXPONENT for x > 0, to about 4e-6 of it."""
    return tl.exp2(tl.log2(x) * EXPONENT)


@triton.jit
def _linear(v):
    return tl.where(v <= 0.04045, v / 12.92, _power((tl.maximum(v, 0.0) + 0.055) / 1.055, 2.4))


@triton.jit
def _lab_curve(t):
    return tl.where(t > EPSILON, _power(tl.maximum(t, EPSILON), 1 / 3), (KAPPA * t + 16) / 116)


@triton.jit
def rgb_to_lab(r, g, b):
    x, y, z = _mix(_linear(r), _linear(g), _linear(b), _TO_XYZ)
    x, y, z = _lab_curve(x / WHITE_X), _lab_curve(y), _lab_curve(z / WHITE_Z)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@triton.jit
def _lab_inverse(f):
    cube = f * f * f
    return tl.where(cube > EPSILON, cube, (116 * f - 16) / KAPPA)


@triton.jit
def _gamma(v):
    return tl.where(v <= 0.0031308, v * 12.92, 1.055 * _power(tl.maximum(v, 0.0031308), 1 / 2.4) - 0.055)


@triton.jit
def lab_to_rgb(lightness, a, b):
    y = (lightness + 16) / 116
    x, z = _lab_inverse(y + a / 500) * WHITE_X, _lab_inverse(y - b / 200) * WHITE_Z
    red, green, blue = _mix(x, _lab_inverse(y), z, _FROM_XYZ)
    return _gamma(red), _gamma(green), _gamma(blue)


@triton.jit
def rgb_to_ycbcr(r, g, b):
    y, cb, cr = _mix(r, g, b, _TO_YCBCR)
    return y, cb + CHROMA, cr + CHROMA


@triton.jit
def ycbcr_to_rgb(y, cb, cr):
    return _mix(y, cb - CHROMA, cr - CHROMA, _FROM_YCBCR)
