"""Strips hold the pictures that they are given, in order."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scsco_fast.data.samples import BadSample, Sample
from scsco_fast.errors import ScscoError
from scsco_fast.evaluation.strips import make_strip, sample_labels, sample_rows, write_samples, write_strip
from scsco_fast.nn.unet import HarmonizationUNet


def flat(value: int, height: int = 20, width: int = 30) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def sample(value: float) -> Sample:
    picture, mask = torch.full((3, 32, 32), value), torch.zeros(1, 32, 32)
    mask[:, 8:16, 8:16] = 1
    return Sample((picture + 0.1 * mask).clamp(0, 1), picture, mask, "name", "subset")


def test_pictures_lie_side_by_side_and_rows_below_each_other() -> None:
    strip = np.asarray(make_strip([[flat(10), flat(20)], [flat(30), flat(40)]], ["a", "b"]))
    row, column = strip[:, 15, 0], strip[30, :, 0]
    assert [value for value in (10, 30) if (row == value).sum() == 20] == [10, 30]
    assert [value for value in (10, 20) if (column == value).sum() == 30] == [10, 20]
    assert (strip[:15] < 128).any()  # the labels


def test_high_pictures_are_reduced() -> None:
    assert make_strip([[flat(9, 2000, 1000)]], ["a"]).height < 300


@pytest.mark.parametrize("rows", [[], [[flat(1)]]])
def test_rows_must_fit_the_labels(rows: list) -> None:
    with pytest.raises(ScscoError, match="rows of 2 pictures"):
        make_strip(rows, ["a", "b"])


def test_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(ScscoError, match=r"strip\.xyz: .*name a \.png"):
        write_strip([[flat(1)]], ["a"], tmp_path / "strip.xyz")
    assert not list(tmp_path.iterdir())


def test_samples_skip_the_bad_ones(small_model: HarmonizationUNet, tmp_path: Path) -> None:
    dataset = [BadSample("x", "broken"), sample(0.2), sample(0.5), sample(0.8)]
    rows = sample_rows(small_model, dataset, 2)
    labels = sample_labels(small_model)
    assert labels == ["mask", "before", "after", "real"]
    assert [row[3][0, 0, 0] for row in rows] == [51, 128]
    mask, before, after, real = rows[0]
    inside = mask[:, :, 0] == 255
    assert np.array_equal(after[~inside], before[~inside])
    assert (after[inside] != before[inside]).any()
    assert (before[inside] != real[inside]).all()

    write_samples(rows, labels, tmp_path)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "01_composite.png")), rows[1][1])
    assert np.array_equal(np.asarray(Image.open(tmp_path / "00_output.png")), after)
    assert sample_labels(None) == ["mask", "before", "real"]
    assert len(sample_rows(None, dataset, 1)[0]) == 3
