"""Pictures as the page shows them: reduced, and as data URIs."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

PREVIEW = 1024  # long side in pixels


def resized(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) float32 in [0, 1] at another size, bilinear and antialiased."""
    image = Image.fromarray(mask.astype(np.float32))
    return np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR)).clip(0, 1)


def jpeg_uri(rgb: np.ndarray) -> str:
    """(h, w, 3) uint8 as a data URI, nearly as it is."""
    return _uri(rgb, "jpeg", quality=90)


def png_uri(rgba: np.ndarray) -> str:
    """(h, w, 4) uint8 as a data URI."""
    return _uri(rgba, "png")


def _uri(pixels: np.ndarray, kind: str, **options: Any) -> str:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind.upper(), **options)
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"
