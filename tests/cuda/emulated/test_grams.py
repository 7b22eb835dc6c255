"""masked_gram and cross_gram compiled from csrc/ against the float64 formulas."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import assert_matches, make_mask, random
from torch import Tensor

import scsco_fast as sf
from scsco_fast.cuda import cross_gram, masked_gram
from scsco_fast.cuda.library import operations
from scsco_fast.eager import cross_gram as eager_cross
from scsco_fast.eager import masked_gram as eager_masked
from scsco_fast.ops.backend import refusal
from scsco_fast.regions import Regions

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")
Guard = Callable[[Tensor], Tensor]


def check_masked(features: Tensor, mask: Tensor | Regions | None) -> None:
    assert_matches(lambda f: sf.ops.masked_gram(f, mask), [features], "cuda")


def check_cross(a: Tensor, b: Tensor) -> None:
    assert_matches(sf.ops.cross_gram, [a, b], "cuda")


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("mask", ["random", "empty", "full", "one pixel", "all but one", "ragged"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_masks(mask: str, dtype: torch.dtype, guarded: Guard) -> None:
    """Maps and masks are read 16 bytes at once, or maps are, or neither; and channels last."""
    for height, width in ((4, 8), (4, 6), (7, 9)):
        features = random(3, 8, height, width, dtype=dtype)
        check_masked(guarded(features), make_mask(mask, 3, height, width))
        check_masked(guarded(channels_last(features)), make_mask(mask, 3, height, width))


@pytest.mark.parametrize("pixels", [1, 2, 15, 16, 17, 31, 63, 64, 65, 127, 130])
def test_pixels(pixels: int, guarded: Guard) -> None:
    a, b = (guarded(random(1, 3, 1, pixels, seed=seed, dtype=torch.float32)) for seed in range(2))
    check_masked(a, make_mask("random", 1, 1, pixels))
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


def test_wide_tiles_where_shared_memory_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The 64 KB of sm_75 hold the forward's wide tiles and not the backward's, which has the same bits without."""
    a, b = (random(1, c, 8, 16, seed=c, dtype=torch.float16) for c in (130, 128))
    grad = random(1, 130, 128, seed=1, dtype=torch.float32)
    wide = cross_gram.forward(a, b), *cross_gram.backward(grad, a, b)
    monkeypatch.setenv("SCSCO_EMULATED_SHARED_BYTES", str(64 * 1024))
    assert all(
        torch.equal(x, y)
        for x, y in zip(wide, (cross_gram.forward(a, b), *cross_gram.backward(grad, a, b)), strict=True)
    )


@pytest.mark.parametrize("mask", ["random", "block"])
@pytest.mark.parametrize("size", [(4, 32), (24, 32), (23, 31)])
def test_splits_join(size: tuple[int, int], mask: str) -> None:
    """One part of the pixels, six of four blocks, and parts of which the last is not full."""
    a, b = (random(2, 8, *size, seed=seed, dtype=torch.float32) for seed in range(2))
    for change in (lambda t: t, channels_last):
        check_masked(change(a), make_mask(mask, 2, *size))
        check_cross(change(a), change(b))


@pytest.mark.parametrize("size", [(96, 96), (97, 95)])
def test_more_pixels_than_are_listed_at_once(size: tuple[int, int]) -> None:
    mask = make_mask("empty", 1, *size)
    mask[0, 0, 0, 3] = mask[0, 0, 40, 40] = mask[0, 0, -1, -1] = 1
    check_masked(random(1, 2, *size, dtype=torch.float32), mask)


@pytest.mark.parametrize(("mask", "channels"), [("random", 72), ("block", 72), ("block", 136)])
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
        lambda t: t[:, 1:],
        lambda t: t[..., 1:],
        lambda t: channels_last(t)[:, 1:],
    ):
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
        pairs = [
            (masked_gram.backward(change(square), b, foreground), eager_masked.backward(change(square), b, foreground))
        ]
        pairs += zip(cross_gram.backward(change(wide), a, b), eager_cross.backward(change(wide), a, b), strict=True)
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_two_dtypes() -> None:
    a, b = random(1, 3, 4, 5), random(1, 4, 4, 5, seed=1)
    for first, second in (
        (torch.float16, torch.float32),
        (torch.float32, torch.float16),
        (torch.bfloat16, torch.float16),
    ):
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


def test_rows_of_zeros_and_maps_of_their_own_dtype() -> None:
    a, b = random(1, 3, 4, 5, dtype=torch.float16), random(1, 4, 4, 5, seed=1, dtype=torch.float16)
    grad = random(1, 3, 4, seed=2, dtype=torch.float32) * 1e-9
    grad[:, 1] = 0
    assert (cross_gram.backward(grad, a, b)[0][:, 1] == 0).all()
    d_a = cross_gram._times(grad, b, a.float())
    truth, _ = eager_cross.backward(grad.double(), a.double(), b.double())
    assert float((d_a - truth).abs().max() / truth.abs().max()) < 1e-5


