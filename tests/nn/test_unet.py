"""The U-Net: RainNet's size and keys, any input size, options, the background, excluded pixels, one compiled graph."""

import math

import pytest
import torch
from oracle import FLOAT64, NoReading, NoWaiting, make_mask
from torch import Tensor, nn
from torch.nn import functional as F

import scsco_fast as sf
from scsco_fast.nn import unet
from scsco_fast.nn.affine import pooled, pooled_along_outline
from scsco_fast.nn.local_affine import extend
from scsco_fast.nn.rainnet import from_rainnet, to_rainnet
from scsco_fast.nn.sizes import reduce_inputs, shrink

# What this project's own networks use of the later options.
OURS = {"in_channels": 7, "cosine": True, "head": "affine", "upsampling": "resize"}


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


def test_later_options_leave_a_network_without_them_as_it_was() -> None:
    """Names of parameters and `config`, which is what a model file holds; outputs are held to RainNet's elsewhere."""
    model = sf.HarmonizationUNet(base_channels=2, levels=5)
    norm = ["foreground_gamma", "foreground_beta", "background_gamma", "background_beta", "query.weight", "key.weight"]
    wanted = (
        [f"down.{level}.weight" for level in range(5)] + [f"up.{level}.weight" for level in range(5)] + ["up.0.bias"]
    )
    wanted += [f"norm.{level}.{name}" for level in range(4) for name in norm]
    wanted += [f"gate.{level}.{name}" for level in range(3) for name in ("weight", "bias")]
    assert sorted(model.state_dict()) == sorted(wanted)
    assert model.config == {
        "in_channels": 4,
        "base_channels": 2,
        "levels": 5,
        "norm": "bain",
        "head": "direct",
        "key_channels": None,
        "dropout": True,
        "project_value": False,
        "cosine": False,
    }
    ours = small(**OURS)
    assert ours.config["upsampling"] == "resize"
    assert type(sf.HarmonizationUNet(**ours.config).up[1]) is unet.ConvolveEnlarge


@pytest.mark.parametrize("head", ["direct", "residual", "affine"])
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


@pytest.mark.parametrize(
    ("options", "working_size", "value"),
    [({}, 256, 7.0), (OURS, 256, math.nan), (OURS, 24, math.inf), (OURS | {"in_channels": 4}, 24, -7.0)],
)
def test_excluded_pixels_are_left_alone_and_may_hold_anything(options: dict, working_size: int, value: float) -> None:
    composite, mask = inputs(40, 40)
    valid = torch.ones_like(mask)
    valid[..., 15:25, 15:25] = 0
    model = small(**options)
    model.working_size = working_size
    clean = model(composite, mask, valid)
    wild = torch.where(valid > 0.5, composite, value)
    output = model(wild, mask, valid)
    seen = (valid > 0.5).expand_as(output)
    assert torch.equal(output[seen], clean[seen])
    torch.testing.assert_close(output[~seen], wild[~seen], rtol=0, atol=0, equal_nan=True)


@pytest.mark.slow
@pytest.mark.parametrize(("options", "working_size"), [({"head": "residual"}, 256), (OURS, 256), (OURS, 32)])
def test_one_graph_under_autocast(options: dict, working_size: int) -> None:
    torch._dynamo.reset()
    model = small(**options)
    model.working_size = working_size
    composite, mask = inputs(32, 48)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(composite, mask), model(composite, mask))
    with torch.autocast("cpu", torch.bfloat16):
        output = compiled(composite, mask)
    assert output.dtype == torch.float32
    assert torch.isfinite(output).all()


def test_an_affine_head_drops_pooled_features_while_it_is_trained_only() -> None:
    composite, mask = inputs(32, 32)
    for dropout in (True, False):
        model = small(head="affine", dropout=dropout)
        trained = [model.train()(composite, mask) for _ in range(2)]
        used = [model.eval()(composite, mask) for _ in range(2)]
        assert torch.equal(*used)
        assert torch.equal(*trained) is not dropout


