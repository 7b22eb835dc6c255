"""What a mask file means: grey, labels of 0 and 1, palettes, transparency; and the one rule for empty and full ones."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scsco_fast.data.check import check_dataset
from scsco_fast.data.masks import binary_mask, one_sided, read_mask
from scsco_fast.errors import ScscoError

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
INSIDE = np.array([[0, 0, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0]], bool)
VOC = [0, 0, 0, 128, 0, 0, 0, 128, 0]  # black, dark red, dark green


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def palette(indices: np.ndarray, colours: list[int]) -> Image.Image:
    image = Image.frombytes("P", indices.shape[::-1], indices.astype(np.uint8).tobytes())
    image.putpalette(colours)
    return image


def test_mask_is_grey_over_255_without_dithering(tmp_path: Path) -> None:
    grey = np.full((16, 16), 120, np.uint8)
    grey[:8] = 128
    for mode in ("L", "RGB"):
        mask = read_mask(save(tmp_path / "a.png", Image.fromarray(grey).convert(mode)))
        assert mask.dtype == np.float32
        np.testing.assert_allclose(mask, grey / 255, atol=1e-6)
        np.testing.assert_array_equal(binary_mask(mask), grey == 128)


def test_binary_mask_is_grey_above_127() -> None:
    grey = np.arange(256, dtype=np.float32)[None] / np.float32(255)
    np.testing.assert_array_equal(binary_mask(grey)[0], np.arange(256) > 127)


def test_one_bit_mask(tmp_path: Path) -> None:
    mask = read_mask(save(tmp_path / "a.png", Image.fromarray(GREY > 100)))
    np.testing.assert_array_equal(mask, (GREY > 100).astype(np.float32))


def test_alpha_of_a_mask_is_ignored_unless_only_it_is_drawn(tmp_path: Path) -> None:
    drawn = Image.fromarray(GREY)
    coloured = drawn.convert("RGBA")
    coloured.putalpha(Image.fromarray(255 - GREY))
    np.testing.assert_allclose(read_mask(save(tmp_path / "a.png", coloured)), GREY / 255, atol=1e-6)
    for mode in ("RGBA", "LA"):
        plain = Image.new(mode, drawn.size)
        plain.putalpha(drawn)
        np.testing.assert_allclose(read_mask(save(tmp_path / "b.png", plain)), GREY / 255, atol=1e-6)
    # A picture of one colour and one transparency is an empty or a full mask by its colour.
    for level in (0, 255):
        flat = Image.new("RGBA", drawn.size, (level, level, level, 200))
        assert np.unique(read_mask(save(tmp_path / "c.png", flat))).tolist() == [level / 255]


def test_a_mask_of_another_size_is_refused_with_both_sizes(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(GREY))
    assert read_mask(path, size=(3, 4)).shape == (3, 4)
    with pytest.raises(ScscoError, match=r"4x3.*3x4") as caught:
        read_mask(path, size=(4, 3))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "webp"])
def test_values_of_0_and_1_are_the_mask(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(INSIDE.astype(np.uint8)), lossless=True)
    np.testing.assert_array_equal(read_mask(path), INSIDE)


def test_sixteen_bits_of_0_and_1_are_the_mask(tmp_path: Path) -> None:
    np.testing.assert_array_equal(
        read_mask(save(tmp_path / "a.png", Image.fromarray(INSIDE.astype(np.uint16)))), INSIDE
    )


def test_floats_are_not_labels(tmp_path: Path) -> None:
    faint = INSIDE.astype(np.float32) / 65535
    np.testing.assert_array_equal(read_mask(save(tmp_path / "a.tif", Image.fromarray(faint))), faint)


@pytest.mark.parametrize("index", [1, 2])
def test_the_index_of_a_coloured_palette_is_the_mask(tmp_path: Path, index: int) -> None:
    path = save(tmp_path / "a.png", palette(INSIDE * index, VOC))
    np.testing.assert_array_equal(read_mask(path), INSIDE)  # as grey it would be 0.15 or 0.29


def test_a_grey_palette_is_grey(tmp_path: Path) -> None:
    colours = [255, 255, 255, 0, 0, 0, 120, 123, 119]
    indices = np.where(INSIDE, 0, 1)
    indices[2, 3] = 2
    mask = read_mask(save(tmp_path / "a.png", palette(indices, colours)))
    np.testing.assert_allclose(mask, np.where(indices == 2, 122 / 255, INSIDE), atol=1e-6)


def test_a_palette_of_0_and_1_is_the_mask(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_mask(save(tmp_path / "a.png", palette(INSIDE, [0, 0, 0, 1, 1, 1]))), INSIDE)


def test_more_labels_than_one_are_refused(tmp_path: Path) -> None:
    indices = INSIDE.astype(np.uint8)
    indices[0, 0] = 2
    path = save(tmp_path / "a.png", palette(indices, VOC))
    with pytest.raises(ScscoError, match=r"a\.png: a palette with 3 labels \(0, 1, 2\); save the one to harmonize"):
        read_mask(path)


def test_a_palette_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", palette(INSIDE, [255, 255, 200, 128, 0, 0]))
    with pytest.raises(ScscoError, match="index 0, the background, is light and whose index 1 is dark"):
        read_mask(path)


def test_one_rule_says_what_is_empty_or_full() -> None:
    assert one_sided(0.0) == "the mask is empty, no pixel is above 127 of 255"
    assert one_sided(1.0) == "the mask is full, no background is left"
    assert one_sided(0.001) is one_sided(0.999) is None


def test_the_check_of_a_dataset_reads_masks_by_the_same_rule(tmp_path: Path) -> None:
    for folder in ("composite", "mask"):
        (tmp_path / folder).mkdir()
    for name, mask in (
        ("labels", Image.fromarray(INSIDE.astype(np.uint8))),
        ("faint", Image.fromarray(INSIDE.astype(np.uint8) * 100)),
        ("voc", palette(INSIDE, VOC)),
    ):
        save(tmp_path / f"composite/{name}.png", Image.new("RGB", (4, 3)))
        save(tmp_path / f"mask/{name}.png", mask)
    report = check_dataset(tmp_path, tmp_path / "journal.jsonl")
    assert [(Path(problem.file).name, problem.reason.split(": ")[1]) for problem in report.problems] == [
        ("faint.png", one_sided(0.0))
    ]
