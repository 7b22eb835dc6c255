"""Triplets from files, and the outputs of other methods beside them."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from generated_triplets import paths_of, write_random_triplets, write_triplet
from PIL import Image

from scsco_fast import cli
from scsco_fast.data.iharmony4 import IHarmony4
from scsco_fast.data.samples import BadSample, Sample
from scsco_fast.errors import ScscoError
from scsco_fast.evaluation import Row, evaluate
from scsco_fast.evaluation.metrics import score
from scsco_fast.evaluation.protocols import PROTOCOLS
from scsco_fast.evaluation.triplets import Triplet, Triplets


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_random_triplets(tmp_path / "data")
    return tmp_path / "data"


def triplets_of(
    root: Path, protocol: str = "strict", side: int | None = 32, predictions: Path | None = None
) -> Triplets:
    return Triplets(IHarmony4(root, "test").members, PROTOCOLS[protocol], side, predictions)


def good(triplets: Triplets, index: int) -> Triplet:
    sample = triplets[index]
    assert isinstance(sample, Triplet), sample
    return sample


def reason(triplets: Triplets, index: int = 0) -> str:
    sample = triplets[index]
    assert isinstance(sample, BadSample)
    return sample.reason


def save_outputs(root: Path, folder: Path, suffix: str = ".png", side: int | None = None) -> None:
    """Each composite with half its contrast, as a method's output."""
    folder.mkdir(parents=True)
    for member in IHarmony4(root, "test").members:
        pixels = np.asarray(Image.open(member.composite).convert("RGB"))
        output = Image.fromarray((pixels // 2 + 60).astype(np.uint8))
        (output if side is None else output.resize((side, side))).save(folder / f"{member.composite.stem}{suffix}")


@pytest.mark.parametrize("side", [32, None])
def test_strict_is_what_training_reads(root: Path, side: int | None) -> None:
    triplets, samples = triplets_of(root, side=side), IHarmony4(root, "test", size=side)
    assert len(triplets) == len(samples) == 4
    for index in range(4):
        one, other = good(triplets, index), samples[index]
        assert isinstance(other, Sample)
        assert (one.name, one.subset) == (other.name, other.subset)
        for kind in ("composite", "real", "mask"):
            assert torch.equal(getattr(one, kind), getattr(other, kind))


def test_size_and_foreground_are_the_files_whatever_is_scored(root: Path) -> None:
    for protocol in PROTOCOLS:
        for side in (16, None):
            sample = good(triplets_of(root, protocol, side), 0)
            assert (sample.width, sample.height) == (61, 45)
            grey = np.asarray(Image.open(paths_of(root, sample.name)[1]))
            assert sample.foreground_ratio == pytest.approx((grey > 127).mean())


def test_a_full_mask_is_scored_and_an_empty_one_is_named(tmp_path: Path) -> None:
    picture = np.full((20, 20, 3), 90, np.uint8)
    write_triplet(tmp_path, "c1_1_1.png", picture, np.full((20, 20), 255, np.uint8), picture)
    write_triplet(tmp_path, "c2_1_1.png", picture, np.zeros((20, 20), np.uint8), picture)
    for protocol in PROTOCOLS:
        triplets = triplets_of(tmp_path, protocol, None)
        rows: list[Row] = []
        evaluation = evaluate(None, triplets, protocol=protocol, on_row=rows.append)
        assert (rows[0].mse, rows[0].fmse, rows[0].psnr, rows[0].foreground_ratio) == (0, 0, np.inf, 1)
        assert (evaluation.pictures, evaluation.bad_count) == (1, 1)
        assert "c2_1.png: the mask is empty at 20x20" in reason(triplets, 1)


def test_sizes_that_do_not_agree_are_named(tmp_path: Path) -> None:
    picture, mask = np.full((20, 24, 3), 90, np.uint8), np.full((20, 24), 255, np.uint8)
    write_triplet(tmp_path, "c1_1_1.png", picture, mask[:10], picture)
    write_triplet(tmp_path, "c2_1_1.png", picture, mask, picture[:, :10])
    triplets = triplets_of(tmp_path)
    assert "24x10" in reason(triplets, 0)
    assert "24x20" in reason(triplets, 0)
    assert "10x20" in reason(triplets, 1)
    assert "24x20" in reason(triplets, 1)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".jpg"])
def test_predictions_are_scored_in_place_of_a_model(root: Path, tmp_path: Path, suffix: str) -> None:
    save_outputs(root, tmp_path / "theirs", suffix)
    triplets = triplets_of(root, "idih", None, tmp_path / "theirs")
    rows: list[Row] = []
    evaluation = evaluate(None, triplets, protocol="idih", on_row=rows.append)
    assert evaluation.scored == "predictions"
    assert "MSE" in evaluation.improvement()
    for index, row in enumerate(rows):
        sample = good(triplets, index)
        stored = np.asarray(Image.open(tmp_path / "theirs" / f"{Path(row.name).stem}{suffix}").convert("RGB"))
        output = torch.from_numpy(stored.astype(np.float64) / 255).permute(2, 0, 1)
        assert row.mse == pytest.approx(score(output, sample.real, sample.mask, "idih")["mse"], rel=1e-9)
        assert row.composite_mse == score(sample.composite, sample.real, sample.mask, "idih")["mse"]
    with pytest.raises(ScscoError, match="one of them is wanted"):
        evaluate(lambda composite, mask: composite, triplets, protocol="idih")


