"""bain_norm of every backend against the float64 formulas, in one pass or composed of the attention and the affine."""

import pytest
import torch
from guarded import Guard
from mode import BACKEND, DTYPES, OTHER
from oracle import MASKS, OPCHECKS, assert_matches, make_mask, random
from torch import Tensor

import scsco_fast as sf
from scsco_fast.ops.backend import implements
from scsco_fast.regions import Regions

ONE_PASS = implements(BACKEND, "bain_norm")


def inputs(
    batch: int, height: int, width: int, dtype: torch.dtype = torch.float32, keys: int = 4, channels: int = 5
) -> list[Tensor]:
    """query, key, value, normalised and the four parameters."""
    shapes = [(batch, keys, height, width)] * 2 + [(batch, channels, height, width)] * 2
    maps = [random(*shape, seed=seed, dtype=dtype, offset=seed - 1.0) for seed, shape in enumerate(shapes)]
    wide = torch.promote_types(dtype, torch.float32)
    parameters = (random(channels, seed=seed, dtype=torch.float32, offset=0.5).to(wide) for seed in range(10, 14))
    return [*maps, *parameters]


def check(tensors: list[Tensor], regions: Regions | Tensor) -> None:
    """The parameters' gradients are float32, but of statistics that were multiplied in the maps' dtype."""
    dtype = tensors[0].dtype
    assert_matches(lambda q, k, v, n, *p: sf.ops.bain_norm(q, k, v, n, regions, *p), tensors, BACKEND, dtype)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_masks(mask: str, dtype: torch.dtype, guarded: Guard) -> None:
    check([guarded(t) for t in inputs(3, 5, 6, dtype)], Regions(make_mask(mask, 3, 5, 6)))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", [dtype for dtype in (torch.float64, torch.float32) if dtype in DTYPES])
def test_masks_with_excluded_pixels(mask: str, dtype: torch.dtype) -> None:
    check(inputs(3, 5, 6, dtype), Regions(make_mask(mask, 3, 5, 6), make_mask("random", 3, 5, 6, seed=5)))


@pytest.mark.parametrize("pixels", [1, 2, 15, 16, 17, 63, 65, 130])
def test_pixels(pixels: int, guarded: Guard) -> None:
    mask = make_mask("random", 1, 1, pixels)
    check([guarded(t) for t in inputs(1, 1, pixels)], Regions(mask, make_mask("random", 1, 1, pixels, seed=5)))


def test_widths_and_blocks_join(guarded: Guard) -> None:
    check([guarded(t) for t in inputs(1, 9, 16, torch.float16, 20, 40)], make_mask("random", 1, 9, 16))


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(dtype: torch.dtype, guarded: Guard) -> None:
    mask = make_mask("random", 2, 4, 3)
    *maps, a, b, c, d = inputs(2, 4, 3, dtype)
    last = [t.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) for t in maps]
    check([guarded(t) for t in (*last, a, b, c, d)], mask)
    check([*(t[:1].expand(2, -1, -1, -1) for t in maps), a.flip(0), b[:1].expand(5), c, d], mask)
    check([*(t.transpose(2, 3) for t in inputs(2, 3, 4, dtype)[:4]), a, b, c, d], mask)


def test_excluded_pixels_may_hold_nan() -> None:
    regions = Regions(make_mask("random", 2, 5, 7), make_mask("random", 2, 5, 7, seed=9))
    level = regions.at(5, 7)
    excluded = ~(level.foreground | level.background)
    *maps, fg_weight, fg_bias, bg_weight, bg_bias = inputs(2, 5, 7)
    parameters = [p.requires_grad_() for p in (fg_weight, fg_bias, bg_weight, bg_bias)]
    grad = random(2, 5, 5, 7, dtype=torch.float32)
    results = []
    for fill in (0.5, torch.nan):
        held = [t.masked_fill(excluded, fill).requires_grad_() for t in maps]
        y = sf.ops.bain_norm(*held, regions, *parameters, scale=0.5, backend=BACKEND)
        results.append((y, *torch.autograd.grad(y, [*held, *parameters], grad.masked_fill(excluded, fill))))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.skipif(not ONE_PASS, reason="this backend composes bain_norm of other operations")
def test_registered_op_passes_opcheck() -> None:
    """`test_aot_dispatch_dynamic` would compare rows of the saved buffers that nobody owns, which hold anything."""
    level = Regions(make_mask("random", 1, 2, 3)).at(2, 3)
    *maps, a, b, c, d = inputs(1, 2, 3)
    tensors = [t.requires_grad_() for t in (*maps, torch.stack([a, b, c, d]))]
    arguments = (*tensors[:4], level.order, level.counts, tensors[4], 0.5, 1e-5, BACKEND)
    torch.library.opcheck(torch.ops.scsco_fast.bain_norm.default, arguments, test_utils=OPCHECKS)


def test_module_equals_its_other_self() -> None:
    """BAIN calls the operation: its output and every gradient are those of another backend."""
    torch.manual_seed(0)
    bain = sf.BAIN(5, key_channels=3, project_value=True)
    with torch.no_grad():
        for seed, parameter in enumerate(bain.parameters()):
            parameter.add_(random(*parameter.shape, seed=seed, dtype=torch.float32) / 4)
    regions = Regions(make_mask("ragged", 3, 4, 5), make_mask("random", 3, 4, 5, seed=9))
    results = []
    for backend in (BACKEND, OTHER):
        x = random(3, 5, 4, 5, dtype=torch.float32).requires_grad_()
        with sf.use_backend(backend):
            y = bain(x, regions)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *bain.parameters()])])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.detach().abs().max()))


@pytest.mark.skipif(torch.float64 in DTYPES, reason="this backend computes in float64 too")
def test_a_float64_map_is_refused_and_not_computed_in_float32() -> None:
    maps = inputs(1, 2, 3)
    maps[3] = maps[3].double()
    with pytest.raises(RuntimeError, match="float64 inputs"):
        sf.ops.bain_norm(*maps[:4], make_mask("block", 1, 2, 3), backend=BACKEND)


def test_an_empty_batch() -> None:
    maps = [torch.zeros(0, 3, 4, 4, requires_grad=True) for _ in range(4)]
    gain = torch.ones(3, requires_grad=True)
    y = sf.ops.bain_norm(*maps, torch.zeros(0, 1, 4, 4), gain, backend=BACKEND)
    assert y.shape == (0, 3, 4, 4)
    assert torch.autograd.grad(y.sum(), gain)[0].tolist() == [0, 0, 0]
