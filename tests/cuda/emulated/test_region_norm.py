"""What is particular to region_norm compiled from csrc/: tiles and splits, vectors, its checks. See tests/contract."""

from types import ModuleType

import pytest
import torch
from contract.test_region_norm import check, inputs
from oracle import make_mask, random
from torch import Tensor

from scsco_fast.cuda import region_norm as kernels
from scsco_fast.cuda.library import operations
from scsco_fast.eager import region_norm as eager
from scsco_fast.regions import RegionLevel, Regions

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("mask", ["random", "block"])
@pytest.mark.parametrize("pixels", [(25, 33), (37, 61), (181, 183), (96, 100), (366, 364)])
def test_splits_join(pixels: tuple[int, int], mask: str) -> None:
    """One tile; three splits of a tile; 17 splits, of two tiles and the last of one. A tile is 1024 pixels, or, where
    four pixels are read at once, 4096; more than 32 are shared out among fewer splits."""
    check(inputs(1, 1, *pixels), make_mask(mask, 1, *pixels))


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
        where = (ours, level.foreground, level.valid, torch.stack(p))
        y, mean, std = kernels.forward(*where, 1e-5, True)
        back = kernels.backward(dy, *where, mean, std, True)
        assert y.is_contiguous()
        assert back[0].is_contiguous()
        results.append((y, mean, std, *back))
    check([x.to(memory_format=torch.channels_last), *p], Regions(level.foreground, level.valid))
    for last, raster in zip(*results, strict=True):
        rounding = 2 * torch.finfo(last.dtype).eps if last.dtype != torch.float32 else 1e-5
        torch.testing.assert_close(last, raster, rtol=rounding, atol=rounding * float(raster.abs().max()))


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
    module: ModuleType, level: RegionLevel, adapt: bool, x: Tensor, grad: Tensor, *parameters: Tensor
) -> list[Tensor]:
    """Which numbers are finite: of the outputs, and of the gradients of x and the parameters."""
    where = (x, level.foreground, level.valid, torch.stack(parameters))
    y, mean, std = module.forward(*where, 1e-5, adapt)
    back = module.backward(grad, *where, mean, std, adapt)
    return [result.isfinite() for result in (y, mean, std, *back)]


def test_the_library_checks_what_it_is_given() -> None:
    (x, *p), mask = inputs(1, 4, 3, 5), torch.zeros(1, 15, dtype=torch.uint8)
    affine = torch.stack(p)
    forward = operations().region_norm_forward
    with pytest.raises(RuntimeError, match=r"^foreground must have shape \(1, 15\), got \(1, 14\)$"):
        forward(x.flatten(2), mask[:, 1:], None, affine, 1e-5, True)
    with pytest.raises(RuntimeError, match="a kernel got a tensor of Double where it takes Float"):
        forward(x.flatten(2), mask, None, affine.double(), 1e-5, True)
    with pytest.raises(RuntimeError, match=r"^affine must have shape \(4, 4\), got \(3, 4\)$"):
        forward(x.flatten(2), mask, None, affine[1:], 1e-5, True)
    with pytest.raises(RuntimeError, match="affine must be contiguous"):
        forward(x.flatten(2), mask, None, affine.T, 1e-5, True)
    with pytest.raises(RuntimeError, match="float32, float16 or bfloat16 is wanted, got Int"):
        forward(x.flatten(2).int(), mask, None, affine, 1e-5, True)
