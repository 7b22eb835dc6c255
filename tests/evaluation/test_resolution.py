"""Scoring at full resolution shows what users of `harmonize` see, whoever asks for it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from generated_triplets import write_random_triplets

from scsco_fast import harmonize
from scsco_fast.data.samples import Sample
from scsco_fast.errors import ScscoError
from scsco_fast.evaluation import Row, Triplets, at_full_resolution, default_resolution, evaluate, load_dataset, score
from scsco_fast.nn.unet import HarmonizationUNet
from scsco_fast.synthesis.synthetic import SyntheticComposites


def test_the_model_is_applied_as_harmonize_applies_it(
    small_model: HarmonizationUNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_model, "working_size", 24)  # smaller than the pictures
    write_random_triplets(tmp_path)
    dataset = load_dataset(tmp_path, resolution="full", count=2)
    rows: list[Row] = []
    result = evaluate(at_full_resolution(small_model), dataset, on_row=rows.append)
    assert (result.resolution, result.scored, len(rows)) == ("full", "model", 2)
    for row, sample in zip(rows, (dataset[0], dataset[1]), strict=True):
        assert isinstance(sample, Sample)
        pixels = sample.composite.permute(1, 2, 0).contiguous().numpy()
        output = torch.from_numpy(harmonize(pixels, sample.mask[0].numpy(), small_model)).permute(2, 0, 1)
        assert row.mse == pytest.approx(score(output, sample.real, sample.mask)["mse"], rel=1e-6)
        assert row.mse != row.composite_mse


def test_a_batch_is_a_batch_and_warnings_are_not_given(small_model: HarmonizationUNet) -> None:
    composites, masks = torch.rand(2, 3, 40, 30), torch.ones(2, 1, 40, 30)
    masks[:, :, :2] = 0  # most of the picture is foreground, which `harmonize` warns about
    outputs = at_full_resolution(small_model)(composites, masks)
    assert outputs.shape == composites.shape
    assert torch.equal(outputs[:, :, :2], composites[:, :, :2])
    with pytest.warns(UserWarning, match="foreground"):
        one = harmonize(composites[1].permute(1, 2, 0).contiguous().numpy(), masks[1, 0].numpy(), small_model)
    assert np.array_equal(outputs[1].permute(1, 2, 0).numpy(), one)


def test_default_resolution() -> None:
    trained = HarmonizationUNet(base_channels=4, levels=5)
    trained.working_size = 64
    affine = HarmonizationUNet(base_channels=4, levels=5, head="affine")
    affine.working_size = 64
    assert [default_resolution(model) for model in (None, trained, affine)] == [256, 64, 256]


def test_data_sets_by_name(tmp_path: Path) -> None:
    write_random_triplets(tmp_path)
    made = load_dataset(count=3, resolution=32, seed=5)
    assert isinstance(made, SyntheticComposites)
    assert (len(made), made.size, made.seed, made.augment) == (3, 32, 5, False)
    read = load_dataset(tmp_path, resolution=32, protocol="idih", count=1)
    assert isinstance(read, Triplets)
    assert (len(read), read.size, read.protocol.name) == (1, 32, "idih")
    assert load_dataset(tmp_path, resolution="full").size is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": "full"}, "synthetic composites have no full resolution"),
        ({"resolution": 0}, "resolution is 0; wanted at least 1"),
        ({"count": 0}, "count is 0; wanted at least 1"),
        ({"predictions": "outputs"}, "no file names to match"),
        ({"source": "/nowhere"}, "/nowhere: no such folder"),
    ],
)
def test_what_is_no_data_set_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ScscoError, match=message):
        load_dataset(**options)
