"""The model in the package: its checksum, that it is used where none is given, and what it must achieve."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import scsco_fast as sf
from scsco_fast import cli, info
from scsco_fast.evaluation import evaluate
from scsco_fast.nn import weights
from scsco_fast.synthesis.synthetic import SyntheticComposites, load_photos
from scsco_fast.train.presets import PRESETS
from scsco_fast.train.ship import ship

LARGEST = 25 * 10**6  # bytes, of all models


@pytest.fixture
def damaged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A copy of the shipped file with one bit turned, in its place."""
    data = bytearray(weights.shipped_file("compact").read_bytes())
    data[-1] ^= 1
    path = tmp_path / "compact.safetensors"
    path.write_bytes(data)
    monkeypatch.setattr(weights, "MODELS", tmp_path)
    weights.shared_default_model.cache_clear()
    return path


def test_it_loads_and_is_small() -> None:
    model = sf.load_default_model()
    assert not model.training
    assert "bain" in model.config["norm"]
    assert sum(path.stat().st_size for path in weights.MODELS.iterdir()) <= LARGEST
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize("preset", ["compact", "compact-gpu"])
def test_the_presets_train_this_network(preset: str) -> None:
    network = sf.HarmonizationUNet(**PRESETS[preset].architecture())
    assert network.config == sf.load_default_model().config


def test_another_file_is_refused_in_one_line(damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(sf.ScscoError) as caught:
        sf.load_default_model()
    assert str(damaged) in str(caught.value)
    assert "SHA-256" in str(caught.value)
    assert "\n" not in str(caught.value)
    picture, mask = np.zeros((40, 40, 3), np.uint8), np.eye(40, dtype=bool)
    with pytest.raises(sf.ScscoError, match="SHA-256"):
        sf.harmonize(picture, mask)
    assert "cannot be used" in info.doctor()["model"]["shipped"]
    assert cli.main(["evaluate", "--count", "1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_missing_file_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(weights, "MODELS", tmp_path / "none")
    with pytest.raises(sf.ScscoError, match="missing; install scsco-fast again"):
        sf.load_default_model()


def test_pictures_are_harmonized_without_a_model(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(90, 160, (90, 121, 3), dtype=np.uint8)
    mask = np.zeros((90, 121), np.uint8)
    mask[20:60, 30:80] = 255
    picture[mask > 0] //= 3
    output = sf.harmonize(picture, mask)
    assert np.array_equal(output[mask == 0], picture[mask == 0])
    assert not np.array_equal(output[mask > 0], picture[mask > 0])
    assert np.array_equal(output, sf.harmonize(picture, mask, sf.load_default_model()))
    files = {name: str(tmp_path / f"{name}.png") for name in ("image", "mask", "output")}
    Image.fromarray(picture).save(files["image"])
    Image.fromarray(mask).save(files["mask"])
    assert cli.main(["harmonize", *(part for name, path in files.items() for part in (f"--{name}", path))]) == 0
    assert np.array_equal(np.asarray(Image.open(files["output"])), output)


def test_doctor_names_it() -> None:
    assert "compact.safetensors" in info.doctor()["model"]["shipped"]


def test_it_reaches_its_bar_on_photographs_that_it_never_saw() -> None:
    """chelsea and coffee are in scikit-image's wheel and in no training; docs/model-card.md has the whole measure."""
    unseen = SyntheticComposites(load_photos("builtin", "test"), size=128, length=24, seed=7, augment=False)
    means = evaluate(sf.load_default_model(), unseen).summaries()[-1].means
    assert means["mse"] < 0.7 * means["composite_mse"]
    assert means["psnr"] > means["composite_psnr"] + 1.5


def test_shipping_halves_a_model_and_returns_its_checksum(small_model: sf.HarmonizationUNet, tmp_path: Path) -> None:
    sf.save_model(small_model, tmp_path / "run.safetensors", {"working_size": 96, "step": 5})
    digest = ship(tmp_path / "run.safetensors", tmp_path / "shipped.safetensors")
    assert digest == hashlib.sha256((tmp_path / "shipped.safetensors").read_bytes()).hexdigest()
    shipped = sf.load_model(tmp_path / "shipped.safetensors")
    assert shipped.working_size == 96
    for wanted, found in zip(small_model.parameters(), shipped.parameters(), strict=True):
        torch.testing.assert_close(found, wanted.half().float(), rtol=0, atol=0)
    assert weights.read_metadata(tmp_path / "shipped.safetensors")["dtype"] == "float16"


def test_a_name_stands_for_a_model_in_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(set(weights.SHIPPED_SHA256.values())) == len(weights.SHIPPED_SHA256)
    for name in weights.SHIPPED_SHA256:
        loaded, wanted = sf.load_model(name), sf.load_model(weights.shipped_file(name))
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), wanted.parameters(), strict=True))
    with pytest.raises(sf.ScscoError, match="compact or compact-free"):
        sf.load_model("compact-paid")


def test_a_file_of_that_name_comes_first(
    small_model: sf.HarmonizationUNet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    sf.save_model(small_model, "compact")
    assert sf.load_model("compact").config == small_model.config