def test_predictions_may_lie_in_subfolders(root: Path, tmp_path: Path) -> None:
    save_outputs(root, tmp_path / "theirs" / "deep" / "down")
    assert good(triplets_of(root, "strict", None, tmp_path / "theirs"), 0).prediction is not None


def test_missing_predictions_are_counted_and_named(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_outputs(root, tmp_path / "theirs")
    (tmp_path / "theirs" / "c2_17_1.png").unlink()
    arguments = ["evaluate", "--dataset", str(root), "--predictions", str(tmp_path / "theirs")]
    arguments += ["--resolution", "full", "--json", str(tmp_path / "all.json"), "--csv", str(tmp_path / "rows.csv")]
    assert cli.main(arguments) == 1
    written = capsys.readouterr()
    assert "1 without prediction" in written.out
    assert "failed: 1 composites without prediction: c2_17_1.png\n" in written.err
    content = json.loads((tmp_path / "all.json").read_text())
    assert (content["pictures"], content["without_prediction"]) == (3, ["c2_17_1.png"])
    with (tmp_path / "rows.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 3


def test_predictions_that_belong_to_nothing_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ScscoError, match="no such folder"):
        triplets_of(root, predictions=tmp_path / "nowhere")
    (tmp_path / "theirs").mkdir()
    with pytest.raises(ScscoError, match=r"prediction for none of the 4 composites; wanted \w+ with any of \.jpg"):
        triplets_of(root, predictions=tmp_path / "theirs")


def test_two_predictions_for_one_composite_are_refused(root: Path, tmp_path: Path) -> None:
    save_outputs(root, tmp_path / "theirs")
    save_outputs(root, tmp_path / "theirs" / "again", ".jpg")
    assert "has 2 predictions, one is wanted" in reason(triplets_of(root, "strict", None, tmp_path / "theirs"))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_outputs_of_another_size_are_refused_unless_the_protocol_resizes_them(
    root: Path, tmp_path: Path, protocol: str
) -> None:
    save_outputs(root, tmp_path / "theirs", side=40)
    triplets = triplets_of(root, protocol, 32, tmp_path / "theirs")
    if protocol == "dovenet":
        stored = Image.open(tmp_path / "theirs" / "a0001_1_1.png").resize((32, 32), Image.Resampling.BICUBIC)
        prediction = good(triplets, 0).prediction
        assert prediction is not None
        assert np.array_equal((prediction * 255).round().permute(1, 2, 0).numpy(), np.asarray(stored))
        triplets = triplets_of(root, protocol, None, tmp_path / "theirs")
        assert "the prediction is 40x40 but 61x45 is scored" in reason(triplets)
    else:
        assert "the prediction is 40x40 but 32x32 is scored" in reason(triplets)
        assert f"protocol {protocol} resizes no outputs" in reason(triplets)
        with pytest.raises(ScscoError, match=r"none of the 4 samples .* a0001_1_1\.png: .* 40x40"):
            evaluate(None, triplets, protocol=protocol)


def test_pictures_are_scored_by_the_protocol_they_were_read_for(root: Path) -> None:
    with pytest.raises(ScscoError, match="read for protocol idih but scored for pctnet"):
        evaluate(None, triplets_of(root, "idih"), protocol="pctnet")


def test_workers_read_the_same(root: Path) -> None:
    rows: list[list[Row]] = [[], []]
    for workers, kept in enumerate(rows):
        evaluate(None, triplets_of(root, "idih"), protocol="idih", workers=workers, on_row=kept.append)
    assert rows[0] == rows[1]
    assert len(rows[0]) == 4


def test_a_model_is_scored_at_full_resolution(root: Path, small_model: torch.nn.Module, tmp_path: Path) -> None:
    from scsco_fast.harmonizing.pictures import harmonize
    from scsco_fast.nn.unet import HarmonizationUNet
    from scsco_fast.nn.weights import save_model

    assert isinstance(small_model, HarmonizationUNet)
    save_model(small_model, tmp_path / "model.safetensors")
    target = tmp_path / "rows.csv"
    arguments = ["evaluate", "--model", str(tmp_path / "model.safetensors"), "--dataset", str(root)]
    assert cli.main([*arguments, "--resolution", "full", "--csv", str(target)]) == 0
    with target.open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    sample = good(triplets_of(root, "strict", None), 0)
    pixels, mask = sample.composite.permute(1, 2, 0).contiguous().numpy(), sample.mask[0].numpy()
    output = torch.from_numpy(harmonize(pixels, mask, small_model)).permute(2, 0, 1)
    wanted = score(output, sample.real, sample.mask)["mse"]
    assert float(rows[sample.name]["mse"]) == pytest.approx(wanted, rel=1e-6)
    assert wanted != pytest.approx(float(rows[sample.name]["composite_mse"]), rel=1e-3)
