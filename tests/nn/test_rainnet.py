"""RainNet's checkpoints: a network of its shape, written here in plain torch, and ours compute the same."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from oracle import make_mask
from torch import Tensor, nn

import scsco_fast as sf
from scsco_fast.cli import main
from scsco_fast.nn.rainnet import from_rainnet, to_rainnet
from scsco_fast.nn.weights import load_model, read_metadata

EPS = 1e-5


class Norm(nn.Module):
    """RAIN as its authors released it: eps is added to the number of pixels too, and empty regions are no exception."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for name in ("foreground_gamma", "foreground_beta", "background_gamma", "background_beta"):
            self.register_parameter(name, nn.Parameter(torch.randn(width) * 0.2))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        mask = F.interpolate(mask, size=x.shape[2:], mode="nearest")
        mean_b, std_b = self.moments(x * (1 - mask), 1 - mask)
        mean_f, std_f = self.moments(x * mask, mask)
        back = (x - mean_b) / std_b * (1 + self.background_gamma[:, None, None]) + self.background_beta[:, None, None]
        fore = (x - mean_f) / std_f * std_b + mean_b
        fore = fore * (1 + self.foreground_gamma[:, None, None]) + self.foreground_beta[:, None, None]
        return fore * mask + back * (1 - mask)

    def moments(self, region: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        count = mask.sum((2, 3), keepdim=True) + EPS
        mean = region.sum((2, 3), keepdim=True) / count
        variance = ((region + (1 - mask) * mean - mean) ** 2).sum((2, 3), keepdim=True) / count
        return mean, torch.sqrt(variance + EPS)


def down(narrow: int, wide: int) -> nn.Conv2d:
    return nn.Conv2d(narrow, wide, 4, 2, 1, bias=False)


def up(wide: int, narrow: int, bias: bool = False) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(wide, narrow, 4, 2, 1, bias=bias)


class Block(nn.Module):
    """The levels of one width, each inside of the one before; the activations work in place, on the skip as well."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        leaky, relu = nn.LeakyReLU(0.2, True), nn.ReLU(True)
        self.upnorm = Norm(width)
        if depth == 0:
            self.up = nn.Sequential(leaky, down(width, width), relu, up(width, width))
            self.submodule = None
        else:
            self.down = nn.Sequential(leaky, down(width, width), nn.InstanceNorm2d(width))
            self.submodule = Block(width, depth - 1)
            self.up = nn.Sequential(relu, up(2 * width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        inner = x if self.submodule is None else self.submodule(self.down(x), mask)
        return torch.cat([x, self.upnorm(self.up(inner), mask)], dim=1)


class RainNet(nn.Module):
    """RainNet's generator of base width w, under its own names."""

    def __init__(self, w: int) -> None:
        super().__init__()
        self.model_layer0 = down(3, w)
        for level, (narrow, wide) in enumerate([(w, 2 * w), (2 * w, 4 * w), (4 * w, 8 * w)], start=1):
            layer = nn.Sequential(nn.LeakyReLU(0.2, True), down(narrow, wide), nn.InstanceNorm2d(wide))
            setattr(self, f"model_layer{level}", layer)
        self.unet_block = Block(8 * w, 3)
        for name, wide, narrow in (("11", 16 * w, 4 * w), ("12", 8 * w, 2 * w), ("13", 4 * w, w)):
            setattr(self, f"model_layer{name}", nn.Sequential(nn.ReLU(True), up(wide, narrow)))
            setattr(self, f"model_layer{name}norm", Norm(narrow))
            setattr(self, f"model_layer{name}att", nn.Sequential(nn.Conv2d(2 * narrow, 2 * narrow, 1), nn.Sigmoid()))
        self.model_out = nn.Sequential(nn.ReLU(True), up(2 * w, 3, bias=True), nn.Tanh())

    def forward(self, composite: Tensor, mask: Tensor) -> Tensor:
        """composite and result in [-1, 1]."""
        skips = [self.model_layer0(composite)]
        for level in (1, 2, 3):
            skips.append(getattr(self, f"model_layer{level}")(skips[-1]))
        x = self.unet_block(skips.pop(), mask)
        for name in ("11", "12", "13"):
            x = getattr(self, f"model_layer{name}norm")(getattr(self, f"model_layer{name}")(x), mask)
            x = torch.cat([skips.pop(), x], dim=1)
            x = getattr(self, f"model_layer{name}att")(x) * x
        return self.model_out(x) * mask + composite * (1 - mask)


@pytest.fixture(scope="module")
def rainnet() -> RainNet:
    """With weights large enough for regions of one pixel to show in the output."""
    torch.manual_seed(0)
    network = RainNet(4).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3 if parameter.dim() == 4 else 1)
    return network


