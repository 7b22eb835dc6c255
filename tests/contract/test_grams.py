"""masked_gram and cross_gram of every backend against the float64 formulas."""

from pathlib import Path

import numpy as np
import pytest
import torch
from guarded import Guard
from mode import BACKEND, DTYPES, REFUSED, long_interpreted
from oracle import MASKS, OPCHECKS, assert_matches, make_mask, random
from torch import Tensor

import scsco_fast as sf
from scsco_fast.eager import cross_gram as eager_cross
from scsco_fast.eager import masked_gram as eager_masked
from scsco_fast.ops.backend import implementation, is_compiled, refusal
from scsco_fast.regions import Regions

masked_gram, cross_gram = implementation(BACKEND, "masked_gram"), implementation(BACKEND, "cross_gram")
MASKED = [("random", 72), ("block", 72), ("block", 136)]


def check_masked(features: Tensor, mask: Tensor | Regions | None) -> None:
    assert_matches(lambda f: sf.ops.masked_gram(f, mask), [features], BACKEND)


def check_cross(a: Tensor, b: Tensor) -> None:
    assert_matches(sf.ops.cross_gram, [a, b], BACKEND)


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_masks(mask: str, dtype: torch.dtype, guarded: Guard) -> None:
    """Maps and masks can be read 16 bytes at once, or maps can, or neither; and channels last."""
    for height, width in ((4, 8), (4, 6), (7, 9)):
        features = random(3, 8, height, width, dtype=dtype)
        check_masked(guarded(features), make_mask(mask, 3, height, width))
        check_masked(guarded(channels_last(features)), make_mask(mask, 3, height, width))
    check_masked(guarded(random(3, 5, 7, 9, dtype=dtype)), Regions(make_mask(mask, 3, 7, 9)))


