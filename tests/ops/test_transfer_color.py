"""transfer_color: batched against one image at a time, and what each method promises."""

import pytest
import torch
from oracle import make_mask

import scsco_fast as sf
from scsco_fast.ops._transfer_color import TRANSFERS
from scsco_fast.reference import color


def pictures(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Two sources of different contrast, one of them almost flat, and two references."""
    generator = torch.Generator().manual_seed(0)
    source = torch.rand(2, 3, 24, 20, generator=generator, dtype=torch.float64) * 0.5 + 0.2
    source[1] = 0.4 + 0.01 * source[1]
    reference = torch.rand(2, 3, 16, 30, generator=generator, dtype=torch.float64) ** 2 * 0.6 + 0.1
    return source.to(dtype), reference.to(dtype)


@pytest.mark.parametrize("method", TRANSFERS)
@pytest.mark.parametrize("mask", ["random", "one pixel", "empty", "full", "block"])
def test_eager_equals_reference(method: str, mask: str) -> None:
    source, reference = pictures()
    inside, there = make_mask(mask, 2, 24, 20), make_mask("random", 2, 16, 30)
    results = [
        sf.ops.transfer_color(source, reference, method, inside, reference_mask=there, backend=backend)
        for backend in ("eager", "reference")
    ]
    torch.testing.assert_close(*results, rtol=0, atol=1e-9)
    assert torch.equal(results[0][(inside < 0.5).expand_as(source)], source[(inside < 0.5).expand_as(source)])


@pytest.mark.parametrize("method", TRANSFERS)
def test_single_precision_stays_near(method: str) -> None:
    source, reference = pictures()
    wide = sf.ops.transfer_color(source, reference, method)
    narrow = sf.ops.transfer_color(source.float(), reference.float(), method)
    # A value on a bin's edge may fall into the next bin: 1 / 256 of the range.
    torch.testing.assert_close(narrow.double(), wide, rtol=0, atol=1 / 256 if method == "histogram" else 2e-4)


def test_gaussian_takes_the_covariance() -> None:
    source, reference = pictures()
    result = sf.ops.transfer_color(source[:1], reference[:1], "gaussian").flatten(2)[0]
    wanted = reference[:1].flatten(2)[0]
    torch.testing.assert_close(result.mean(1), wanted.mean(1), rtol=0, atol=5e-3)
    torch.testing.assert_close(torch.cov(result), torch.cov(wanted), rtol=0, atol=3e-3)


def test_reinhard_takes_the_lab_moments() -> None:
    source, reference = pictures()
    result = color.rgb_to_lab(sf.ops.transfer_color(source[:1], reference[:1], "reinhard")).flatten(2)
    wanted = color.rgb_to_lab(reference[:1]).flatten(2)
    torch.testing.assert_close(result.mean(2), wanted.mean(2), rtol=0, atol=2.0)
    torch.testing.assert_close(result.std(2), wanted.std(2), rtol=0.15, atol=0)


def test_histogram_takes_the_quantiles() -> None:
    source, reference = pictures()
    levels = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    result = color.rgb_to_ycbcr(sf.ops.transfer_color(source[:1], reference[:1], "histogram")).flatten(2)[0, 0]
    wanted = color.rgb_to_ycbcr(reference[:1]).flatten(2)[0, 0]
    torch.testing.assert_close(result.quantile(levels), wanted.quantile(levels), rtol=0, atol=0.02)


def test_nan_outside_the_masks_is_not_read() -> None:
    source, reference = pictures()
    inside, there = make_mask("block", 2, 24, 20), make_mask("block", 2, 16, 30)
    source = torch.where(inside > 0.5, source, torch.nan)
    reference = torch.where(there > 0.5, reference, torch.nan)
    for method in TRANSFERS:
        for backend in ("eager", "reference"):
            result = sf.ops.transfer_color(source, reference, method, inside, reference_mask=there, backend=backend)
            assert torch.isfinite(result[(inside > 0.5).expand_as(result)]).all()


def test_lab_against_published_values() -> None:
    """sRGB primaries and grey in CIE Lab (D65), to the digits that tables print."""
    rgb = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [0.5, 0.5, 0.5], [1, 1, 1]], dtype=torch.float64)
    lab = torch.tensor(
        [[53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [32.30, 79.19, -107.86], [53.39, 0, 0], [100, 0, 0]],
        dtype=torch.float64,
    )
    image = rgb.T.reshape(1, 3, 1, 5)
    torch.testing.assert_close(color.rgb_to_lab(image), lab.T.reshape(1, 3, 1, 5), rtol=0, atol=0.02)
    torch.testing.assert_close(color.lab_to_rgb(color.rgb_to_lab(image)), image, rtol=0, atol=1e-6)
    torch.testing.assert_close(color.ycbcr_to_rgb(color.rgb_to_ycbcr(image)), image, rtol=0, atol=1e-12)


def test_bad_arguments_are_named() -> None:
    source, reference = pictures()
    with pytest.raises(ValueError, match="method must be one of reinhard, gaussian, histogram, got 'lab'"):
        sf.ops.transfer_color(source, reference, "lab")
    with pytest.raises(ValueError, match="channels of source"):
        sf.ops.transfer_color(source[:, :2], reference, "gaussian")
    with pytest.raises(ValueError, match="batch of reference"):
        sf.ops.transfer_color(source, reference[:1], "gaussian")
