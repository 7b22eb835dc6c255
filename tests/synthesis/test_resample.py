"""The resampling of crops against Pillow's."""

import numpy as np
import pytest
from PIL import Image

from scsco_fast.synthesis.resample import Box, _taps, cut


def by_pillow(rgb: np.ndarray, box: Box, size: int) -> np.ndarray:
    resized = Image.fromarray(rgb).resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized).transpose(2, 0, 1).astype(np.float32)


def picture(seed: int, height: int = 211, width: int = 307) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    "box",
    [
        (0.0, 0.0, 307.0, 211.0),
        (40.0, 30.0, 168.0, 158.0),
        (0.0, 3.7, 211.3, 211.0),
        (100.4, 10.9, 306.6, 200.2),
        (250.2, 150.1, 307.0, 180.3),
    ],
    ids=["whole", "pixel for pixel", "at the edges", "smaller", "enlarged"],
)
def test_crops_are_pillows(box: Box, order: str) -> None:
    """Sums of at most 8 products of up to 255 in float32 are off by e = 8 * 255 / 2^24 at most.

    So a share of 2 e of the first pass's values, spread evenly around the halves, are rounded otherwise, as many of the
    second pass's own, and of its values whose inputs were, an equal share on average: 4 e = 0.05 %. Noise has no
    exact halves but where the weights are 1 or 1/2, which float32 adds up exactly.
    """
    values, wrong = 0, 0.0
    for seed in range(6):
        rgb = picture(seed)
        error = np.abs(cut(np.asarray(rgb, order=order), box, 128) - by_pillow(rgb, box, 128))  # type: ignore[call-overload]
        assert error.max() <= 1
        values, wrong = values + error.size, wrong + error.sum()
    assert wrong / values <= 5e-4


def test_a_reduction_to_few_pixels_is_pillows_but_for_roundings() -> None:
    rgb = picture(9, 900, 700)
    error = np.abs(cut(rgb, (3.3, 1.1, 690.4, 888.8), 16) - by_pillow(rgb, (3.3, 1.1, 690.4, 888.8), 16))
    assert error.max() <= 1
    assert error.mean() < 0.01


def test_flat_pictures_stay_as_they_are() -> None:
    for level in (0, 1, 127, 255):
        flat = np.full((50, 70, 3), level, np.uint8)
        assert (cut(flat, (1.3, 2.6, 60.1, 49.9), 33) == level).all()


def test_channels_and_directions_are_kept() -> None:
    rgb = np.zeros((60, 60, 3), np.uint8)
    rgb[:30, :, 0], rgb[:, :30, 1], rgb[30:, 30:, 2] = 255, 255, 255
    red, green, blue = cut(rgb, (0.0, 0.0, 60.0, 60.0), 20)
    assert red[0, 19] == 255
    assert red[19, 0] == 0
    assert green[19, 0] == 255
    assert green[0, 19] == 0
    assert blue[19, 19] == 255
    assert blue[0, 0] == 0


def test_weights_are_pillows_fixed_point_numbers() -> None:
    """Of other ones twice as many values are rounded otherwise."""
    _, _, _, weights = _taps((3.3, 1.1, 290.4, 200.8), (307, 211), 64)
    steps = weights.astype(np.float64) * 2**22
    np.testing.assert_array_equal(steps, np.round(steps))
    assert np.abs(weights.sum(axis=2) - 1).max() <= weights.shape[2] * 2**-23
