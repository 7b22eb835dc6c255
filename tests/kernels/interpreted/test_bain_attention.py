"""bain_attention's kernels against the float64 formulas: masks, shapes, widths, layouts, numerics, int64 addresses."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from attention_oracle import assert_digits_kept_over_many_keys, rounded, saved_by_pixel
from oracle import assert_matches, make_mask, random, run
from torch import Tensor

import scsco_fast as sf
from scsco_fast.eager import bain_attention as eager
from scsco_fast.kernels import MAX_PIXELS, packing, refusal
from scsco_fast.kernels import bain_attention as kernels
from scsco_fast.regions import RegionLevel, Regions

DTYPES = [torch.float32, torch.float16]
Guard = Callable[[Tensor], Tensor]


def inputs(
    batch: int, height: int, width: int, dtype: torch.dtype = torch.float32, keys: int = 4, channels: int = 5
) -> list[Tensor]:
    shapes = [(batch, keys, height, width)] * 2 + [(batch, channels, height, width)]
    return [random(*shape, seed=seed, dtype=dtype, offset=seed - 1.0) for seed, shape in enumerate(shapes)]


def check(tensors: list[Tensor], regions: Regions | RegionLevel | Tensor) -> None:
    assert_matches(lambda q, k, v: sf.ops.bain_attention(q, k, v, regions), tensors, "triton")


@pytest.mark.parametrize("mask", ["random", "empty", "full", "one pixel", "all but one", "ragged"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_masks(mask: str, dtype: torch.dtype, guarded: Guard) -> None:
    check([guarded(t) for t in inputs(2, 3, 5, dtype)], Regions(make_mask(mask, 2, 3, 5)))


@pytest.mark.parametrize("pixels", [1, 2, 15, 16, 17, 31, 63, 64, 65, 127, 130])
def test_pixels(pixels: int, guarded: Guard) -> None:
    mask = make_mask("random", 1, 1, pixels)
    check([guarded(t) for t in inputs(1, 1, pixels)], Regions(mask, make_mask("random", 1, 1, pixels, seed=5)))


@pytest.mark.parametrize("mask", ["block", "all but one"])
def test_blocks_join(mask: str) -> None:
    check(inputs(1, 12, 16, torch.float16), make_mask(mask, 1, 12, 16))


@pytest.mark.parametrize(("keys", "channels"), [(1, 1), (20, 40), (64, 100), (130, 150)])
def test_widths(keys: int, channels: int, guarded: Guard) -> None:
    """Widths that are no powers of two; the last is split over blocks of channels and columns."""
    check([guarded(t) for t in inputs(1, 3, 5, torch.float16, keys, channels)], make_mask("random", 1, 3, 5))


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(dtype: torch.dtype, guarded: Guard) -> None:
    mask = make_mask("random", 2, 4, 3)
    tensors = [t.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) for t in inputs(2, 4, 3, dtype)]
    check([guarded(t) for t in tensors], mask)
    check([t[:1].expand(2, -1, -1, -1) for t in tensors], mask)
    check([t.transpose(2, 3) for t in inputs(2, 3, 4, dtype)], mask)


@pytest.mark.parametrize("mask", ["random", "one pixel", "block", "ragged", "all but one", "full", "empty"])
def test_splits_of_the_keys_are_merged(mask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to eight splits: fewer where many pixels ask, some of them without keys, and all of them in "one pixel"."""
    monkeypatch.setattr(kernels, "SPLIT_KEYS", 8)
    monkeypatch.setattr(kernels, "MERGE_BLOCK_P", 16)
    assert kernels.splits_of(3, 8 * 9, 1, 64) == 8
    check(inputs(3, 8, 9, torch.float16), Regions(make_mask(mask, 3, 8, 9), make_mask("random", 3, 8, 9, seed=5)))


