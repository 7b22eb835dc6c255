"""BAIN's output from the attention's own pass, and its backward, against the float64 formulas."""

from collections.abc import Callable

import pytest
import torch
from oracle import assert_matches, make_mask, random
from torch import Tensor

import scsco_fast as sf
from scsco_fast.kernels import bain_attention as attention
from scsco_fast.kernels import bain_norm as kernels
from scsco_fast.regions import Regions

DTYPES = [torch.float32, torch.float16]
Guard = Callable[[Tensor], Tensor]


def inputs(
    batch: int, height: int, width: int, dtype: torch.dtype = torch.float32, keys: int = 4, channels: int = 5
) -> list[Tensor]:
    """query, key, value, normalised and the four parameters."""
    shapes = [(batch, keys, height, width)] * 2 + [(batch, channels, height, width)] * 2
    maps = [random(*shape, seed=seed, dtype=dtype, offset=seed - 1.0) for seed, shape in enumerate(shapes)]
    return [*maps, *(random(channels, seed=seed, dtype=torch.float32, offset=0.5) for seed in range(10, 14))]


def check(tensors: list[Tensor], regions: Regions | Tensor) -> None:
    """The parameters' gradients are float32, but of statistics that were multiplied in the maps' dtype."""
    dtype = tensors[0].dtype
    assert_matches(lambda q, k, v, n, *p: sf.ops.bain_norm(q, k, v, n, regions, *p), tensors, "triton", dtype)


@pytest.mark.parametrize("mask", ["random", "empty", "full", "one pixel", "all but one", "ragged"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_masks(mask: str, dtype: torch.dtype, guarded: Guard) -> None:
    check([guarded(t) for t in inputs(2, 3, 5, dtype)], Regions(make_mask(mask, 2, 3, 5)))


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
    level = Regions(make_mask("random", 2, 5, 7), make_mask("random", 2, 5, 7, seed=9)).at(5, 7)
    excluded = ~(level.foreground | level.background)
    *maps, fg_weight, fg_bias, bg_weight, bg_bias = inputs(2, 5, 7)
    grad = random(2, 5, 5, 7, dtype=torch.float32)
    regions = (level.order, level.counts)
    results = []
    for fill in (0.5, torch.nan):
        held = [t.masked_fill(excluded, fill) for t in maps]
        y, *saved = kernels.forward(*held, *regions, fg_weight, fg_bias, bg_weight, bg_bias, 0.5, 1e-5)
        dy = grad.masked_fill(excluded, fill)
        results.append((y, *kernels.backward(dy, *held, *regions, fg_weight, bg_weight, *saved, 0.5, 1e-5)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("mask", ["random", "full", "ragged"])
def test_splits_of_the_keys_are_merged(mask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "SPLIT_KEYS", 8)
    check(inputs(2, 8, 9, torch.float16), Regions(make_mask(mask, 2, 8, 9), make_mask("random", 2, 8, 9, seed=5)))


def test_registered_op_passes_opcheck() -> None:
    """`test_aot_dispatch_dynamic` would compare rows of the saved buffers that nobody owns, which hold anything."""
    level = Regions(make_mask("random", 1, 2, 3)).at(2, 3)
    maps = [t.requires_grad_() for t in inputs(1, 2, 3)]
    arguments = (*maps[:4], level.order, level.counts, *maps[4:], 0.5, 1e-5, "triton")
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.scsco_fast.bain_norm.default, arguments, test_utils=checks)


def test_module_equals_its_eager_self() -> None:
    """BAIN calls the operation: its output and every gradient are those of the eager backend."""
    torch.manual_seed(0)
    bain = sf.BAIN(5, key_channels=3, project_value=True)
    with torch.no_grad():
        for seed, parameter in enumerate(bain.parameters()):
            parameter.add_(random(*parameter.shape, seed=seed, dtype=torch.float32) / 4)
    regions = Regions(make_mask("ragged", 3, 4, 5), make_mask("random", 3, 4, 5, seed=9))
    results = []
    for backend in ("triton", "eager"):
        x = random(3, 5, 4, 5, dtype=torch.float32).requires_grad_()
        with sf.use_backend(backend):
            y = bain(x, regions)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *bain.parameters()])])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.detach().abs().max()))


def test_a_float64_map_is_refused_and_not_computed_in_float32() -> None:
    maps = inputs(1, 2, 3)
    maps[3] = maps[3].double()
    with pytest.raises(RuntimeError, match="float64 inputs"):
        sf.ops.bain_norm(*maps[:4], make_mask("block", 1, 2, 3), backend="triton")