@pytest.mark.slow
def test_a_compiled_affine_head_reduces_pictures_of_several_sizes() -> None:
    """At the second size the compiler tries a graph of free sizes; with one BAIN, as tracing takes its time."""
    torch._dynamo.reset()
    model = small(**OURS, norm=["instance", "instance", "instance", "bain"]).requires_grad_(False)
    model.working_size = 32
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for size in ((40, 64), (66, 50)):
        composite, mask = inputs(*size)
        torch.testing.assert_close(compiled(composite, mask), model(composite, mask))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 5}, "in_channels must be 3"),
        ({"levels": 4, "norm": "bain"}, "levels must be 5 to 10"),
        ({"norm": "batch"}, "norm must be one of bain, rain, instance"),
        ({"norm": ["bain"]}, "or 4 of them"),
        ({"head": "both"}, "head must be one of direct, residual, affine"),
        ({"upsampling": "nearest"}, "upsampling must be one of transposed, resize, got 'nearest'"),
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
    with pytest.raises(ValueError, match="has coefficients; this one has head='residual'"):
        small(head="residual").coefficients(composite, mask)
    with pytest.raises(ValueError, match="mask must have the composite's batch and size"):
        small(head="affine").coefficients(composite, mask[..., :16])


@pytest.mark.parametrize("options", [{"head": "affine"}, OURS], ids=["paper's encoder and decoder", "ours"])
def test_an_affine_head_by_hand(options: dict) -> None:
    """From the decoder's last maps and the branch's twelve numbers: a matrix of c - 0.5, and an offset."""
    model = small(**options).double()
    composite, mask = (tensor.double() for tensor in inputs(33, 41, batch=2))
    mask[0, 0, :5, :5] = 0.75
    made: dict[str, Tensor] = {}
    model.up[0].register_forward_hook(lambda module, given, output: made.update(maps=output.detach()))
    model.whole.register_forward_hook(lambda module, given, output: made.update(whole=output.detach()))
    with torch.no_grad():
        output, coefficients = model(composite, mask), model.coefficients(composite, mask)
    assert made["whole"].shape == (2, 12)
    assert made["whole"].abs().min() > 0
    raw = (made["maps"][..., :33, :41] + made["whole"][:, :, None, None]).permute(0, 2, 3, 1)  # (B, H, W, 12)
    matrix, about_grey = raw[..., :9].reshape(2, 33, 41, 3, 3), raw[..., 9:]
    colour = composite.permute(0, 2, 3, 1)
    change = (matrix @ (colour - 0.5)[..., None])[..., 0] + about_grey
    wanted = (colour + change * mask[:, 0, :, :, None]).permute(0, 3, 1, 2)
    torch.testing.assert_close(output, wanted, rtol=0, atol=FLOAT64)
    offset = about_grey - 0.5 * matrix.sum(-1)
    torch.testing.assert_close(coefficients[:, :9], matrix.flatten(3).permute(0, 3, 1, 2), rtol=0, atol=FLOAT64)
    torch.testing.assert_close(coefficients[:, 9:], offset.permute(0, 3, 1, 2), rtol=0, atol=FLOAT64)


@pytest.mark.parametrize("working_size", [256, 32])
def test_an_affine_head_of_zeros_changes_nothing(working_size: int) -> None:
    model = small(**OURS)
    model.working_size = working_size
    for parameter in (*model.up[0].parameters(), *model.whole[-1].parameters()):
        nn.init.zeros_(parameter)
    composite, mask = inputs(50, 70)
    assert torch.equal(model(composite, mask), composite)


@pytest.mark.parametrize("working_size", [256, 48])
def test_gradients_reach_every_parameter_of_an_affine_head(working_size: int) -> None:
    model = small(**OURS).train()
    model.working_size = working_size
    composite, mask = inputs(64, 64, batch=2)
    (model(composite, mask) - composite).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("size", [(67, 96), (96, 45), (33, 200)])
