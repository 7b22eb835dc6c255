"""Model files: a round trip is exact, and everything that does not match exactly is refused in one line."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from scsco_fast.errors import ScscoError
from scsco_fast.nn.unet import HarmonizationUNet
from scsco_fast.nn.weights import load_model, read_metadata, save_model


@pytest.fixture
def model_file(small_model: HarmonizationUNet, tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_model(small_model, path, {"working_size": 96, "step": 7})
    return path


def rewrite(path: Path, tensors: dict[str, torch.Tensor] | None = None, **metadata: object) -> None:
    """Change tensors or metadata of a model file behind the library's back."""
    known = read_metadata(path)
    tensors = load_file(path) if tensors is None else tensors
    save_file(tensors, path, metadata={"scsco": json.dumps({**known, **metadata})})


def refusal(path: Path) -> str:
    with pytest.raises(ScscoError) as caught:
        load_model(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_round_trip_is_exact(small_model: HarmonizationUNet, model_file: Path) -> None:
    loaded = load_model(model_file)
    assert loaded.config == small_model.config
    assert not loaded.training
    assert loaded.working_size == 96
    assert read_metadata(model_file)["step"] == 7
    wanted, found = small_model.state_dict(), loaded.state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


@pytest.mark.parametrize(
    "option",
    [
        {"norm": "rain"},
        {"in_channels": 3},
        {"norm": ["bain", "rain", "instance", "rain"]},
        {"head": "affine", "upsampling": "resize"},
    ],
)
def test_options_survive(option: dict, tmp_path: Path) -> None:
    model = HarmonizationUNet(base_channels=4, levels=5, **option)
    save_model(model, tmp_path / "m.safetensors", {"working_size": 24})
    loaded = load_model(tmp_path / "m.safetensors")
    assert loaded.config == model.config
    composite, mask = torch.rand(1, 3, 40, 50), torch.ones(1, 1, 40, 50)
    mask[..., 20:] = 0
    model.eval().working_size = 24
    assert torch.equal(loaded(composite, mask), model(composite, mask))


def test_a_file_from_before_the_later_options_loads(small_model: HarmonizationUNet, model_file: Path) -> None:
    """Its configuration names none of them, and neither does that of a network without them today."""
    config = {"in_channels": 4, "base_channels": 4, "levels": 5, "norm": "bain", "head": "residual"}
    config |= {"key_channels": None, "dropout": True, "project_value": False, "cosine": False}
    assert read_metadata(model_file)["config"] == config
    rewrite(model_file, config=config)
    loaded = load_model(model_file)
    assert loaded.config == small_model.config
    composite, mask = torch.rand(1, 3, 40, 50), torch.ones(1, 1, 40, 50)
    assert torch.equal(loaded(composite, mask), small_model(composite, mask))


def test_a_file_that_names_the_defaults_loads(small_model: HarmonizationUNet, model_file: Path) -> None:
    rewrite(model_file, config={**small_model.config, "upsampling": "transposed"})
    assert load_model(model_file).config == small_model.config


def test_working_size_is_kept_when_saved_again(model_file: Path, tmp_path: Path) -> None:
    save_model(load_model(model_file), tmp_path / "again.safetensors")
    assert read_metadata(tmp_path / "again.safetensors")["working_size"] == 96


def test_missing_file(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "none.safetensors")


def test_folder_names_the_file_in_it(model_file: Path) -> None:
    with pytest.raises(ScscoError, match=r"pass the model file in it: .*model\.safetensors"):
        load_model(model_file.parent)


def test_training_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    torch.save({"step": 1}, path)
    assert "pass the model.safetensors of its run" in refusal(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x00" * 64])
def test_not_safetensors(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    assert "not a readable safetensors file" in refusal(path)


def test_truncated(model_file: Path) -> None:
    model_file.write_bytes(model_file.read_bytes()[:-100])
    assert "not a readable safetensors file" in refusal(model_file)


def test_foreign_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    assert "not of scsco-fast" in refusal(path)


def test_another_format_and_architecture(model_file: Path) -> None:
    rewrite(model_file, format=2)
    assert "format 2" in refusal(model_file)
    rewrite_metadata = json.dumps({"format": 1, "architecture": "Other", "config": {}, "working_size": 1})
    save_file({"a": torch.zeros(1)}, model_file, metadata={"scsco": rewrite_metadata})
    assert "'Other'" in refusal(model_file)


@pytest.mark.parametrize("config", [{"colour": 1}, {"levels": 2}, {"norm": "batch"}])
def test_configuration_that_builds_nothing(config: dict, model_file: Path) -> None:
    rewrite(model_file, config=config)
    assert "does not build" in refusal(model_file)


def test_damaged_metadata(model_file: Path) -> None:
    rewrite(model_file, working_size=0)
    assert "damaged" in refusal(model_file)
    save_file(load_file(model_file), model_file, metadata={"scsco": "{"})
    assert "damaged" in refusal(model_file)


def test_tensors_that_do_not_match_are_named(model_file: Path) -> None:
    tensors = load_file(model_file)
    names = sorted(tensors)
    missing = names[0]
    del tensors[missing]
    tensors["extra.weight"] = torch.zeros(1)
    tensors[names[1]] = torch.zeros(1, 2, 3)
    rewrite(model_file, tensors)
    message = refusal(model_file)
    assert f"missing: {missing}" in message
    assert "unexpected: extra.weight" in message
    assert f"{names[1]} (1, 2, 3) instead of" in message


def test_another_width_lists_the_first_names_only(small_model: HarmonizationUNet, model_file: Path) -> None:
    rewrite(model_file, config={**small_model.config, "base_channels": 8})
    message = refusal(model_file)
    assert message.count("instead of") == 3
    assert " more" in message


def test_weights_that_are_not_finite(small_model: HarmonizationUNet, model_file: Path) -> None:
    before = model_file.read_bytes()
    with torch.no_grad():
        small_model.down[0].weight[0] = float("nan")
    with pytest.raises(ScscoError, match=r"down\.0\.weight"):
        save_model(small_model, model_file)
    assert model_file.read_bytes() == before
    tensors = load_file(model_file)
    tensors["down.0.weight"][0] = float("inf")
    rewrite(model_file, tensors)
    assert "down.0.weight" in refusal(model_file)


def test_failed_save_leaves_the_old_file_and_no_other(
    small_model: HarmonizationUNet, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = model_file.read_bytes()

    def half(tensors: dict, path: str, metadata: dict) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", half)
    with pytest.raises(ScscoError, match="No space left"):
        save_model(small_model, model_file)
    assert model_file.read_bytes() == before
    assert [path.name for path in model_file.parent.iterdir()] == [model_file.name]


def test_reserved_name(small_model: HarmonizationUNet, tmp_path: Path) -> None:
    with pytest.raises(ScscoError, match="reserved name config"):
        save_model(small_model, tmp_path / "m.safetensors", {"config": {}})
