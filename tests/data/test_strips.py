"""Strips hold the pictures that they are given, in order."""

from pathlib import Path

import numpy as np
import pytest

from scsco_fast.data.strips import make_strip, write_strip
from scsco_fast.errors import ScscoError


def flat(value: int, height: int = 20, width: int = 30) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


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