def test_an_affine_head_works_at_its_working_size(size: tuple[int, int]) -> None:
    """Means of colours, the majority of the mask, the transform continued from the foreground, and enlarged."""
    model = small(**OURS).double()
    model.working_size = 32
    composite, mask = (tensor.double() for tensor in inputs(*size))
    reduced = tuple(round(side * 32 / max(size)) for side in size)
    assert model.inner_size(size) == reduced
    colour, covered = (
        nn.functional.interpolate(tensor, reduced, mode="bilinear", antialias=True) for tensor in (composite, mask)
    )
    inside = (covered > 0.5).double()
    seen: list[Tensor] = []
    model.down[0].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.no_grad():
        output = model(composite, mask)
        assert seen[0].shape[-2:] == (32, 32)  # padded
        torch.testing.assert_close(seen[0][:, 3:4, : reduced[0], : reduced[1]], inside, rtol=0, atol=0)
        transform = extend(model.coefficients(colour, inside), inside)
        transform = nn.functional.interpolate(transform, size, mode="bilinear")
    matrix, offset = transform[:, :9].unflatten(1, (3, 3)), transform[:, 9:]
    wanted = composite + (torch.einsum("bijhw,bjhw->bihw", matrix, composite) + offset) * mask
    torch.testing.assert_close(output, wanted, rtol=0, atol=FLOAT64)
    assert torch.equal(output[(mask == 0).expand_as(output)], composite[(mask == 0).expand_as(output)])
    with torch.no_grad():
        model.working_size = 200
        at_full_size = model.coefficients(composite, mask)
        model.working_size = 32
        assert torch.equal(model.coefficients(composite, mask, working_size=200), at_full_size)


