"""bain_attention of every backend against the float64 formulas: masks, shapes, widths, layouts, numerics, addresses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from attention_oracle import assert_digits_kept_over_many_keys
from guarded import Guard
from mode import BACKEND, DTYPES, OTHER
from oracle import MASKS, OPCHECKS, assert_matches, make_mask, random, run
from torch import Tensor

import scsco_fast as sf
from scsco_fast.eager import bain_attention as eager
from scsco_fast.ops.backend import implementation, refusal
from scsco_fast.regions import RegionLevel, Regions

kernels = implementation(BACKEND, "bain_attention")
REFUSED = {
    "eager": [],
    "cuda": [(4, 4, torch.float64, "float64")],
    "triton": [
        (257, 4, torch.float32, "257 query channels"),
        (4, 513, torch.float32, "513 channels"),
        (4, 4, torch.float64, "float64"),
    ],
}


def inputs(
    batch: int, height: int, width: int, dtype: torch.dtype = torch.float32, keys: int = 4, channels: int = 5
) -> list[Tensor]:
    shapes = [(batch, keys, height, width)] * 2 + [(batch, channels, height, width)]
    return [random(*shape, seed=seed, dtype=dtype, offset=seed - 1.0) for seed, shape in enumerate(shapes)]


def check(tensors: list[Tensor], regions: Regions | RegionLevel | Tensor) -> None:
    assert_matches(lambda q, k, v: sf.ops.bain_attention(q, k, v, regions), tensors, BACKEND)


def results(tensors: list[Tensor], grads: list[Tensor], level: RegionLevel, scale: float = 0.5) -> list[Tensor]:
    """What forward and backward return; of what is saved, the compiled kernels' alone is defined at every place."""
    mean, std, *saved = kernels.forward(*tensors, level.order, level.counts, scale, 1e-5)
    gradients = kernels.backward(*grads, *tensors, level.order, level.counts, *saved, scale, 1e-5)
    return [mean, std, *(saved if BACKEND == "cuda" else ()), *gradients]


@pytest.mark.usefixtures("either_product")
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_masks(mask: str, dtype: torch.dtype, guarded: Guard) -> None:
    check([guarded(t) for t in inputs(3, 7, 9, dtype)], Regions(make_mask(mask, 3, 7, 9)))


@pytest.mark.parametrize("pixels", [1, 2, 15, 16, 17, 31, 63, 64, 65, 127, 130])
def test_pixels(pixels: int, guarded: Guard) -> None:
    mask = make_mask("random", 1, 1, pixels)
    check([guarded(t) for t in inputs(1, 1, pixels)], Regions(mask, make_mask("random", 1, 1, pixels, seed=5)))


