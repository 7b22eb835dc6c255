"""Examples are the first usable samples of a data set, with the model's output for each."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from scsco_fast.data.samples import BadSample, Sample
from scsco_fast.evaluation.examples import sample_labels, sample_rows, write_examples, write_samples
from scsco_fast.nn.unet import HarmonizationUNet


def sample(value: float) -> Sample:
    picture, mask = torch.full((3, 32, 32), value), torch.zeros(1, 32, 32)
    mask[:, 8:16, 8:16] = 1
    return Sample((picture + 0.1 * mask).clamp(0, 1), picture, mask, "name", "subset")


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


def test_examples_are_a_strip_and_a_folder(small_model: HarmonizationUNet, tmp_path: Path) -> None:
    dataset = [BadSample("x", "broken"), sample(0.2), sample(0.5), sample(0.8)]
    write_examples(small_model, dataset, strip=tmp_path / "strip.png", folder=tmp_path / "examples", count=2)
    kinds = ("composite", "mask", "output", "real")
    names = {path.name for path in (tmp_path / "examples").glob("*.png")}
    assert names == {f"{index:02d}_{kind}.png" for index in range(2) for kind in kinds}
    columns, rows = Image.open(tmp_path / "strip.png").size
    assert columns >= 4 * 32
    assert 2 * 32 <= rows < 3 * 32 + 18
    write_examples(None, dataset, count=1)  # nothing was asked for
    assert len(list(tmp_path.iterdir())) == 2
