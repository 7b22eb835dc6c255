"""MSE, fMSE, PSNR, fPSNR and SSIM of one harmonized picture, under a named protocol.

Public protocols differ in how pictures are resized, masks are read and outputs are rounded, by up to 3 % of the MSE on
the same composites. So a figure is only worth something with its protocol's name.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from scsco_fast.errors import ScscoError
from scsco_fast.evaluation.protocols import PEAK, PROTOCOLS, Protocol, protocol_named
from scsco_fast.regions import THRESHOLD
from scsco_fast.system.extras import require

__all__ = ["METRICS", "PROTOCOLS", "score"]

METRICS = ("mse", "psnr", "fmse", "fpsnr", "ssim")

_SSIM_SIGMA = 1.5
_SSIM_WINDOW = 11
_BLOCK_PIXELS = 1 << 20  # pixels scored at a time: 0.3 GB of temporaries, whatever the picture's size


def score(output: Tensor, real: Tensor, mask: Tensor, protocol: str | Protocol = "strict") -> dict[str, float]:
    """The five metrics of one picture. Datasets are scored by the mean over pictures, never over pooled pixels.

    All on the 0-255 range in float64; the output is clamped, then rounded as the protocol says. With e the squared
    difference of output and real, m the mask (0 or 1; its weight in [0, 1] where the protocol's mask is soft) and P the
    protocol's peak:

    - mse = mean(e) over all pixels and channels, or sum(m e) / (3 H W) where the protocol's `mse_over` is "foreground".
    - psnr = 10 log10(P^2 / mse).
    - fmse = sum(m e) / (3 sum(m)), fpsnr = 10 log10(255^2 / fmse).
    - ssim: Gaussian window of 11 pixels, sigma 1.5, range 255, population covariance, over windows that lie wholly
      inside; NaN where a side is shorter than the window.

    psnr and fpsnr are infinite where their error is 0.

    Args:
        output: (3, H, W), nominally in [0, 1], on any device.
        real: (3, H, W) in [0, 1].
        mask: (1, H, W).
        protocol: one of `PROTOCOLS`, or its name.

    Returns:
        A value for each of `METRICS`.

    Raises:
        ScscoError: shapes that do not agree, an empty mask, NaN or infinite pixels, an unknown protocol.

    Examples:
        >>> import torch
        >>> real, mask = torch.zeros(3, 16, 16), torch.zeros(1, 16, 16)
        >>> mask[:, :8] = 1
        >>> values = score(real + 0.2 * mask, real, mask)
        >>> round(values["mse"], 1), round(values["fmse"], 1), round(values["psnr"], 2)
        (1300.5, 2601.0, 16.99)
    """
    chosen = protocol_named(protocol) if isinstance(protocol, str) else protocol
    if output.shape != real.shape or real.ndim != 3 or real.shape[0] != 3 or mask.shape != (1, *real.shape[1:]):
        raise ScscoError(
            f"shapes do not agree: output {tuple(output.shape)}, real {tuple(real.shape)}, mask {tuple(mask.shape)}; "
            "(3, H, W), (3, H, W) and (1, H, W) are wanted"
        )
    height, width = real.shape[1:]
    overlap = _SSIM_WINDOW - 1
    has_ssim = min(height, width) > overlap
    total = foreground = area = similarity = 0.0
    low, high, brightest = np.inf, -np.inf, -np.inf
    for top, bottom in _row_blocks(height, width):
        end = min(bottom + overlap, height)  # the next rows are only for the windows that begin in this block
        a, b, m = _scaled(output[:, top:end], real[:, top:end], mask[:, top:end], chosen)
        rows = bottom - top
        error = np.square(a[:, :rows] - b[:, :rows])
        total += float(error.sum())
        foreground += float((error * m[:, :rows]).sum())
        area += float(m[:, :rows].sum())
        low, high = min(low, float(a[:, :rows].min())), max(high, float(a[:, :rows].max()))
        brightest = max(brightest, float(b[:, :rows].max()))
        if has_ssim and end - top > overlap:
            similarity += _ssim_sum(a, b)
    if area == 0:
        raise ScscoError("the mask to score with is empty; fMSE is not defined")
    values = 3 * height * width
    mse = (total if chosen.mse_over == "all" else foreground) / values
    fmse = foreground / (3 * area)
    peak = {"255": PEAK, "range of the output": high - low, "maximum of the real": brightest}[chosen.peak]
    windows = 3 * (height - overlap) * (width - overlap)
    return {
        "mse": mse,
        "psnr": _psnr(mse, peak),
        "fmse": fmse,
        "fpsnr": _psnr(fmse, PEAK),
        "ssim": similarity / windows if has_ssim else float("nan"),
    }


def with_background(picture: Tensor, real: Tensor, mask: Tensor, protocol: Protocol) -> Tensor:
    """`picture`, or, where the protocol's background is the real picture's, its foreground pasted on the real picture.

    Shapes (..., 3, H, W), (..., 3, H, W), (..., 1, H, W); the mask is cut at a half.
    """
    return picture if protocol.background == "composite" else real.where(mask <= THRESHOLD, picture)


def _row_blocks(height: int, width: int) -> Iterator[tuple[int, int]]:
    rows = max(_BLOCK_PIXELS // width, _SSIM_WINDOW)
    return ((top, min(top + rows, height)) for top in range(0, height, rows))


def _scaled(
    output: Tensor, real: Tensor, mask: Tensor, protocol: Protocol
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Output and real picture on the 0-255 range, rounded as the protocol says, and the mask's weights; float64."""
    output = with_background(output.to(real.device), real, mask.to(real.device), protocol)
    a, b = (_levels(tensor) for tensor in (output, real))
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ScscoError("a picture to score holds NaN or infinite pixels; check the weights that made it")
    a = np.clip(a, 0, PEAK)
    if protocol.rounding != "float":
        a = np.rint(a) if protocol.rounding == "nearest" else np.floor(a)
    weights = mask.detach().cpu().double().numpy()
    return a, b, weights if protocol.mask == "soft" else (weights > THRESHOLD).astype(np.float64)


def _levels(picture: Tensor) -> np.ndarray:
    """Multiplied by 255 in float32 or float64, in which v / 255 * 255 is v again for every 8-bit v; then float64."""
    picture = picture.detach().cpu()
    return ((picture if picture.dtype.itemsize >= 4 else picture.float()) * PEAK).double().numpy()


def _psnr(mse: float, peak: float) -> float:
    if mse == 0:
        return float("inf")
    return float(10 * np.log10(peak**2 / mse)) if peak > 0 else float("-inf")


def _ssim_sum(output: np.ndarray, real: np.ndarray) -> float:
    """Sum of SSIM over channels and over the windows wholly inside."""
    require("SSIM", "train", "scikit-image")
    from skimage.metrics import structural_similarity

    _, similarity = structural_similarity(
        real,
        output,
        channel_axis=0,
        data_range=PEAK,
        gaussian_weights=True,
        sigma=_SSIM_SIGMA,
        use_sample_covariance=False,
        full=True,
    )
    edge = _SSIM_WINDOW // 2
    return float(similarity[:, edge:-edge, edge:-edge].sum())