def test_small_grids_split_the_keys_by_shape_alone() -> None:
    """At most eight, each of at least 512 keys, and none where blocks of queries fill a GPU."""
    found = {(batch, side): kernels.splits_of(batch, side * side, 1, 64) for batch in (1, 16) for side in (16, 64, 128)}
    assert found == {(1, 16): 1, (1, 64): 8, (1, 128): 8, (16, 16): 1, (16, 64): 2, (16, 128): 1}


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_maps_form_their_moments_in_a_launch_of_their_own(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "FUSED_PIXELS", 0)
    check(inputs(2, 7, 19, dtype), Regions(make_mask("random", 2, 7, 19), make_mask("random", 2, 7, 19, seed=5)))


@pytest.mark.parametrize("scale", [-0.7, 0.0])
def test_scales_that_are_not_positive(scale: float) -> None:
    """The kernels scale inside exp2's argument, where only a positive scale keeps the largest logit the largest."""
    mask = make_mask("random", 1, 5, 7)
    assert_matches(lambda q, k, v: sf.ops.bain_attention(q, k, v, mask, scale=scale), inputs(1, 5, 7), "triton")


def test_channels_last_maps_give_channels_last_maps() -> None:
    query, key, value = (t.to(memory_format=torch.channels_last).requires_grad_() for t in inputs(2, 4, 3))
    mean, std = sf.ops.bain_attention(query, key, value, make_mask("random", 2, 4, 3), backend="triton")
    seeds = [torch.ones_like(t) for t in (mean, std)]
    maps = mean, std, *torch.autograd.grad([mean, std], [query, key, value], seeds)
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in maps)


def test_tf32_rows_are_rounded_and_not_left_to_be_truncated() -> None:
    """Every operand that lies in memory has its low 13 bits 0, and is the nearest such number."""
    level = Regions(make_mask("random", 1, 5, 7)).at(5, 7)
    query, key, value = inputs(1, 5, 7)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        _, _, packed, moments, _ = kernels.forward(query, key, value, level.order, level.counts, 0.5, 1e-5)
    finally:
        torch.set_float32_matmul_precision(before)
    n_fg, n_bg = level.counts[0].tolist()
    wanted = rounded(query.flatten(2)[0, :, level.order[0, :n_fg]].T, "tf32").float()
    assert torch.equal(packed[0, :n_fg, :4], wanted)
    for rows in (packed[0, -n_bg:, :4], moments[0, -n_bg:, :10]):
        assert rows.isfinite().all()
        assert not (rows.view(torch.int32) & 0x1FFF).any()


