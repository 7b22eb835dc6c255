"""What is particular to bain_attention compiled from csrc/: shared memory, products, NaN, checks; see contract/ too."""

import math

import pytest
import torch
from attention_oracle import KINDS, assert_accurate, both, saved_by_pixel
from attention_oracle import inputs as attention_inputs
from contract.test_bain_attention import check, inputs, results
from oracle import assert_matches, make_mask, random, run

import scsco_fast as sf
from scsco_fast.cuda import bain_attention as kernels
from scsco_fast.cuda.library import operations
from scsco_fast.eager import bain_attention as eager
from scsco_fast.regions import Regions

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


# Two stages of what a block walks, one stage, and rows of which only some columns stand there.
@pytest.mark.parametrize("shared", [227, 120, 99, 64])
@pytest.mark.parametrize(("keys", "channels"), [(64, 64), (64, 100), (200, 150)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_stands_in_shared_memory_changes_no_bit(
    dtype: torch.dtype, keys: int, channels: int, shared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device grants a block from 64 KiB (compute capability 7.5) to 227 KiB (9.0)."""
    tensors, level = inputs(1, 9, 20, dtype, keys, channels), Regions(make_mask("block", 1, 9, 20)).at(9, 20)
    grads = [random(1, channels, 9, 20, seed=seed, dtype=dtype) for seed in (1, 2)]
    plenty = results(tensors, grads, level)
    monkeypatch.setenv("SCSCO_EMULATED_SHARED_BYTES", str(shared * 1024))
    assert all(torch.equal(a, b) for a, b in zip(results(tensors, grads, level), plenty, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "keys", "channels"), [(7, 70, 100), (9, 20, 40), (12, 64, 16)])
def test_every_kind_of_product(kind: str, size: int, keys: int, channels: int) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
    try:
        tensors, level = attention_inputs(kind, 3, size, keys, channels, "cpu")
        assert_accurate(kernels, tensors, level, kind)
        assert all(torch.equal(a, b) for a, b in zip(*(both(kernels, tensors, level) for _ in range(2)), strict=True))
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("rise", [0.02, 0.5, -0.5])
def test_peaks_are_followed(rise: float) -> None:
    """Logits that rise by 1, 32 or -32, in base 2, per 64 keys: within the slack, past it every time, past it once."""
    query, key, value = inputs(1, 15, 16)
    query[:] = 1.0
    ramp = torch.arange(240.0) - (239 if rise > 0 else 0)
    key[:] = rise * math.log(2) / 4 * ramp.reshape(15, 16)
    tensors, mask = [query, key, value], make_mask("one pixel", 1, 15, 16)
    assert_matches(lambda q, k, v: sf.ops.bain_attention(q, k, v, mask, scale=1.0), tensors, "cuda")


@pytest.mark.parametrize("scale", [-2.0, 0.0, 2.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_that_are_not_there_weigh_nothing(dtype: torch.dtype, scale: float) -> None:
    """Fewer keys than a block has, all of one logit: of 2^-369 or 2^369 times the weight of zeros, or the same."""
    query, key, value = inputs(1, 3, 5, dtype)
    tensors, mask = [torch.full_like(query, 2.0), torch.full_like(key, 16.0), value], make_mask("block", 1, 3, 5)
    ours, truths = (
        run(lambda q, k, v: sf.ops.bain_attention(q, k, v, mask, scale=scale), group, backend)
        for group, backend in ((tensors, "cuda"), ([t.double() for t in tensors], "reference"))
    )
    assert all(torch.isfinite(result).all() for result in ours)
    for index in (0, 1, 4):  # mean, std and the gradient of value; gradients of the logits add up to 0
        error, size = (float(t.abs().max()) for t in (ours[index].double() - truths[index], truths[index]))
        assert error <= 4 * torch.finfo(dtype).eps * size


def test_weights_add_up_to_one_as_they_are_used() -> None:
    """exp(-0.208) lies half-way between two float16 numbers: summed unrounded, the mean would be off 3e-4."""
    query, key, value = torch.ones(1, 1, 5, 8).half(), torch.full((1, 1, 5, 8), -20.0).half(), -torch.ones(1, 1, 5, 8)
    key[:, :, 1:3], value[:, :, 1:3] = -0.208, 1.0
    key[:, :, 1, 0] = 0.0
    mask = torch.zeros(1, 1, 5, 8)
    mask[:, :, 0] = 1
    mean, _ = sf.ops.bain_attention(query, key, value, mask, scale=1.0, backend="cuda")
    torch.testing.assert_close(mean[:, :, 0], torch.ones(1, 1, 8), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtypes", ["hhf", "bbf", "ffh", "hff", "bhh"])
def test_dtypes_may_differ(dtypes: str) -> None:
    """Products take the common dtype of query and key; results have the dtypes of their inputs."""
    names = {"h": torch.float16, "b": torch.bfloat16, "f": torch.float32}
    tensors = [t.to(names[name]) for t, name in zip(inputs(1, 4, 5), dtypes, strict=True)]
    level = Regions(make_mask("block", 1, 4, 5)).at(4, 5)
    grads = [random(1, 5, 4, 5, seed=seed, dtype=torch.float32) for seed in (1, 2)]
    ours, wide = results(tensors, grads, level), [t.double() for t in tensors]
    mean, std, *saved = eager.forward(*wide, level.order, level.counts, 0.5, 1e-5)
    gradients = eager.backward(*grads, *wide, level.order, level.counts, *saved, 0.5, 1e-5)
    truths = [mean, std, *saved_by_pixel(wide, level, 0.5), *gradients]
    product = torch.promote_types(tensors[0].dtype, tensors[1].dtype)
    eps = max(torch.finfo(t.dtype).eps for t in (*tensors, torch.empty(0, dtype=product)))
    assert [t.dtype for t in ours[5:]] == [t.dtype for t in tensors]
    for a, b in zip(ours, truths, strict=True):
        assert float((a - b).abs().max()) <= 4 * eps * float(b.abs().max())


def test_saved_tensors_hold_what_their_description_says() -> None:
    level = Regions(make_mask("ragged", 3, 4, 5, seed=3)).at(4, 5)
    _, _, *saved = kernels.forward(*inputs(3, 4, 5), level.order, level.counts, 0.5, 1e-5)
    for ours, truth in zip(saved, saved_by_pixel(inputs(3, 4, 5), level, 0.5), strict=True):
        assert ours.is_contiguous()
        torch.testing.assert_close(ours, truth.float(), rtol=1e-5, atol=1e-5)


def test_float16_gradients_of_an_outlier_in_every_channel() -> None:
    """Half of the weight on one pixel, whose 1024 values are all far off: their gradients add up in the logits'."""
    size, channels = 16, 1024
    query, key = torch.zeros(1, 4, size, size), torch.zeros(1, 4, size, size)
    query[:, 0], key[:, 0, 8, 8] = 1.0, math.log(size * size)
    value = 0.01 * random(1, channels, size, size, seed=1, dtype=torch.float32)
    value[:, :, 8, 8] = 10.0
    d_mean = torch.full_like(value, 0.9)
    mask = torch.zeros(1, 1, size, size)
    mask[:, :, 0] = 1
    level = Regions(mask).at(size, size)
    tensors = [t.half() for t in (query, key, value, d_mean, torch.zeros_like(d_mean))]
    ours, wide = results(tensors[:3], tensors[3:], level, 1.0)[5:], [t.double() for t in tensors]
    saved = eager.forward(*wide[:3], level.order, level.counts, 1.0, 1e-5)
    truths = eager.backward(*wide[3:], *wide[:3], level.order, level.counts, *saved[2:], 1.0, 1e-5)
    for a, b in zip(ours, truths, strict=True):
        assert float((a - b).abs().max()) <= 4 * torch.finfo(torch.float16).eps * float(b.abs().max())


def test_nan_stays_in_its_image() -> None:
    """A network that diverges shows it: a NaN among the keys is in every result of its image, and in no other's."""
    level, tensors = Regions(make_mask("block", 2, 4, 5)).at(4, 5), inputs(2, 4, 5)
    grads = [random(2, 5, 4, 5, seed=seed, dtype=torch.float32) for seed in (1, 2)]
    tensors[1][0, 0, 3, 4] = torch.nan
    for result in results(tensors, grads, level):
        assert result[0].isnan().any()
        assert result[1].isfinite().all()


def test_nan_of_an_image_without_foreground_is_in_no_gradient() -> None:
    mask, tensors = make_mask("block", 2, 4, 5), inputs(2, 4, 5)
    mask[0] = 0
    grads = [random(2, 5, 4, 5, seed=seed, dtype=torch.float32) for seed in (1, 2)]
    for tensor in tensors[1:]:
        tensor[0] = torch.nan
    *_, d_query, d_key, d_value = results(tensors, grads, Regions(mask).at(4, 5))
    for gradient in (d_query, d_key, d_value):
        assert torch.count_nonzero(gradient[0]) == 0
        assert gradient[1].isfinite().all()


def test_wider_than_triton_serves() -> None:
    check(inputs(1, 2, 3, torch.float32, 260, 520), make_mask("random", 1, 2, 3))


def test_the_library_checks_what_it_is_given() -> None:
    query, key, value = (t.flatten(2) for t in inputs(1, 3, 5))
    level = Regions(make_mask("block", 1, 3, 5)).at(3, 5)
    forward, options = operations().bain_attention_forward, (0.5, 1e-5, False)
    with pytest.raises(RuntimeError, match=r"^key must have shape \(1, 4, 15\), got \(1, 4, 14\)$"):
        forward(query, key[..., 1:], value, level.order, level.counts, *options)
    with pytest.raises(RuntimeError, match="a kernel got a tensor of Int where it takes Long"):
        forward(query, key, value, level.order.int(), level.counts, *options)
    with pytest.raises(RuntimeError, match="query and key must have the same dtype"):
        forward(query, key.half(), value, level.order, level.counts, *options)