@pytest.mark.parametrize("size", [(64, 96), (63, 97), (31, 32)])
def test_coefficients_of_the_background_leave_no_rim(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """They are trained for nothing. Here they are wild, and no pixel of the mask shows it, at any enlargement."""
    model = small(**OURS).double()
    model.working_size = 32
    composite, mask = (tensor.double() for tensor in inputs(*size))
    constant = torch.linspace(-0.3, 0.4, 12, dtype=torch.float64)[None, :, None, None]
    monkeypatch.setattr(
        model, "_predict", lambda composite, mask, valid: torch.where(mask > 0.5, constant, 1e3).expand(-1, 12, -1, -1)
    )
    change = torch.einsum("ij,bjhw->bihw", constant[0, :9, 0, 0].reshape(3, 3), composite - 0.5) + constant[:, 9:]
    torch.testing.assert_close(model(composite, mask), composite + change * mask, rtol=0, atol=FLOAT64)


def test_a_foreground_smaller_than_a_working_pixel_is_one() -> None:
    """Each image for itself, and without the host waiting for the device."""
    composite, mask = torch.rand(3, 3, 200, 160), torch.zeros(3, 1, 200, 160)
    mask[0, 0, 50:150, 40:120] = 1
    mask[:2, 0, 10, 150] = 1  # beside a block it vanishes; alone it is all that there is
    with NoReading(), NoWaiting():
        _, inside, valid = reduce_inputs(composite, mask, None, (20, 16))
    assert valid is None
    assert inside[0, 0].nonzero().aminmax(dim=0).max.tolist() == [14, 11]
    assert inside[0].sum() == 80
    assert inside[1, 0, 1, 15] == 1
    assert inside[1].sum() == 4  # the filter reaches two pixels each way
    assert inside[2].sum() == 0
    model = small(**OURS)
    model.working_size = 20
    with NoReading(), NoWaiting(), torch.no_grad():
        output = model(composite, mask)
    changed = (output != composite).any(dim=1, keepdim=True)
    assert torch.equal(changed, mask > 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_edge_through_the_middle_of_a_reduced_pixel_is_background(dtype: torch.dtype) -> None:
    """Whatever the rounding: row 22 of 45 lies half above row 75 of 150."""
    mask = torch.zeros(1, 1, 150, 211, dtype=dtype)
    mask[..., :75, :] = 1
    _, inside, _ = reduce_inputs(mask.expand(-1, 3, -1, -1), mask, None, (45, 63))
    assert torch.equal(inside[0, 0], (torch.arange(45) < 22).to(dtype)[:, None].expand(45, 63))


def test_reduced_colours_are_means_over_valid_pixels() -> None:
    """Of a picture whose excluded half is anything: the other half's colour, up to the border between them."""
    composite, mask, valid = torch.full((1, 3, 80, 80), 0.25), torch.zeros(1, 1, 80, 80), torch.ones(1, 1, 80, 80)
    valid[..., 37:] = 0
    composite[..., 37:] = math.nan
    mask[..., 8:72, 20:60] = 1
    colour, inside, known = reduce_inputs(composite, mask, valid, (20, 20))
    assert torch.equal(known[0, 0, 0], (torch.arange(20) < 9).float())
    torch.testing.assert_close(colour[..., :9], torch.full((1, 3, 20, 9), 0.25))
    assert torch.isfinite(colour).all()
    # Pixel 9 covers columns 36 to 39, of which 36 alone counts.
    assert torch.equal(inside[0, 0, 10], ((torch.arange(20) >= 5) & (torch.arange(20) < 10)).float())
    assert torch.equal(known[0, 0, 10], (torch.arange(20) < 10).float())
    mask = torch.zeros(1, 1, 80, 80)
    mask[..., 40, 36] = 1  # at the border, and alone
    _, inside, known = reduce_inputs(composite, mask, valid, (20, 20))
    assert inside.any()
    assert known[inside > 0].all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_coefficients_are_float32_or_wider(dtype: torch.dtype) -> None:
    """The difference of an 8-bit level is 0.004, and bfloat16 tells 0.99 from 1 and nothing between."""
    model, (composite, mask) = small(**OURS), inputs(40, 56)
    model.working_size = 32
    found: list[Tensor] = []
    if dtype == torch.float64:
        model, composite = model.double(), composite.double()
    else:
        model.whole.register_forward_hook(lambda module, given, output: found.extend([*given, output]))
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float64):
        coefficients, output = model.coefficients(composite, mask), model(composite, mask)
    assert coefficients.dtype == torch.promote_types(dtype, torch.float32)
    assert output.dtype == composite.dtype
    assert all(tensor.dtype == torch.float32 for tensor in found)
    if dtype != torch.float64:
        low = small(**OURS).to(dtype)
        low.working_size = 32
        with torch.no_grad():
            assert low.coefficients(composite.to(dtype), mask.to(dtype)).dtype == torch.float32
            assert low(composite.to(dtype), mask.to(dtype)).dtype == dtype


def test_pooled_statistics_of_narrow_features_are_float32() -> None:
    """As those of the same numbers in float64; bfloat16 itself would round them to 8 bits."""
    maps, regions = (3 + torch.randn(2, 5, 8, 6)).bfloat16(), sf.Regions(make_mask("random", 2, 8, 6))
    found = pooled(maps, regions)
    assert found.dtype == torch.float32
    # Sums of up to 48 numbers, in float32.
    torch.testing.assert_close(
        found.double(), pooled(maps.double(), regions), rtol=48 * torch.finfo(torch.float32).eps, atol=0
    )


def test_pooled_statistics_are_those_of_each_region() -> None:
    maps, mask = torch.randn(3, 5, 8, 6, dtype=torch.float64), make_mask("random", 3, 8, 6)
    mask[2] = 0
    found = pooled(maps, sf.Regions(mask)).reshape(3, 4, 5)
    for image in range(3):
        for start, region in ((0, mask[image, 0] > 0.5), (2, mask[image, 0] <= 0.5)):
            pixels = maps[image][:, region]
            mean = pixels.mean(1) if region.any() else torch.zeros(5).double()
            variance = pixels.var(1, correction=0) if region.any() else torch.zeros(5).double()
            torch.testing.assert_close(found[image, start], mean, rtol=0, atol=FLOAT64)
            torch.testing.assert_close(found[image, start + 1], (variance + 1e-5).sqrt(), rtol=0, atol=FLOAT64)


def test_enlargement_after_a_convolution_leaves_no_checkerboard() -> None:
    """A constant stays one away from the border, where a transposed convolution has four values in turn."""
    torch.manual_seed(0)
    ours, theirs = unet._up("resize", 4, 3, bias=True), unet._up("transposed", 4, 3, bias=True)
    with torch.no_grad():
        results = [layer(torch.ones(1, 4, 8, 8)) for layer in (ours, theirs)]
    assert all(result.shape == (1, 3, 16, 16) for result in results)
    spread = [(result[..., 4:-4, 4:-4].amax((2, 3)) - result[..., 4:-4, 4:-4].amin((2, 3))).max() for result in results]
    scale = max(float(result.detach().abs().max()) for result in results)
    assert spread[0] <= 36 * torch.finfo(torch.float32).eps * scale  # sums of 36 products in another order
    assert spread[1] > 0.1 * scale


def test_colours_along_the_outline_leave_out_the_outline_itself() -> None:
    """A foreground of columns 10 to 29: columns 11 to 13 and 26 to 28 of it, and 6 to 8 and 31 to 33 outside."""
    columns = torch.arange(40)
    mask = ((columns >= 10) & (columns < 30)).double().expand(1, 1, 40, 40).contiguous()
    maps = columns.double().square().expand(1, 1, 40, 40).contiguous()
    inner, outer = (11, 12, 13, 26, 27, 28), (6, 7, 8, 31, 32, 33)
    wanted = []
    for ring in (inner, outer):
        values = torch.tensor(ring).double().square()
        wanted += [values.mean(), (values.var(correction=0) + 1e-5).sqrt()]
    found = pooled_along_outline(maps, sf.Regions(mask))
    torch.testing.assert_close(found[0], torch.stack(wanted), rtol=0, atol=FLOAT64 * 40**2)


def test_an_outline_beside_nothing_has_no_colours() -> None:
    for mask in (torch.zeros(1, 1, 16, 16), torch.ones(1, 1, 16, 16)):
        found = pooled_along_outline(torch.rand(1, 3, 16, 16), sf.Regions(mask))
        assert torch.isfinite(found).all()
        assert found[:, [0, 1, 2, 6, 7, 8]].abs().max() == 0


@pytest.mark.parametrize("batch", [(1, 4), (2, 1), (2, 3)])
@pytest.mark.parametrize(
    ("height", "width", "small"), [(300, 1, 48), (301, 3, 48), (64, 1, 32), (300, 5, 1), (7, 1, 3)]
)
def test_columns_are_reduced_as_rows_are(batch: tuple[int, int], height: int, width: int, small: int) -> None:
    """torch 2.13 on a CPU reduces a column that is one pixel wide to something else, and a row rightly."""
    x = torch.rand(*batch, height, width, generator=torch.Generator().manual_seed(0))
    rows = F.interpolate(x.mT.contiguous(), size=(width, small), mode="bilinear", antialias=True)  # along rows alone
    wanted = rows.mean(dim=2, keepdim=True) if width == 1 else None
    found = shrink(x, (small, 1))
    assert found.shape == (*batch, small, 1)
    if wanted is not None:
        torch.testing.assert_close(found, wanted.mT)
    torch.testing.assert_close(shrink(x, (small, width)).mT, rows if width > 1 else wanted)
    assert shrink(x, (height, width)) is x
