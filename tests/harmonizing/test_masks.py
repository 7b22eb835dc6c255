"""Masks as arrays: types, the floor under noise, growing, and the doubt about an inverted mask."""

import warnings

import numpy as np
import pytest
from PIL import Image
from stand_ins import Shift, disc, picture

from scsco_fast.harmonizing.masks import CoverageWarning, check_coverage, grown, mask_values
from scsco_fast.harmonizing.pictures import harmonize

LEVELS = np.arange(256, dtype=np.uint8)[None]


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(LEVELS, id="uint8"),
        pytest.param(LEVELS.astype(np.uint16) * 257, id="uint16"),
        pytest.param(LEVELS / 255, id="float64"),
        pytest.param(Image.fromarray(LEVELS), id="PIL"),
    ],
)
def test_values_up_to_3_of_255_are_background(given: np.ndarray | Image.Image) -> None:
    wanted = np.where(LEVELS < 4, 0, LEVELS / 255)
    np.testing.assert_allclose(mask_values(given), wanted, atol=1e-6)


def test_noise_of_a_mask_changes_no_background_pixel() -> None:
    image, inside = picture(90, 120), disc(90, 120)
    noise = np.random.default_rng(1).integers(0, 4, inside.shape, dtype=np.uint8)
    assert noise[~inside].max() == 3
    result = harmonize(image, np.where(inside, 255 - noise, noise), Shift(0.3, 0.3, 0.3))
    assert np.array_equal(result[~inside], image[~inside])
    assert np.abs(result[inside].astype(int) - harmonize(image, inside, Shift(0.3, 0.3, 0.3))[inside]).max() <= 1


def test_pil_palettes_are_labels_as_in_files() -> None:
    inside = disc(30, 40)
    image = Image.frombytes("P", (40, 30), inside.astype(np.uint8).tobytes())
    image.putpalette([0, 0, 0, 128, 0, 0])
    assert np.array_equal(mask_values(image), inside)


@pytest.mark.parametrize("pixels", [1, 2, 7, 60])
def test_growing_is_the_largest_value_of_a_square(pixels: int) -> None:
    rng = np.random.default_rng(pixels)
    mask = np.zeros((25, 31), np.float32)
    mask[8:14, 3:20] = rng.random((6, 17), np.float32)
    padded = np.pad(mask, pixels)
    side = 2 * pixels + 1
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side))
    assert np.array_equal(grown(mask, pixels), windows.max(axis=(2, 3)))
    opposite = np.lib.stride_tricks.sliding_window_view(np.pad(mask, pixels, constant_values=1), (side, side))
    np.testing.assert_allclose(grown(mask, -pixels), opposite.min(axis=(2, 3)), atol=1e-7)


def test_growing_nothing_or_by_nothing() -> None:
    assert not grown(np.zeros((4, 5), np.float32), 3).any()
    mask = disc(9, 9).astype(np.float32)
    assert grown(mask, 0) is mask


def test_a_foreground_at_the_border_does_not_shrink_from_there() -> None:
    mask = np.zeros((6, 6), np.float32)
    mask[:3] = 1
    assert np.array_equal(grown(mask, -1)[:, 0], [1, 1, 0, 0, 0, 0])


def test_grow_mask_changes_pixels_beyond_the_mask_and_a_negative_one_fewer() -> None:
    image = np.full((60, 60, 3), 100, np.uint8)
    mask = np.zeros((60, 60), bool)
    mask[20:40, 20:40] = True
    for pixels, side in ((0, 20), (5, 30), (-5, 10)):
        changed = (harmonize(image, mask, Shift(0.2, 0.2, 0.2), grow_mask=pixels) != image).any(axis=2)
        assert changed.sum() == side**2
        assert changed[30 - side // 2 : 30 + side // 2, 30 - side // 2 : 30 + side // 2].all()


@pytest.mark.parametrize(
    ("share", "frame", "doubtful"),
    [(0.2, 0.0, False), (0.45, 0.3, False), (0.6, 0.0, True), (0.3, 0.9, True), (0.95, 1.0, True)],
)
def test_a_mask_that_is_probably_inverted_is_named_with_its_coverage(
    share: float, frame: float, doubtful: bool
) -> None:
    mask = np.zeros((100, 100), np.float32)
    mask[0, : int(100 * frame)] = mask[-1, : int(100 * frame)] = 1
    mask[: int(100 * frame), 0] = mask[: int(100 * frame), -1] = 1
    inner = mask[1:-1, 1:-1].reshape(-1)
    inner[: max(0, round(share * 10000 - mask.sum()))] = 1
    mask[1:-1, 1:-1] = inner.reshape(98, 98)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_coverage(mask)
    assert [warning.category for warning in caught] == [CoverageWarning] * doubtful
    if doubtful:
        text = str(caught[0].message)
        assert f"the mask covers {100 * mask.mean():.0f} % of the picture" in text
        assert "--invert-mask" in text


def test_harmonize_doubts_an_inverted_mask_and_not_the_right_one() -> None:
    image, inside = picture(60, 80), disc(60, 80)
    with pytest.warns(CoverageWarning, match=r"and 100 % of its frame"):
        harmonize(image, ~inside, Shift(0.1, 0.1, 0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        harmonize(image, inside, Shift(0.1, 0.1, 0.1))
