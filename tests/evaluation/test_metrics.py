"""The strict protocol against an independent computation from its definition."""

import math

import numpy as np
import pytest
import torch

from scsco_fast.errors import ScscoError
from scsco_fast.evaluation.metrics import METRICS, PROTOCOLS, score


def picture(seed: int, height: int = 24, width: int = 20) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((3, height, width), dtype=np.float32))


def half_mask(height: int = 24, width: int = 20) -> torch.Tensor:
    mask = torch.zeros(1, height, width)
    mask[:, 4:15, 3:12] = 1
    return mask


def gaussian_ssim(output: np.ndarray, real: np.ndarray) -> float:
    """Wang et al. 2004 by explicit loops over 11x11 windows that lie wholly inside, on the 0-255 range."""
    offsets = np.arange(11) - 5
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(line, line) / np.outer(line, line).sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for one, other in zip(output, real, strict=True):
        for y in range(one.shape[0] - 10):
            for x in range(one.shape[1] - 10):
                a, b = one[y : y + 11, x : x + 11], other[y : y + 11, x : x + 11]
                mean_a, mean_b = (window * a).sum(), (window * b).sum()
                var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
                cov = (window * (a - mean_a) * (b - mean_b)).sum()
                luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
                values.append(luminance * (2 * cov + c2) / (var_a + var_b + c2))
    return float(np.mean(values))


@pytest.mark.parametrize("contrast", [1.4, 0.05])  # partly outside [0, 1], so clamped; and near SSIM's constants
def test_strict_agrees_with_its_definition(contrast: float) -> None:
    output, real, mask = 0.5 + contrast * (picture(0) - 0.5), 0.5 + min(contrast, 1) * (picture(1) - 0.5), half_mask()
    values = score(output, real, mask)
    assert tuple(values) == METRICS
    a, b = (np.clip(tensor.numpy(), 0, 1).astype(np.float32) * np.float32(255) for tensor in (output, real))
    a, b = a.astype(np.float64), b.astype(np.float64)
    squared = (a - b) ** 2
    inside = np.broadcast_to(mask.numpy() == 1, a.shape)
    mse, fmse = squared.sum() / a.size, squared[inside].sum() / (3 * mask.sum().item())
    assert values["mse"] == pytest.approx(mse, rel=1e-12)
    assert values["fmse"] == pytest.approx(fmse, rel=1e-12)
    assert values["psnr"] == pytest.approx(20 * math.log10(255) - 10 * math.log10(mse), rel=1e-12)
    assert values["fpsnr"] == pytest.approx(20 * math.log10(255) - 10 * math.log10(fmse), rel=1e-12)
    assert values["ssim"] == pytest.approx(gaussian_ssim(a, b), rel=1e-9)


def test_known_values() -> None:
    mask = half_mask()
    real = torch.full((3, 24, 20), 0.5)
    values = score(real + 10 / 255 * mask, real, mask)
    share = float(mask.mean())
    assert values["fmse"] == pytest.approx(100, rel=1e-5)
    assert values["mse"] == pytest.approx(100 * share, rel=1e-5)
    assert values["fpsnr"] == pytest.approx(28.1308, abs=1e-3)


def test_output_is_not_rounded() -> None:
    real, mask = torch.full((3, 24, 20), 0.5), half_mask()
    assert 0 < score(real + 0.1 / 255, real, mask)["mse"] < 0.011


@pytest.mark.parametrize("pixels", [1, 300, 24 * 7])
def test_a_picture_is_scored_in_bands_without_a_seam(pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    output, real, mask = picture(0, 40), picture(1, 40), half_mask(40)
    whole = {protocol: score(output, real, mask, protocol) for protocol in PROTOCOLS}
    monkeypatch.setattr("scsco_fast.evaluation.metrics._BLOCK_PIXELS", pixels)
    for protocol, values in whole.items():
        assert score(output, real, mask, protocol) == pytest.approx(values, rel=1e-12)


def test_a_full_mask_scores_all_pixels() -> None:
    for protocol in PROTOCOLS:
        values = score(picture(0), picture(1), torch.ones(1, 24, 20), protocol)
        assert values["mse"] == pytest.approx(values["fmse"], rel=1e-12)


def test_no_error_is_infinite_psnr() -> None:
    real = picture(0)
    values = score(real, real, half_mask())
    assert values["mse"] == values["fmse"] == 0
    assert values["psnr"] == values["fpsnr"] == math.inf
    assert values["ssim"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("height", "width", "defined"), [(11, 11, True), (10, 40, False), (40, 10, False)])
def test_ssim_needs_its_window(height: int, width: int, defined: bool) -> None:
    mask = torch.zeros(1, height, width)
    mask[:, :5] = 1
    values = score(picture(0, height, width), picture(1, height, width), mask)
    assert math.isnan(values["ssim"]) is not defined
    assert values["mse"] > 0


def test_input_is_left_as_it_was() -> None:
    output, real, mask = picture(0) * 2, picture(1), half_mask()
    copies = output.clone(), real.clone(), mask.clone()
    score(output, real, mask)
    for now, before in zip((output, real, mask), copies, strict=True):
        assert torch.equal(now, before)


def test_what_cannot_be_scored_is_refused() -> None:
    real, mask = picture(0), half_mask()
    with pytest.raises(ScscoError, match="protocol 'lenient' is unknown; use one of strict"):
        score(real, real, mask, "lenient")
    with pytest.raises(ScscoError, match="shapes do not agree"):
        score(real[:, :-1], real, mask)
    with pytest.raises(ScscoError, match="shapes do not agree"):
        score(real[:1], real[:1], mask)
    with pytest.raises(ScscoError, match="shapes do not agree"):
        score(real, real, mask[0])
    with pytest.raises(ScscoError, match="empty"):
        score(real, real, torch.zeros_like(mask))
    broken = real.clone()
    broken[0, 0, 0] = float("nan")
    with pytest.raises(ScscoError, match="NaN"):
        score(broken, real, mask)