def test_the_backward_keeps_no_map_that_it_does_not_read() -> None:
    """Queries, keys and values are saved as rows only: what autograd holds of the maps has one element."""
    held: list[Tensor] = []
    query, key, value = (t.requires_grad_() for t in inputs(1, 4, 5))

    def keep(tensor: Tensor) -> Tensor:
        held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        sf.ops.bain_attention(query, key, value, make_mask("random", 1, 4, 5), backend="triton")
    assert [t.untyped_storage().nbytes() // t.element_size() for t in held if t.dim() == 4] == [1, 1, 1]


def test_excluded_pixels_may_hold_nan() -> None:
    level = Regions(make_mask("random", 2, 5, 7), make_mask("random", 2, 5, 7, seed=9)).at(5, 7)
    excluded = ~(level.foreground | level.background)
    clean = inputs(2, 5, 7)
    grads = [random(2, 5, 5, 7, seed=seed, dtype=torch.float32) for seed in (1, 2)]
    results = []
    for tensors in (clean, [t.masked_fill(excluded, torch.nan) for t in clean]):
        mean, std, *saved = kernels.forward(*tensors, level.order, level.counts, 0.5, 1e-5)
        gradients = kernels.backward(*grads, *tensors, level.order, level.counts, *saved, 0.5, 1e-5)
        results.append((mean, std, *gradients))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_saved_buffers_hold_what_their_description_says(dtype: torch.dtype) -> None:
    """Moments of queries from the front of a buffer, values of keys from its back, scalars beside them."""
    channels = 5
    level = Regions(make_mask("ragged", 3, 4, 5, seed=3)).at(4, 5)
    tensors = inputs(3, 4, 5, dtype, channels=channels)
    _, _, packed, moments, scalars = kernels.forward(*tensors, level.order, level.counts, 0.5, 1e-5)
    first, variance, lse = (saved.float() for saved in saved_by_pixel(tensors, level, 0.5))
    values = moments.view(dtype)
    for image, (n_fg, n_bg) in enumerate(level.counts.tolist()):
        if not (n_fg and n_bg):
            continue
        queries, keys = level.order[image, :n_fg], level.order[image, 20 - n_bg :]
        pivot, unit = scalars[image, 20:].view(2, -1)[:, :channels]
        query, key, value = (t[image].flatten(1).T for t in tensors)
        assert torch.equal(packed[image, :n_fg, :4], query[queries])
        assert torch.equal(packed[image, 20 - n_bg :, :4], key[keys])
        torch.testing.assert_close(scalars[image, :n_fg] / math.log2(math.e), lse[image, queries], rtol=1e-3, atol=1e-3)
        pairs = moments[image, :n_fg].unflatten(1, (-1, 2))[:, :channels]
        for ours, theirs in zip(pairs.unbind(2), (first, variance), strict=True):
            torch.testing.assert_close(ours, theirs[image, queries], rtol=4e-3, atol=4e-3)
        rows = values[image].reshape(-1)[-n_bg * moments.shape[2] :].view(n_bg, -1, 2)[:, :channels].float()
        torch.testing.assert_close(rows[..., 0] * unit + pivot, value[keys].float(), rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(rows[..., 1], rows[..., 0].square(), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("scale", [1.0, 1e-7, 1e7])
def test_float16_gradients_of_any_size(scale: float) -> None:
    """Gradients below float16's smallest number: value, and so they, are float32 as under autocast."""
    query, key, value = inputs(1, 4, 5, torch.float16)
    value = value.float()
    level = Regions(make_mask("block", 1, 4, 5)).at(4, 5)
    grads = [scale * random(1, 5, 4, 5, seed=seed, dtype=torch.float32) for seed in (1, 2)]
    saved = kernels.forward(query, key, value, level.order, level.counts, 0.5, 1e-5)
    *_, d_value = kernels.backward(*grads, query, key, value, level.order, level.counts, *saved[2:], 0.5, 1e-5)
    wide = [t.double() for t in (query, key, value)]
    saved = eager.forward(*wide, level.order, level.counts, 0.5, 1e-5)
    *_, truth = eager.backward(*(g.double() for g in grads), *wide, level.order, level.counts, *saved[2:], 0.5, 1e-5)
    assert float((d_value - truth).abs().max() / truth.abs().max()) < 2 * torch.finfo(torch.float16).eps


def test_float16_gradients_over_many_keys() -> None:
    assert_digits_kept_over_many_keys(kernels)


@pytest.mark.parametrize("pixels", [1, 2**16, 2**18 - 1, 2**18, 2**18 + 1, 2**22, MAX_PIXELS])
def test_the_square_of_one_outlier_fits_float16(pixels: int) -> None:
    """A lone pixel of n is sqrt(n) deviations from the mean, and the unit is more than two."""
    assert (math.sqrt(pixels) / (2 * packing.headroom_of(pixels))) ** 2 <= 2**14


def test_values_of_any_size_under_float16_queries() -> None:
    query, key, value = inputs(1, 4, 5, torch.float16)
    mask = make_mask("block", 1, 4, 5)
    for size in (1e-10, 1.0, 1e10, 1e16):
        results = sf.ops.bain_attention(query, key, size * value.float(), mask, backend="triton")
        wide = sf.ops.bain_attention(query, key, size * value.float(), mask, backend="eager")
        for ours, truth in zip(results, wide, strict=True):
            assert float((ours - truth).abs().max()) <= 4 * torch.finfo(torch.float16).eps * float(truth.abs().max())


@pytest.mark.parametrize(("dtype", "offset", "spread"), [(torch.float32, 1e3, 1.0), (torch.float16, 1e3, 300.0)])
def test_large_values_keep_their_deviation(dtype: torch.dtype, offset: float, spread: float) -> None:
    """Without the pivot float32 loses six digits; without the unit float16 squares overflow."""
    query, key, value = inputs(1, 6, 8, torch.float32)
    tensors = [t.to(dtype) for t in (query, key, value * spread + offset)]
    mask = make_mask("block", 1, 6, 8)
    _, std = sf.ops.bain_attention(*tensors, mask, backend="triton")
    _, truth = sf.ops.bain_attention(*(t.double() for t in tensors), mask, backend="reference")
    torch.testing.assert_close(std.double(), truth, rtol=4 * torch.finfo(dtype).eps + 1e-5, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_constant_background_and_extreme_logits_stay_finite(dtype: torch.dtype) -> None:
    query, key, value = inputs(1, 3, 4, dtype)
    mask = make_mask("block", 1, 3, 4)
    constant = torch.full_like(value, 0.7)
    _, std, *grads = run(lambda q, k, v: sf.ops.bain_attention(q, k, v, mask), [query, key, constant], "triton")
    expected = torch.full_like(std[..., 0, 0], 1e-5).sqrt()
    torch.testing.assert_close(std[..., 0, 0], expected, rtol=1e-3, atol=0)
    assert all(torch.isfinite(grad).all() for grad in grads)
    sharp = run(lambda q, k, v: sf.ops.bain_attention(q, k, v, mask, scale=1e4), [query, key, value], "triton")
    assert all(torch.isfinite(result).all() for result in sharp)


def test_registered_op_passes_opcheck() -> None:
    """`test_aot_dispatch_dynamic` would compare rows of the saved buffers that nobody owns, which hold anything."""
    level = Regions(make_mask("random", 1, 2, 3)).at(2, 3)
    tensors = [t.requires_grad_() for t in inputs(1, 2, 3)]
    arguments = (*tensors, level.order, level.counts, 0.5, 1e-5, "triton")
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.scsco_fast.bain_attention.default, arguments, test_utils=checks)


def test_addresses_pass_2_to_the_31(tmp_path: Path) -> None:
    """Channels 2^30 elements apart, in a sparse file of which a few pages exist."""
    pixels, channels, apart = 6, 4, 2**30
    tensors = inputs(1, 2, 3, torch.float16, 4, channels)
    level = Regions(make_mask("block", 1, 2, 3)).at(2, 3)
    file = np.memmap(tmp_path / "sparse", np.float16, "w+", shape=((channels - 1) * apart + pixels,))
    far = torch.from_numpy(file).as_strided((1, channels, 2, 3), (0, apart, 3, 1))
    near = kernels.forward(*tensors, level.order, level.counts, 0.5, 1e-5)
    for index in (0, 2):
        moved = [far.copy_(t) if i == index else t for i, t in enumerate(tensors)]
        results = kernels.forward(*moved, level.order, level.counts, 0.5, 1e-5)
        assert all(torch.equal(a, b) for a, b in zip(results[:2], near[:2], strict=True))


@pytest.mark.parametrize(
    ("keys", "channels", "dtype", "reason"),
    [
        (257, 4, torch.float32, "257 query channels"),
        (4, 513, torch.float32, "513 channels"),
        (4, 4, torch.float64, "float64"),
    ],
)
def test_what_is_not_served_is_named(keys: int, channels: int, dtype: torch.dtype, reason: str) -> None:
    tensors = inputs(1, 2, 2, dtype, keys, channels)
    level = Regions(make_mask("block", 1, 2, 2)).at(2, 2)
    assert reason in str(kernels.supports(*tensors))
    with pytest.raises(ValueError, match=reason):
        kernels.forward(*tensors, level.order, level.counts, 1.0, 1e-5)


def test_images_past_32_bits_of_pixels_are_named() -> None:
    far = torch.empty(1, 1, 2**16, 2**15, device="meta")
    assert "2147483648 pixels in an image" in str(refusal("bain_attention", far, far, far))
    assert refusal("bain_attention", *(far[..., :-1],) * 3) is None