def assert_same(model: sf.HarmonizationUNet, rainnet: RainNet, mask: Tensor) -> None:
    """Ours in float32 is no further from RainNet in float64 than RainNet in float32 is, but for a factor of 4."""
    composite = torch.rand(*mask.shape[:1], 3, *mask.shape[2:], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = model(composite, mask) * 2 - 1
        theirs = rainnet(composite * 2 - 1, mask)
        exact = rainnet.double()(composite.double() * 2 - 1, mask.double())
        rainnet.float()
    rounding = (theirs - exact).abs().max()
    assert rounding < 1e-5
    assert (ours - exact).abs().max() <= 4 * rounding + torch.finfo(torch.float32).eps
    if mask.any():
        assert (exact - (composite * 2 - 1)).abs().max() > 0.1


@pytest.mark.parametrize("mask", ["block", "random", "one pixel", "empty", "full"])
def test_a_checkpoint_computes_the_same_here(
    mask: str, rainnet: RainNet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In small and empty regions too, where RAIN's formula and its released code differ most."""
    checkpoint = tmp_path / "net_G_last.pth"
    torch.save(rainnet.state_dict(), checkpoint)
    assert main(["import-rainnet", str(checkpoint)]) == 0
    written = tmp_path / "net_G_last.safetensors"
    assert capsys.readouterr().out == f"wrote {written}\n"
    assert read_metadata(written)["source"] == "RainNet, net_G_last.pth"
    assert_same(load_model(written), rainnet, make_mask(mask, 2, 256, 256).float())


def test_keys_go_back_and_forth(rainnet: RainNet) -> None:
    state = rainnet.state_dict()
    back = to_rainnet(from_rainnet(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_what_data_parallel_saved_loads(rainnet: RainNet) -> None:
    wrapped = {f"module.{key}": tensor for key, tensor in rainnet.state_dict().items()}
    assert torch.equal(from_rainnet(wrapped).up[0].bias, rainnet.model_out[1].bias)


class Code:
    """What a hostile pickle would run."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("it ran",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model_out.1.bias": None}, "not a RainNet generator: missing model_out.1.bias"),
        ({"model_layer0.weight": None}, "not a RainNet generator: model_layer0.weight is missing"),
        ({"model_layer0.weight": torch.zeros(4, 5, 4, 4)}, r"model_layer0.weight is (4, 5, 4, 4), not (N, 3, 4, 4)"),
        ({"model_out.1.bias": torch.full((3,), torch.nan)}, "NaN or infinite weights in up.0.bias"),
        ([1, 2], "not a dict of tensors"),
        ({"state_dict": {}}, "not a dict of tensors"),
        (Code(), "not a readable PyTorch file of tensors"),
        (b"\x80\x02junk", "not a readable PyTorch file of tensors"),
    ],
)
def test_anything_else_is_refused_in_one_line(
    content: object, message: str, rainnet: RainNet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = tmp_path / "net.pth", tmp_path / "model.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict) and "state_dict" not in content:
        changed = rainnet.state_dict() | content
        torch.save({key: tensor for key, tensor in changed.items() if tensor is not None}, path)
    else:
        torch.save(content, path)
    assert main(["import-rainnet", str(path), "--output", str(output)]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert not output.exists()


def test_no_file_and_no_overwriting(rainnet: RainNet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import-rainnet", str(tmp_path / "none.pth")]) == 2
    assert "none.pth: no such file" in capsys.readouterr().err
    torch.save(rainnet.state_dict(), tmp_path / "net.pth")
    taken = tmp_path / "net.safetensors"
    taken.write_bytes(b"mine")
    assert main(["import-rainnet", str(tmp_path / "net.pth")]) == 2
    assert "net.safetensors: exists already" in capsys.readouterr().err
    assert taken.read_bytes() == b"mine"


PAGE = Path(__file__).parents[2] / "docs" / "rainnet.md"


@pytest.mark.parametrize("index", [0, 1])
def test_the_pages_examples_run(index: int, capsys: pytest.CaptureFixture[str]) -> None:
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[index]
    exec(compile(code, f"{PAGE.name}, example {index}", "exec"), {"__name__": "example"})
    assert capsys.readouterr().out.strip() == re.findall(r"^print.*# (.*)$", code, re.MULTILINE)[-1]
