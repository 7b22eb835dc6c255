"""What is particular to the Triton kernels of BAIN: splits of the keys, buffers, units; tests/contract has the rest."""

import math

import pytest
import torch
from attention_oracle import rounded, saved_by_pixel
from contract.test_bain_attention import check, inputs
from contract.test_bain_norm import check as check_norm
from contract.test_bain_norm import inputs as norm_inputs
from oracle import assert_matches, make_mask
from torch import Tensor

import scsco_fast as sf
from scsco_fast.kernels import MAX_PIXELS, refusal
from scsco_fast.kernels.bain_attention import launch as kernels
from scsco_fast.kernels.bain_attention import pack as packing
from scsco_fast.regions import Regions

DTYPES = [torch.float32, torch.float16]


@pytest.mark.parametrize("mask", ["random", "one pixel", "block", "ragged", "all but one", "full", "empty"])
def test_splits_of_the_keys_are_merged(mask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to eight splits: fewer where many pixels ask, some of them without keys, and all of them in "one pixel"."""
    monkeypatch.setattr(kernels, "SPLIT_KEYS", 8)
    monkeypatch.setattr(kernels, "MERGE_BLOCK_P", 16)
    assert kernels.splits_of(3, 8 * 9, 1, 64) == 8
    check(inputs(3, 8, 9, torch.float16), Regions(make_mask(mask, 3, 8, 9), make_mask("random", 3, 8, 9, seed=5)))


@pytest.mark.parametrize("mask", ["random", "full", "ragged"])
def test_splits_are_merged_into_the_output_of_bain_norm(mask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SPLIT_KEYS", 8)
    tensors = norm_inputs(2, 8, 9, torch.float16)
    check_norm(tensors, Regions(make_mask(mask, 2, 8, 9), make_mask("random", 2, 8, 9, seed=5)))


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


def test_images_past_32_bits_of_pixels_are_named() -> None:
    far = torch.empty(1, 1, 2**16, 2**15, device="meta")
    assert "2147483648 pixels in an image" in str(refusal("bain_attention", far, far, far))
    assert refusal("bain_attention", *(far[..., :-1],) * 3) is None
