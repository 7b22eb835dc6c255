"""region_norm compiled from csrc/ against the float64 formulas: masks, shapes, layouts, large means, addresses."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from oracle import assert_matches, make_mask, random
from torch import Tensor

import scsco_fast as sf
from scsco_fast.cuda import region_norm as kernels
from scsco_fast.cuda.library import operations
from scsco_fast.eager import region_norm as eager
from scsco_fast.regions import RegionLevel, Regions

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
Guard = Callable[[Tensor], Tensor]


def inputs(
    batch: int, channels: int, height: int, width: int, dtype: torch.dtype = torch.float32, offset: float = 2.0
) -> list[Tensor]:
    """x, and gains and offsets of both regions."""
    parameters = [random(channels, seed=seed, dtype=torch.float32) for seed in (11, 12, 13, 14)]
    return [random(batch, channels, height, width, dtype=dtype, offset=offset), *parameters]


def check(tensors: list[Tensor], regions: Regions | Tensor, adapt: bool = True) -> None:
    assert_matches(lambda x, *p: sf.ops.region_norm(x, regions, *p, adapt=adapt), tensors, "cuda")


def level_of(mask: str, batch: int, height: int, width: int) -> RegionLevel:
    return Regions(make_mask(mask, batch, height, width)).at(height, width)


@pytest.mark.parametrize("adapt", [True, False])
@pytest.mark.parametrize("mask", ["random", "empty", "full", "one pixel", "all but one", "ragged"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_masks(mask: str, dtype: torch.dtype, adapt: bool, guarded: Guard) -> None:
    check([guarded(t) for t in inputs(3, 5, 4, 7, dtype)], make_mask(mask, 3, 4, 7), adapt)


@pytest.mark.parametrize("pixels", [1, 2, 15, 16, 17, 31, 63, 64, 65, 127, 130])
def test_pixels(pixels: int, guarded: Guard) -> None:
    mask = make_mask("random", 1, 1, pixels)
    check([guarded(t) for t in inputs(1, 3, 1, pixels)], Regions(mask, make_mask("random", 1, 1, pixels, seed=5)))


@pytest.mark.parametrize("channels", [1, 15, 65])
def test_channels(channels: int, guarded: Guard) -> None:
    check([guarded(t) for t in inputs(1, channels, 5, 6, torch.float16)], make_mask("random", 1, 5, 6))


@pytest.mark.parametrize("mask", ["random", "block"])
@pytest.mark.parametrize("pixels", [(25, 33), (37, 61), (181, 183), (96, 100), (366, 364)])
def test_splits_join(pixels: tuple[int, int], mask: str) -> None:
    """One tile; three splits of a tile; 17 splits, of two tiles and the last of one. A tile is 1024 pixels, or, where
    four pixels are read at once, 4096; more than 32 are shared out among fewer splits."""
    check(inputs(1, 1, *pixels), make_mask(mask, 1, *pixels))


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(dtype: torch.dtype, guarded: Guard) -> None:
    mask = make_mask("random", 2, 4, 6)
    x, *parameters = inputs(2, 5, 4, 6, dtype)
    for changed in (
        x.to(memory_format=torch.channels_last),
        x[:1].expand(2, -1, -1, -1),
        inputs(2, 5, 6, 4, dtype)[0].transpose(2, 3),
        x[:, :, :1, :1].expand(-1, -1, 4, 6),
    ):
        check([guarded(changed) if 0 not in changed.stride() else changed, *parameters], mask)


@pytest.mark.parametrize(
    ("channels", "pixels"), [(4, (9, 13)), (4, (37, 61)), (8, (25, 33)), (132, (9, 13)), (132, (21, 49))]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_channels_last(channels: int, pixels: tuple[int, int], dtype: torch.dtype) -> None:
    """Four channels are read at once; 132 are more than a block takes. Gradients lie as x or in raster order.

    A tile is 4096 elements, but at least 32 pixels: one of them, three, two, four, and 33 in 17 splits.
    """
    level = Regions(make_mask("random", 2, *pixels), make_mask("random", 2, *pixels, seed=5)).at(*pixels)
    x, *p = inputs(2, channels, *pixels, dtype)
    grad = random(2, channels, *pixels, seed=3, dtype=dtype)
    results = []
    for layout in (torch.channels_last, torch.contiguous_format):
        dy, ours = grad.to(memory_format=layout), x.to(memory_format=layout)
        y, mean, std = kernels.forward(ours, level.foreground, level.valid, *p, 1e-5, True)
        back = kernels.backward(dy, ours, level.foreground, level.valid, p[0], p[2], mean, std, True)
        assert y.is_contiguous()
        assert back[0].is_contiguous()
        results.append((y, mean, std, *back))
    check([x.to(memory_format=torch.channels_last), *p], Regions(level.foreground, level.valid))
    for last, raster in zip(*results, strict=True):
        rounding = 2 * torch.finfo(last.dtype).eps if last.dtype != torch.float32 else 1e-5
        torch.testing.assert_close(last, raster, rtol=rounding, atol=rounding * float(raster.abs().max()))


def test_maps_with_gaps(guarded: Guard) -> None:
    """Neither order of memory is dense, or vectors are not aligned."""
    x, *parameters = inputs(2, 9, 6, 8)
    mask = make_mask("random", 2, 6, 8)
    for part in (x[:, 1:], x.to(memory_format=torch.channels_last)[:, 1:]):
        check([part, *(p[1:] for p in parameters)], mask)
    check([x[..., 1:], *parameters], mask[..., 1:])
    check([x, *parameters], Regions(mask).at(6, 8))


def test_expanded_gradient() -> None:
    x, *parameters = (t.requires_grad_() for t in inputs(2, 3, 4, 4))
    mask, grads = make_mask("random", 2, 4, 4), []
    for backend in ("cuda", "eager"):
        y = sf.ops.region_norm(x, mask, *parameters, backend=backend)
        grads.append(torch.autograd.grad(y.sum(), [x, *parameters]))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_excluded_pixels_may_hold_nan() -> None:
    level = Regions(make_mask("random", 2, 5, 7), make_mask("random", 2, 5, 7, seed=9)).at(5, 7)
    clean, *p = inputs(2, 3, 5, 7)
    grad = random(2, 3, 5, 7, seed=3, dtype=torch.float32)
    results = []
    for x, dy in (
        (clean, grad),
        (torch.where(level.valid, clean, torch.nan), torch.where(level.valid, grad, torch.nan)),
    ):
        y, mean, std = kernels.forward(x, level.foreground, level.valid, *p, 1e-5, True)
        back = kernels.backward(dy, x, level.foreground, level.valid, p[0], p[2], mean, std, True)
        results.append((y, mean, std, *back))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert (results[0][0][~level.valid.expand_as(clean)] == 0).all()


@pytest.mark.parametrize("layout", ["pixels by four", "channels by four", "one by one"])
@pytest.mark.parametrize("adapt", [True, False])
def test_what_is_not_finite_stays_where_it_is(adapt: bool, layout: str) -> None:
    """It spoils the same results as in eager, in images with both regions, without foreground and without background.

    Numbers are put into x, into the gradient that arrives and into the parameters, one at a time; into maps at a pixel
    of each region of each image, and at an excluded one.
    """
    height, width = (3, 5) if layout == "one by one" else (4, 6)
    level = level_of_all_kinds(height, width)
    x, *p = inputs(3, 4, height, width)
    tensors = [x, random(*x.shape, seed=3, dtype=torch.float32), *p]
    if layout == "channels by four":
        tensors[:2] = (t.to(memory_format=torch.channels_last) for t in tensors[:2])
    pixels = [
        (image, 1, *(region[image, 0] & there[image, 0]).nonzero()[0].tolist())
        for image in range(3)
        for region, there in (
            (level.foreground, level.valid),
            (level.background, level.valid),
            (~level.valid, ~level.valid),
        )
        if (region[image, 0] & there[image, 0]).any()
    ]
    spoiled = 0
    for position, tensor in enumerate(tensors):
        for place in pixels if tensor.dim() == 4 else [(1,)]:
            for value in (torch.nan, torch.inf):
                these = list(tensors)
                these[position] = tensor.clone()
                these[position][place] = value
                ours, theirs = (finite_results(module, level, adapt, *these) for module in (kernels, eager))
                where = f"input {position} at {place} is {value}"
                assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)), where
                spoiled += sum(int((~a).sum()) for a in ours)
    assert spoiled > 0


def level_of_all_kinds(height: int, width: int) -> RegionLevel:
    """Images with both regions, without foreground, and without background; each has excluded pixels."""
    mask, valid = torch.zeros(3, 1, height, width), torch.ones(3, 1, height, width)
    mask[0, ..., :2], mask[2] = 1, 1
    valid[:, :, 1, ::2] = 0
    return Regions(mask, valid).at(height, width)


def finite_results(
    module: ModuleType, level: RegionLevel, adapt: bool, x: Tensor, grad: Tensor, *p: Tensor
) -> list[Tensor]:
    """Which numbers are finite: of the outputs, and of the gradients of x and the parameters."""
    y, mean, std = module.forward(x, level.foreground, level.valid, *p, 1e-5, adapt)
    back = module.backward(grad, x, level.foreground, level.valid, p[0], p[2], mean, std, adapt)
    return [result.isfinite() for result in (y, mean, std, *back)]


def test_a_large_mean_does_not_hide_the_deviation() -> None:
    """E[x^2] - E[x]^2 in float32 would have no correct digit here: (10^4)^2 eps is 12."""
    x, level = random(1, 2, 20, 30, dtype=torch.float32, offset=1e4), level_of("random", 1, 20, 30)
    ones, zeros = torch.ones(2), torch.zeros(2)
    _, _, std = kernels.forward(x, level.foreground, None, ones, zeros, ones, zeros, 1e-5, True)
    truth = torch.stack(
        [x.double()[0][:, region[0, 0]].var(1, correction=0) for region in (level.foreground, level.background)]
    )
    torch.testing.assert_close(std[0].double(), (truth.T + 1e-5).sqrt(), rtol=1e-4, atol=0)


def test_registered_op_passes_opcheck() -> None:
    level = Regions(make_mask("random", 1, 2, 3), make_mask("random", 1, 2, 3, seed=5)).at(2, 3)
    x, *parameters = (t.requires_grad_() for t in inputs(1, 2, 2, 3))
    arguments = (x, level.foreground, level.valid, *parameters, 1e-5, True, "cuda")
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.scsco_fast.region_norm.default, arguments, test_utils=checks)


def test_addresses_pass_2_to_the_31(tmp_path: Path) -> None:
    """Channels 2^30 elements apart, in a sparse file of which a few pages exist."""
    (x, *p), level = inputs(1, 4, 2, 3, torch.float16), level_of("block", 1, 2, 3)
    apart = 2**30
    file = np.memmap(tmp_path / "sparse", np.float16, "w+", shape=(3 * apart + 6,))
    far = torch.from_numpy(file).as_strided((1, 4, 2, 3), (0, apart, 3, 1)).copy_(x)
    near, moved = [], []
    for image, results in ((x, near), (far, moved)):
        y, mean, std = kernels.forward(image, level.foreground, None, *p, 1e-5, True)
        results += [y, mean, std, *kernels.backward(image, image, level.foreground, None, p[0], p[2], mean, std, True)]
    assert all(torch.equal(a, b) for a, b in zip(near, moved, strict=True))


@pytest.mark.parametrize(("channels", "dtype", "reason"), [(2, torch.float64, "float64")])
def test_what_is_not_served_is_named(channels: int, dtype: torch.dtype, reason: str) -> None:
    x, *p = inputs(1, channels, 1, 2, dtype)
    assert reason in str(kernels.supports(x))
    with pytest.raises(ValueError, match=reason):
        kernels.forward(x, level_of("block", 1, 1, 2).foreground, None, *p, 1e-5, True)


def test_the_same_bits_every_time() -> None:
    (x, *p), level = inputs(2, 3, 40, 40), level_of("random", 2, 40, 40)
    results = []
    for _ in range(2):
        y, mean, std = kernels.forward(x, level.foreground, None, *p, 1e-5, True)
        results.append((y, mean, std, *kernels.backward(x, x, level.foreground, None, p[0], p[2], mean, std, True)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_parameters_of_another_dtype_and_stride() -> None:
    (x, *p), level = inputs(1, 4, 3, 5), level_of("random", 1, 3, 5)
    changed = [p[0].half(), p[1].repeat_interleave(2)[::2], p[2].double(), p[3].bfloat16()]
    got = kernels.forward(x, level.foreground, None, *changed, 1e-5, True)
    wanted = kernels.forward(x, level.foreground, None, *(t.float().contiguous() for t in changed), 1e-5, True)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_the_library_checks_what_it_is_given() -> None:
    (x, *p), mask = inputs(1, 4, 3, 5), torch.zeros(1, 15, dtype=torch.uint8)
    forward = operations().region_norm_forward
    with pytest.raises(RuntimeError, match=r"^foreground must have shape \(1, 15\), got \(1, 14\)$"):
        forward(x.flatten(2), mask[:, 1:], None, *p, 1e-5, True)
    with pytest.raises(RuntimeError, match="a kernel got a tensor of Double where it takes Float"):
        forward(x.flatten(2), mask, None, p[0].double(), *p[1:], 1e-5, True)
    with pytest.raises(RuntimeError, match="float32, float16 or bfloat16 is wanted, got Int"):
        forward(x.flatten(2).int(), mask, None, *p, 1e-5, True)


def test_an_empty_batch() -> None:
    check_empty = sf.ops.region_norm(torch.zeros(0, 3, 4, 4), torch.zeros(0, 1, 4, 4), backend="cuda")
    assert check_empty.shape == (0, 3, 4, 4)
