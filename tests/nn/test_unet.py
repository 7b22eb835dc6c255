"""The U-Net: RainNet's size and keys, any input size, options, the background, excluded pixels, one compiled graph."""

import pytest
import torch
from oracle import make_mask

import scsco_fast as sf
from scsco_fast.nn.rainnet import from_rainnet, to_rainnet


def inputs(height: int, width: int, batch: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, 3, height, width, generator=generator), make_mask("block", batch, height, width).float()


def small(**options: object) -> sf.HarmonizationUNet:
    torch.manual_seed(0)
    return sf.HarmonizationUNet(**({"base_channels": 4, "levels": 5} | options)).eval()


def test_rainnet_has_its_parameters() -> None:
    model = sf.HarmonizationUNet(in_channels=3, base_channels=64, norm="rain", head="direct")
    assert sum(parameter.numel() for parameter in model.parameters()) == 54_759_043


def test_rainnet_checkpoints_load_and_nothing_partial_does() -> None:
    model = small(in_channels=3, levels=8, norm="rainnet")
    state = to_rainnet(model)
    assert "unet_block.submodule.submodule.submodule.upnorm.foreground_gamma" in state
    assert state["model_layer11att.0.weight"].shape == (32, 32, 1, 1)
    composite, mask = inputs(256, 256)
    with torch.no_grad():
        assert torch.equal(from_rainnet(state)(composite, mask), model(composite, mask))
    for change, message in (
        ({"model_layer2.1.weight": None}, "missing model_layer2.1.weight"),
        ({"extra": torch.zeros(1)}, "unexpected extra"),
        ({"model_out.1.bias": torch.zeros(4)}, r"model_out.1.bias is \(4,\), not \(3,\)"),
    ):
        broken = {key: value for key, value in (state | change).items() if value is not None}
        with pytest.raises(sf.ScscoError, match=message):
            from_rainnet(broken)


@pytest.mark.parametrize("head", ["direct", "residual"])
@pytest.mark.parametrize("size", [(32, 32), (33, 70), (1, 5), (64, 31)])
def test_any_size_and_an_unchanged_background(size: tuple[int, int], head: str) -> None:
    composite, mask = inputs(*size)
    output = small(head=head)(composite, mask)
    assert output.shape == composite.shape
    outside = (mask < 0.5).expand_as(output)
    assert torch.equal(output[outside], composite[outside])
    assert not torch.equal(output, composite)


def test_a_soft_mask_blends() -> None:
    composite, mask = inputs(32, 32)
    model = small(in_channels=3)  # with four, the network would also see another mask
    hard, soft = model(composite, mask), model(composite, mask * 0.75)  # still foreground for the statistics
    torch.testing.assert_close(soft - composite, (hard - composite) * 0.75)


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("norm", ["bain", "rain", "instance", "rainnet", ["bain", "rain", "instance", "bain"]])
def test_norms_train(norm: object, cosine: bool) -> None:
    model = small(norm=norm, cosine=cosine).train()
    composite, mask = inputs(48, 48, batch=2)
    model(composite, mask).square().mean().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    assert sf.HarmonizationUNet(**model.config).state_dict().keys() == model.state_dict().keys()


def test_norm_names_run_from_coarse_to_fine() -> None:
    model = small(norm=["bain", "rain", "rain", "instance"])
    assert [type(norm).__name__ for norm in model.norm] == ["InstanceNorm2d", "RAIN", "RAIN", "BAIN"]


def test_backends_agree_through_the_network() -> None:
    model = small().double()
    composite, mask = (t.double() for t in inputs(40, 56, batch=2))
    results = []
    for backend in ("reference", "eager"):
        model.zero_grad()
        with sf.use_backend(backend):
            output = model(composite, mask)
            output.square().sum().backward()
        results.append([output.detach(), *(p.grad.clone() for p in model.parameters())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_excluded_pixels_are_left_alone_and_may_hold_anything() -> None:
    composite, mask = inputs(40, 40)
    valid = torch.ones_like(mask)
    valid[..., 15:25, 15:25] = 0
    model = small()
    clean = model(composite, mask, valid)
    wild = torch.where(valid > 0.5, composite, 7.0)
    output = model(wild, mask, valid)
    seen = (valid > 0.5).expand_as(output)
    assert torch.equal(output[seen], clean[seen])
    assert torch.equal(output[~seen], wild[~seen])


def test_one_graph_under_autocast() -> None:
    torch._dynamo.reset()
    model = small(head="residual")
    composite, mask = inputs(32, 48)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(composite, mask), model(composite, mask))
    with torch.autocast("cpu", torch.bfloat16):
        output = compiled(composite, mask)
    assert output.dtype == torch.float32
    assert torch.isfinite(output).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 5}, "in_channels must be 3"),
        ({"levels": 4, "norm": "bain"}, "levels must be 5 to 10"),
        ({"norm": "batch"}, "norm must be one of bain, rain, instance"),
        ({"norm": ["bain"]}, "or 4 of them"),
        ({"head": "both"}, "head must be one of direct, residual"),
        ({"base_channels": 0}, "base_channels must be positive"),
    ],
)
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_bad_inputs_are_named() -> None:
    composite, mask = inputs(32, 32)
    with pytest.raises(ValueError, match="composite must have shape"):
        small()(mask, mask)
    with pytest.raises(ValueError, match="mask must have the composite's batch and size"):
        small()(composite, mask[..., :16])