@pytest.mark.parametrize("pixels", [1, 2, 15, 16, 17, 31, 63, 64, 65, 127, 130])
def test_pixels(pixels: int, guarded: Guard) -> None:
    a, b = (guarded(random(1, 3, 1, pixels, seed=seed, dtype=torch.float32)) for seed in range(2))
    check_masked(a, make_mask("random", 1, 1, pixels))
    check_cross(a, b)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 2), (3, 15, 16), (17, 5, 31), (65, 8, 8)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_shapes(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    a, b = (random(2, *shape, seed=seed, dtype=dtype) for seed in range(2))
    check_masked(a, None)
    check_cross(a, b)


@pytest.mark.parametrize("channels", [1, 2, 64, 65, 130])
@pytest.mark.parametrize("dtype", DTYPES)
def test_channels(channels: int, dtype: torch.dtype, guarded: Guard) -> None:
    """Up to three tiles in a row: the mirrored ones and the last, which is not full."""
    a, b = (guarded(random(1, c, 3, 5, seed=c, dtype=dtype)) for c in (channels, 33))
    check_masked(a, make_mask("random", 1, 3, 5))
    check_masked(a, None)
    check_cross(a, b)
    check_cross(b, a)


@pytest.mark.parametrize("channels", [72, 136])
@pytest.mark.parametrize("dtype", DTYPES)
def test_channels_last(channels: int, dtype: torch.dtype, guarded: Guard) -> None:
    a, b = (guarded(channels_last(random(2, c, 5, 7, seed=c, dtype=dtype))) for c in (channels, 40))
    check_masked(a, make_mask("random", 2, 5, 7))
    check_masked(a, None)
    check_cross(a, b)
    check_cross(b, a)


@long_interpreted
@pytest.mark.parametrize(("channels", "others"), [(130, 200), (256, 128)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_wide_tiles(channels: int, others: int, dtype: torch.dtype, guarded: Guard) -> None:
    """Half precision takes tiles of 128 x 128: full ones, and the last of a row. Two steps, of which one is not full,
    and, of a channels-last map, channels that are no multiple of a tile."""
    for size, change in (((8, 9), lambda t: t), ((8, 8), channels_last)):
        a, b = (guarded(change(random(1, c, *size, seed=c, dtype=dtype))) for c in (channels, others))
        check_masked(a, make_mask("block", 1, *size))
        check_masked(b, make_mask("full", 1, *size))
        check_cross(a, b)


@long_interpreted
@pytest.mark.parametrize("mask", ["random", "block"])
@pytest.mark.parametrize("size", [(4, 32), (24, 32), (23, 31)])
def test_splits_join(size: tuple[int, int], mask: str) -> None:
    """One part of the pixels, several, and parts of which the last is not full."""
    a, b = (random(2, 8, *size, seed=seed, dtype=torch.float32) for seed in range(2))
    for change in (lambda t: t, channels_last):
        check_masked(change(a), make_mask(mask, 2, *size))
        check_cross(change(a), change(b))


@pytest.mark.parametrize("size", [(40, 40), (96, 96), (97, 95)])
def test_more_pixels_than_are_listed_at_once(size: tuple[int, int]) -> None:
    mask = make_mask("empty", 1, *size)
    mask[0, 0, 0, 3] = mask[0, 0, size[0] // 2, size[1] // 2] = mask[0, 0, -1, -1] = 1
    check_masked(random(1, 2, *size, dtype=torch.float32), mask)


@pytest.mark.parametrize(
    ("mask", "channels"),
    [("random", 3), ("block", 3), *(pytest.param(*case, marks=long_interpreted) for case in MASKED)],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_excluded_pixels_may_hold_nan(dtype: torch.dtype, mask: str, channels: int) -> None:
    inside = make_mask(mask, 2, 16, 16) > 0.5
    clean = random(2, channels, 16, 16, dtype=dtype)
    grad = random(2, channels, channels, seed=1, dtype=torch.float32)
    for change in (lambda t: t, channels_last):
        results = []
        for features in (clean, torch.where(inside, clean, torch.nan)):
            arguments = (change(features), inside)
            results.append((masked_gram.forward(*arguments), masked_gram.backward(grad, *arguments)))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
        assert (results[0][1][~inside.expand_as(clean)] == 0).all()


def test_nan_outside_the_foreground_reaches_neither_the_gram_nor_its_gradient() -> None:
    mask = make_mask("block", 2, 16, 16) > 0.5
    features = torch.where(mask, random(2, 3, 16, 16, dtype=torch.float32), torch.nan).requires_grad_()
    gram = sf.ops.masked_gram(features, mask, backend=BACKEND)
    gram.sum().backward()
    assert torch.isfinite(gram).all()
    assert torch.isfinite(features.grad).all()
    assert (features.grad[~mask.expand_as(features)] == 0).all()


@pytest.mark.skipif(not is_compiled(BACKEND), reason="a library's product adds up the two halves in orders of its own")
@pytest.mark.parametrize("channels", [72, 130])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gram_is_symmetric_to_the_bit(dtype: torch.dtype, channels: int) -> None:
    gram = masked_gram.forward(random(1, channels, 4, 5, dtype=dtype), None)
    assert torch.equal(gram, gram.transpose(1, 2))


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(dtype: torch.dtype, guarded: Guard) -> None:
    a, b = (random(2, 8, 4, 6, seed=seed, dtype=dtype) for seed in range(2))
    for change in (
        lambda t: guarded(channels_last(t)),
        lambda t: t[:1].expand(2, -1, -1, -1),
        lambda t: t[:, :, :1, :1].expand(-1, -1, 4, 6),
        lambda t: t.transpose(2, 3),
        lambda t: t.transpose(-1, -3).contiguous().transpose(-1, -3),
        lambda t: t[:, 1:],
        lambda t: t[..., 1:],
        lambda t: channels_last(t)[:, 1:],
    ):
        check_masked(change(a), None)
        check_masked(change(a), make_mask("random", 2, *change(a).shape[2:]))
        check_cross(change(a), change(b))
    check_cross(channels_last(a), b)


@pytest.mark.parametrize("mask", [None, "random"])
def test_gradients_of_any_stride(mask: str | None) -> None:
    a, b = (random(2, c, 4, 6, seed=c, dtype=torch.float32) for c in (8, 130))
    foreground = None if mask is None else make_mask(mask, 2, 4, 6) > 0.5
    square, wide = random(2, 130, 130, seed=1, dtype=torch.float32), random(2, 8, 130, seed=2, dtype=torch.float32)
    for change in (
        lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
        lambda t: t[:, :1, :1].expand(t.shape),
        lambda t: t.repeat(1, 1, 2)[:, :, ::2],
    ):
        truth = eager_masked.backward(change(square).double(), b.double(), foreground)
        pairs = [(masked_gram.backward(change(square), b, foreground), truth)]
        truths = eager_cross.backward(change(wide).double(), a.double(), b.double())
        pairs += zip(cross_gram.backward(change(wide), a, b), truths, strict=True)
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs.float(), rtol=1e-5, atol=1e-5)


def test_two_dtypes() -> None:
    a, b = random(1, 3, 4, 5), random(1, 4, 4, 5, seed=1)
    pairs = [(torch.float16, torch.float32), (torch.float32, torch.float16), (torch.bfloat16, torch.float16)]
    for first, second in (pair for pair in pairs if {*pair} <= {*DTYPES}):
        check_cross(a.to(first), b.to(second))


@pytest.mark.parametrize(("exponent", "of_maps"), [(-20, 13), (0, 0), (20, -10)])
def test_gradients_of_any_size_meet_float16_features(exponent: int, of_maps: int) -> None:
    """Rounded to float16 as they are, gradients of 2^-20 would have four bits and those of 2^20 would be infinite."""
    a, b = (random(1, c, 2, 4, seed=c, dtype=torch.float16) * 2.0**of_maps for c in (3, 8))
    grad = random(1, 3, 8, seed=2, dtype=torch.float32) * 2.0**exponent
    truths = eager_cross.backward(grad.double(), a.double(), b.double())
    for ours, truth in zip(cross_gram.backward(grad, a, b), truths, strict=True):
        for row, wanted in zip(ours[0].double(), truth[0], strict=True):
            assert float((row - wanted).abs().max() / wanted.abs().max()) < 2 * torch.finfo(torch.float16).eps


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e7])
def test_gradients_of_any_size_reach_float32_features(scale: float) -> None:
    """Rounded to float16 as they are, gradients of 1e-9 would be 0 and those of 1e7 infinite."""
    a, b = random(1, 3, 4, 5, dtype=torch.float16), random(1, 4, 4, 5, seed=1, dtype=torch.float16)
    grad = random(1, 3, 4, seed=2, dtype=torch.float32) * scale
    # The other map is of float16; the gradient has the size that float32 can show.
    d_a, _ = cross_gram.backward(grad, a.float(), b)
    assert torch.isfinite(d_a).all()
    truth, of_b = eager_cross.backward(grad.double(), a.double(), b.double())
    assert float((d_a - truth).abs().max() / truth.abs().max()) < 1e-5
    if scale == 1.0:
        d_b = cross_gram.backward(grad, a, b)[1]
        assert float((d_b - of_b).abs().max() / of_b.abs().max()) < 2 * torch.finfo(torch.float16).eps


def test_rows_of_zeros() -> None:
    a, b = random(1, 3, 4, 5, dtype=torch.float16), random(1, 4, 4, 5, seed=1, dtype=torch.float16)
    grad = random(1, 3, 4, seed=2, dtype=torch.float32) * 1e-9
    grad[:, 1] = 0
    assert (cross_gram.backward(grad, a, b)[0][:, 1] == 0).all()
    d_a, _ = cross_gram.backward(grad, a.float(), b)
    truth, _ = eager_cross.backward(grad.double(), a.double(), b.double())
    assert float((d_a - truth).abs().max() / truth.abs().max()) < 1e-5


def test_registered_ops_pass_opcheck() -> None:
    a, b = (random(1, 3, 2, 3, seed=seed, dtype=torch.float32).requires_grad_() for seed in range(2))
    foreground = make_mask("random", 1, 2, 3) > 0.5
    ops = torch.ops.scsco_fast
    torch.library.opcheck(ops.masked_gram.default, (a, foreground, BACKEND), test_utils=OPCHECKS)
    torch.library.opcheck(ops.cross_gram.default, (a, b, BACKEND), test_utils=OPCHECKS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_every_time(dtype: torch.dtype) -> None:
    side = 12 if BACKEND == "triton" else 24  # its interpreter takes ten seconds for more
    a, b = (random(2, 72, side, side, seed=seed, dtype=dtype) for seed in range(2))
    foreground, grad = make_mask("random", 2, side, side) > 0.5, random(2, 72, 72, seed=3, dtype=torch.float32)
    results = []
    for _ in range(2):
        masked = (masked_gram.forward(a, foreground), masked_gram.backward(grad, a, foreground))
        results.append((*masked, cross_gram.forward(a, b), *cross_gram.backward(grad, a, b)))
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


@pytest.mark.parametrize("width", [3, 4])
def test_addresses_pass_2_to_the_31(width: int, tmp_path: Path) -> None:
    """Channels 2^30 elements apart, in a sparse file of which a few pages exist: copied, or read 16 bytes at once."""
    near, apart = random(1, 4, 2, width, dtype=torch.float16), 2**30
    file = np.memmap(tmp_path / "sparse", np.float16, "w+", shape=(3 * apart + 2 * width,))
    far = torch.from_numpy(file).as_strided((1, 4, 2, width), (0, apart, width, 1)).copy_(near)
    grad = random(1, 4, 4, seed=1, dtype=torch.float32)
    assert torch.equal(masked_gram.forward(far, None), masked_gram.forward(near, None))
    assert torch.equal(masked_gram.backward(grad, far, None), masked_gram.backward(grad, near, None))
    assert torch.equal(cross_gram.forward(far, near), cross_gram.forward(near, near))


@pytest.mark.parametrize(("channels", "dtype", "reason"), REFUSED)
def test_what_is_not_served_is_named(channels: int, dtype: torch.dtype, reason: str) -> None:
    a = random(1, channels, 1, 2, dtype=dtype)
    assert reason in str(refusal(BACKEND, "masked_gram", a))
    for operation, tensors in ((sf.ops.masked_gram, [a]), (sf.ops.cross_gram, [a, a])):
        with pytest.raises(RuntimeError, match=reason):
            operation(*tensors, backend=BACKEND)


def test_an_empty_batch() -> None:
    nothing = torch.zeros(0, 3, 4, 4, requires_grad=True)
    sf.ops.masked_gram(nothing, backend=BACKEND).sum().backward()
    sf.ops.masked_gram(nothing, make_mask("random", 0, 4, 4), backend=BACKEND).sum().backward()
    gram = sf.ops.cross_gram(nothing, nothing, backend=BACKEND)
    assert gram.shape == (0, 3, 3)
    gram.sum().backward()
