"""The transfers of a foreground's pixels against the operation's reference backend in float64."""

import numpy as np
import pytest
import torch

from scsco_fast.ops._transfer_color import TRANSFERS, transfer_color
from scsco_fast.reference.transfer_color import BINS
from scsco_fast.synthesis import pixel_transfer
from scsco_fast.synthesis.pixel_transfer import transfer_pixels


def colours(count: int, seed: int) -> np.ndarray:
    """(3, count) float32 in [0, 1], of another gamma and range in each channel."""
    rng = np.random.default_rng(seed)
    powers, scales = np.exp(rng.normal(0, 0.5, (3, 1))), rng.uniform(0.3, 1, (3, 1))
    return (scales * rng.random((3, count)) ** powers).astype(np.float32)


def by_the_operation(pixels: np.ndarray, examples: np.ndarray, method: str) -> np.ndarray:
    source, reference = (torch.from_numpy(rows).double()[None, :, None] for rows in (pixels, examples))
    return transfer_color(source, reference, method, backend="reference")[0, :, 0].numpy()


@pytest.mark.parametrize("count", [1, 7, 2300])
@pytest.mark.parametrize("method", TRANSFERS)
def test_transfers_are_the_operations(method: str, count: int) -> None:
    """Roundings of Lab and RGB are amplified by the deviations' ratio, which is below 10: 1e-5 is 8 of them, amplified.

    A histogram's inverse is steep where the wanted distribution is flat: there a rounding moves a value by up to a bin
    of Y, Cb and Cr, so that is what a few of them may differ by; 1.772 is the matrix's largest coefficient.
    """
    for seed in range(10):
        pixels, examples = colours(count, seed), colours(4096, 100 + seed)
        moved, exact = transfer_pixels(pixels, examples, method), by_the_operation(pixels, examples, method)
        assert moved.dtype == np.float32
        assert moved.shape == pixels.shape
        assert 0 <= moved.min() <= moved.max() <= 1
        error = np.abs(moved - exact)
        if method == "histogram":
            assert error.max() <= (1 + 1.772) / BINS
            assert np.quantile(error, 0.99) <= 1e-4
        else:
            assert error.max() <= 1e-5


@pytest.mark.parametrize("method", TRANSFERS)
def test_flat_pixels_and_flat_examples_are_the_operations_too(method: str) -> None:
    # No channel of these lies on the edge of a histogram's bin, where a rounding sends all pixels to one end of it.
    one, other = (np.repeat(np.float32(colour)[:, None], 40, axis=1) for colour in ((0.3, 0.55, 0.7), (0.9, 0.62, 0.2)))
    for pixels, examples in ((one, colours(50, 0)), (colours(50, 0), one), (one, one), (one, other)):
        moved = transfer_pixels(pixels, examples, method)
        np.testing.assert_allclose(moved, by_the_operation(pixels, examples, method), atol=2e-5)


def test_places_in_a_distribution_are_those_of_a_search() -> None:
    rng = np.random.default_rng(0)
    for share in (0.0, 0.5, 0.98):  # of the bins without a pixel
        counts = rng.integers(1, 50, BINS) * (rng.random(BINS) >= share)
        edges = (np.concatenate([[0], counts.cumsum()]) / counts.sum()).astype(np.float32)
        shares = np.concatenate([rng.random(5000).astype(np.float32), edges, [np.float32(0), np.float32(1)]])
        np.testing.assert_array_equal(pixel_transfer._first_not_below(edges, shares), np.searchsorted(edges, shares))


def test_mixing_is_a_matrix_product() -> None:
    rng = np.random.default_rng(0)
    matrix, pixels = rng.normal(size=(3, 3)), rng.random((3, 100), np.float32)
    # Three products and two sums in float32, of at most 3 * 3.
    np.testing.assert_allclose(pixel_transfer.mix(matrix, pixels), matrix @ pixels, atol=6 * 9 * 2**-24)