@pytest.mark.parametrize("mask", ["block", "all but one"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_join(mask: str, dtype: torch.dtype) -> None:
    check(inputs(1, 12, 16, dtype), make_mask(mask, 1, 12, 16))


@pytest.mark.parametrize(("keys", "channels"), [(1, 1), (20, 40), (64, 100), (130, 150)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_widths(keys: int, channels: int, dtype: torch.dtype, guarded: Guard) -> None:
    """Widths that are no powers of two; the last is split over blocks of channels and of dq's and dk's columns."""
    check([guarded(t) for t in inputs(1, 3, 5, dtype, keys, channels)], make_mask("random", 1, 3, 5))


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(dtype: torch.dtype, guarded: Guard) -> None:
    mask = make_mask("random", 2, 4, 3)
    tensors = [t.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) for t in inputs(2, 4, 3, dtype)]
    check([guarded(t) for t in tensors], mask)
    check([t[:1].expand(2, -1, -1, -1) for t in tensors], mask)
    check([t.transpose(2, 3) for t in inputs(2, 3, 4, dtype)], mask)


def test_expanded_gradient() -> None:
    mask, grads = make_mask("random", 2, 4, 4), []
    tensors = [t.requires_grad_() for t in inputs(2, 4, 4)]
    for backend in (BACKEND, OTHER):
        mean, std = sf.ops.bain_attention(*tensors, mask, backend=backend)
        grads.append(torch.autograd.grad(mean.sum() + 2 * std.sum(), tensors))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_excluded_pixels_may_hold_nan() -> None:
    level = Regions(make_mask("random", 2, 5, 7), make_mask("random", 2, 5, 7, seed=9)).at(5, 7)
    excluded, grads = ~(level.foreground | level.background), [random(2, 5, 5, 7, seed=s).float() for s in (1, 2)]
    clean = inputs(2, 5, 7)
    poisoned = [[t.masked_fill(excluded, torch.nan) for t in group] for group in (clean, grads)]
    assert all(torch.equal(a, b) for a, b in zip(results(clean, grads, level), results(*poisoned, level), strict=True))


@pytest.mark.parametrize("scale", [1.0, 1e-7, 1e7])
def test_float16_gradients_of_any_size(scale: float) -> None:
    """Gradients below float16's smallest number: value, and so they, are float32 as under autocast."""
    query, key, value = inputs(1, 4, 5, torch.float16)
    value = value.float()
    level = Regions(make_mask("block", 1, 4, 5)).at(4, 5)
    grads = [scale * random(1, 5, 4, 5, seed=seed, dtype=torch.float32) for seed in (1, 2)]
    *_, d_value = results([query, key, value], grads, level)
    wide = [t.double() for t in (query, key, value)]
    saved = eager.forward(*wide, level.order, level.counts, 0.5, 1e-5)
    *_, truth = eager.backward(*(g.double() for g in grads), *wide, level.order, level.counts, *saved[2:], 0.5, 1e-5)
    assert float((d_value - truth).abs().max() / truth.abs().max()) < 2 * torch.finfo(torch.float16).eps


def test_float16_gradients_over_many_keys() -> None:
    assert_digits_kept_over_many_keys(kernels)


@pytest.mark.parametrize(("dtype", "offset", "spread"), [(torch.float32, 1e3, 1.0), (torch.float16, 1e3, 300.0)])
def test_large_values_keep_their_deviation(dtype: torch.dtype, offset: float, spread: float) -> None:
    """Without the pivot float32 loses six digits; without the unit float16 squares overflow."""
    query, key, value = inputs(1, 6, 8, torch.float32)
    tensors = [t.to(dtype) for t in (query, key, value * spread + offset)]
    mask = make_mask("block", 1, 6, 8)
    _, std = sf.ops.bain_attention(*tensors, mask, backend=BACKEND)
    _, truth = sf.ops.bain_attention(*(t.double() for t in tensors), mask, backend="reference")
    torch.testing.assert_close(std.double(), truth, rtol=4 * torch.finfo(dtype).eps + 1e-5, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_constant_background_and_extreme_logits_stay_finite(dtype: torch.dtype) -> None:
    query, key, value = inputs(1, 3, 4, dtype)
    mask = make_mask("block", 1, 3, 4)
    constant = torch.full_like(value, 0.7)
    _, std, *grads = run(lambda q, k, v: sf.ops.bain_attention(q, k, v, mask), [query, key, constant], BACKEND)
    expected = torch.full_like(std[..., 0, 0], 1e-5).sqrt()
    torch.testing.assert_close(std[..., 0, 0], expected, rtol=1e-3, atol=0)
    assert all(torch.isfinite(grad).all() for grad in grads)
    sharp = run(lambda q, k, v: sf.ops.bain_attention(q, k, v, mask, scale=1e4), [query, key, value], BACKEND)
    assert all(torch.isfinite(result).all() for result in sharp)


def test_registered_op_passes_opcheck() -> None:
    """`test_aot_dispatch_dynamic` would compare rows of the saved buffers that nobody owns, which hold anything."""
    level = Regions(make_mask("random", 1, 2, 3)).at(2, 3)
    tensors = [t.requires_grad_() for t in inputs(1, 2, 3)]
    arguments = (*tensors, level.order, level.counts, 0.5, 1e-5, BACKEND)
    torch.library.opcheck(torch.ops.scsco_fast.bain_attention.default, arguments, test_utils=OPCHECKS)


def test_addresses_pass_2_to_the_31(tmp_path: Path) -> None:
    """Channels 2^30 elements apart, in a sparse file of which a few pages exist."""
    pixels, channels, apart = 6, 4, 2**30
    tensors = inputs(1, 2, 3, torch.float16, 4, channels)
    grads = [random(1, channels, 2, 3, seed=seed, dtype=torch.float16) for seed in (1, 2)]
    level = Regions(make_mask("block", 1, 2, 3)).at(2, 3)
    file = np.memmap(tmp_path / "sparse", np.float16, "w+", shape=((channels - 1) * apart + pixels,))
    far = torch.from_numpy(file).as_strided((1, channels, 2, 3), (0, apart, 3, 1))
    near = results(tensors, grads, level)
    for index in (0, 2, 3):
        moved = [far.copy_(t) if i == index else t for i, t in enumerate((*tensors, *grads))]
        assert all(torch.equal(a, b) for a, b in zip(results(moved[:3], moved[3:], level), near, strict=True))


@pytest.mark.parametrize(("keys", "channels", "dtype", "reason"), REFUSED[BACKEND])
def test_what_is_not_served_is_named(keys: int, channels: int, dtype: torch.dtype, reason: str) -> None:
    query, key, value = inputs(1, 2, 2, dtype, keys, channels)
    assert reason in str(refusal(BACKEND, "bain_attention", value, query, key))
    with pytest.raises(RuntimeError, match=reason):
        sf.ops.bain_attention(query, key, value, make_mask("block", 1, 2, 2), backend=BACKEND)


def test_an_empty_batch() -> None:
    empty = [torch.zeros(0, 3, 4, 4) for _ in range(3)]
    mean, std = sf.ops.bain_attention(*empty, torch.zeros(0, 1, 4, 4), backend=BACKEND)
    assert mean.shape == std.shape == (0, 3, 4, 4)