@pytest.mark.parametrize("layout", [lambda t: t, channels_last], ids=["planes", "channels last"])
@pytest.mark.parametrize("channels", [(72, 8), (136, 128)])
def test_tf32(channels: tuple[int, int], layout: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Operands are rounded to ten bits, nearest: at most 2^-11 each, and differently from IEEE products."""
    a, b = (layout(random(2, c, 6, 8, seed=c, dtype=torch.float32)) for c in channels)
    square = random(2, channels[0], channels[0], seed=1, dtype=torch.float32)
    wide = random(2, *channels, seed=2, dtype=torch.float32)
    foreground = make_mask("random", 2, 6, 8) > 0.5
    results = []
    for on in (True, False):
        for module in (masked_gram, cross_gram):
            monkeypatch.setattr(module, "tf32", lambda _, on=on: on)
        masked = (masked_gram.forward(a, foreground), masked_gram.backward(square, a, foreground))
        results.append((*masked, cross_gram.forward(a, b), *cross_gram.backward(wide, a, b)))
    for rounded, exact in zip(*results, strict=True):
        error = float((rounded - exact).abs().max() / exact.abs().max())
        assert 2**-20 < error < 2**-10


@pytest.mark.parametrize("layout", [lambda t: t, channels_last], ids=["planes", "channels last"])
@pytest.mark.parametrize("channels", [4, 128])
def test_tf32_is_rounded_and_not_cut(
    channels: int, layout: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 + 3/4 of the last bit becomes 1 and that bit, of both operands, and no sum of these is rounded."""
    for module in (masked_gram, cross_gram):
        monkeypatch.setattr(module, "tf32", lambda _: True)
    number, square = 1 + 3 * 2**-12, (1 + 2**-10) ** 2
    a = layout(torch.full((1, channels, 2, 2), number))
    foreground = torch.tensor([[[[True, True], [False, True]]]])
    grad = torch.zeros(1, channels, channels)
    grad[..., :4] = number
    assert (masked_gram.forward(a, None) == square).all()
    assert (masked_gram.forward(a, foreground) == square * 3 / 4).all()
    assert (cross_gram.forward(a, a) == square).all()
    assert (cross_gram.backward(grad, a, a)[0] == square).all()


def test_registered_ops_pass_opcheck() -> None:
    a, b = (random(1, 3, 2, 3, seed=seed, dtype=torch.float32).requires_grad_() for seed in range(2))
    foreground = make_mask("random", 1, 2, 3) > 0.5
    ops = torch.ops.scsco_fast
    torch.library.opcheck(ops.masked_gram.default, (a, foreground, "cuda"), test_utils=CHECKS)
    torch.library.opcheck(ops.cross_gram.default, (a, b, "cuda"), test_utils=CHECKS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_every_time(dtype: torch.dtype) -> None:
    a, b = (random(2, 72, 24, 24, seed=seed, dtype=dtype) for seed in range(2))
    foreground, grad = make_mask("random", 2, 24, 24) > 0.5, random(2, 72, 72, seed=3, dtype=torch.float32)
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


def test_what_is_not_served_is_named() -> None:
    a = random(1, 2, 1, 2)
    assert "float64" in str(refusal("cuda", "masked_gram", a))
    for operation, tensors in ((sf.ops.masked_gram, [a]), (sf.ops.cross_gram, [a, a])):
        with pytest.raises(RuntimeError, match="float64"):
            operation(*tensors, backend="cuda")


def test_the_library_checks_what_it_is_given() -> None:
    a, mask = random(1, 4, 15, dtype=torch.float32), torch.zeros(1, 14, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match=r"^foreground must have shape \(1, 15\), got \(1, 14\)$"):
        operations().masked_gram_forward(a, mask, False)
    with pytest.raises(RuntimeError, match=r"^b must have shape \(1, 4, 15\), got \(1, 4, 14\)$"):
        operations().cross_gram_forward(a, a[..., 1:], False)
    with pytest.raises(RuntimeError, match=r"^grad must have shape \(1, 4, 4\), got \(1, 4, 3\)$"):
        operations().masked_gram_backward(torch.zeros(1, 4, 3), a, None, False)


def test_an_empty_batch() -> None:
    nothing = torch.zeros(0, 3, 4, 4, requires_grad=True)
    sf.ops.masked_gram(nothing, make_mask("random", 0, 4, 4), backend="cuda").sum().backward()
    gram = sf.ops.cross_gram(nothing, nothing, backend="cuda")
    assert gram.shape == (0, 3, 3)
    gram.sum().backward()
