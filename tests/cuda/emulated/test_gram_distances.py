"""gram_distances compiled from csrc/ against the float64 formulas."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import random, run
from torch import Tensor

import scsco_fast as sf
from scsco_fast.cuda import gram_distances
from scsco_fast.cuda.library import operations
from scsco_fast.ops.backend import refusal

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")
Guard = Callable[[Tensor], Tensor]
SHIFTS = (2.0, 4.0, -6.0, 3.0, 8.0, -5.0, 7.0, -3.0, 5.0)


def maps(
    batch: int, others: int, channels: int, width: int, pixels: tuple[int, int], dtype: torch.dtype
) -> list[Tensor]:
    """Anchor, background and others whose Gram differences are far from 0, where the sign of a gradient would be
    rounding's."""
    anchor = random(batch, channels, *pixels).abs()
    background = random(batch, width, *pixels, seed=1).abs()
    shift = torch.tensor(SHIFTS[:others], dtype=torch.float64).reshape(1, -1, 1, 1, 1)
    further = random(batch, others, channels, *pixels, seed=2).abs() + anchor.unsqueeze(1) + shift
    return [t.to(dtype) for t in (anchor, background, further)]


def check(*tensors: Tensor) -> None:
    """As `assert_matches`, with one rounding to the operands' dtype: the differences are rounded to it before they are
    multiplied."""
    got = run(sf.ops.gram_distances, tensors, "cuda")
    truth = run(sf.ops.gram_distances, [t.double() for t in tensors], "reference")
    near = run(sf.ops.gram_distances, [t.float() for t in tensors], "reference")
    terms = max(t.numel() for t in tensors)
    band = max(torch.finfo(t.dtype).eps for t in tensors) + math.log2(terms) * torch.finfo(torch.float32).eps
    for index, (ours, theirs, exact) in enumerate(zip(got, near, truth, strict=True)):
        allowed = 2 * (float((theirs.double() - exact).abs().max()) + band * float(exact.abs().max()))
        error = float((ours.double() - exact).abs().max())
        assert error <= allowed, f"result {index} is off by {error:.3g}, allowed {allowed:.3g}"


def distances_of(*tensors: Tensor) -> Tensor:
    return gram_distances.forward(*tensors)[0]


def gradients_of(grad: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    _, signs = gram_distances.forward(*tensors)
    return gram_distances.backward(grad, signs, *tensors, False)


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.movedim(-3, -1).contiguous().movedim(-1, -3)


@pytest.mark.parametrize("pixels", [1, 2, 15, 16, 17, 31, 63, 64, 65, 127, 130])
def test_pixels(pixels: int, guarded: Guard) -> None:
    check(*(guarded(t) for t in maps(1, 2, 3, 4, (1, pixels), torch.float32)))


@pytest.mark.parametrize(("channels", "width"), [(1, 1), (65, 3), (3, 130), (64, 64)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_channels(channels: int, width: int, dtype: torch.dtype, guarded: Guard) -> None:
    for pixels in ((3, 5), (4, 6)):
        check(*(guarded(t) for t in maps(1, 2, channels, width, pixels, dtype)))


@pytest.mark.parametrize(("channels", "width"), [(72, 8), (8, 136)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_channels_last(channels: int, width: int, dtype: torch.dtype, guarded: Guard) -> None:
    check(*(guarded(channels_last(t)) for t in maps(2, 2, channels, width, (5, 7), dtype)))


@pytest.mark.parametrize(("channels", "width"), [(130, 200), (256, 128)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_wide_tiles(channels: int, width: int, dtype: torch.dtype, guarded: Guard) -> None:
    """Half precision takes tiles of 128 x 128: full ones, and the last of a row."""
    for change in (lambda t: t, channels_last):
        check(*(guarded(change(t)) for t in maps(1, 2, channels, width, (3, 3), dtype)))


def test_wide_tiles_where_shared_memory_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The 64 KB of sm_75 hold narrow tiles only."""
    monkeypatch.setenv("SCSCO_EMULATED_SHARED_BYTES", str(64 * 1024))
    check(*maps(1, 2, 130, 128, (3, 3), torch.float16))


@pytest.mark.parametrize("pixels", [(24, 32), (23, 31)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_splits_join(pixels: tuple[int, int], dtype: torch.dtype, guarded: Guard) -> None:
    """Parts of the pixels, of which the last is not full, for one tile and for several. (In float16 the gradients of so
    many pixels are subnormal.)"""
    for channels, width in ((4, 3), (65, 66)):
        check(*(guarded(t) for t in maps(1, 2, channels, width, pixels, dtype)))


@pytest.mark.parametrize("others", [1, 3, 9])
def test_others(others: int, guarded: Guard) -> None:
    check(*(guarded(t) for t in maps(2, others, 3, 4, (3, 5), torch.float32)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(dtype: torch.dtype, guarded: Guard) -> None:
    anchor, background, others = maps(2, 2, 8, 16, (4, 6), dtype)
    check(channels_last(anchor), background, others)
    check(anchor, channels_last(background), channels_last(others))
    for change in (
        lambda t: guarded(channels_last(t)),
        lambda t: t[:1].expand(2, *t.shape[1:]),
        lambda t: t.transpose(-1, -2),
        lambda t: t[..., 1:, :, :],
        lambda t: t[..., 1:],
    ):
        check(*(change(t) for t in (anchor, background, others)))
    check(anchor, background, others[:, :1].expand(-1, 3, -1, -1, -1))
    check(anchor, background, others.transpose(0, 1))


def test_two_dtypes() -> None:
    anchor, background, others = maps(1, 2, 3, 4, (4, 5), torch.float16)
    check(anchor.float(), background, others)
    check(anchor, background.float(), others)
    check(anchor, background.bfloat16(), others)


def test_equal_maps_have_distance_and_gradient_zero() -> None:
    anchor, background, _ = (t.requires_grad_() for t in maps(2, 1, 3, 4, (4, 5), torch.float32))
    distances = sf.ops.gram_distances(anchor, background, anchor.detach().unsqueeze(1), backend="cuda")
    distances.sum().backward()
    assert (distances == 0).all()
    assert (anchor.grad == 0).all()
    assert (background.grad == 0).all()


def test_the_anchor_alone_has_the_same_gradient() -> None:
    anchor, *constants = maps(2, 2, 3, 4, (4, 5), torch.float32)
    for operation, rest in ((sf.ops.gram_distances, constants), (sf.ops.feature_distances, constants[1:])):
        every = [tensor.clone().requires_grad_() for tensor in (anchor, *rest)]
        alone = anchor.clone().requires_grad_()
        operation(*every, backend="cuda").sum().backward()
        operation(alone, *rest, backend="cuda").sum().backward()
        assert torch.equal(alone.grad, every[0].grad)


def test_differences_beyond_float16() -> None:
    """60000 - (-60000) is infinite in float16; the distance is not."""
    anchor = torch.full((1, 2, 2, 2), 6e4, dtype=torch.float16)
    background = torch.full((1, 2, 2, 2), 0.5, dtype=torch.float16)
    distance = sf.ops.gram_distances(anchor, background, -anchor.unsqueeze(1), backend="cuda")
    assert distance.item() == float(anchor[0, 0, 0, 0])


@pytest.mark.parametrize("scale", [2.0**-40, 2.0**20])
def test_gradients_of_any_size(scale: float) -> None:
    """The gradient of a distance meets float32 sums, never float16: scaled by a power of two it scales every bit."""
    tensors = maps(1, 3, 8, 16, (4, 6), torch.float32)
    grad = random(1, 3, dtype=torch.float32)
    plain = gradients_of(grad, *tensors)
    scaled = gradients_of(grad * scale, *tensors)
    assert all(torch.equal(a * scale, b) for a, b in zip(plain, scaled, strict=True))


def test_small_gradients_reach_float16_features() -> None:
    """1e-8 is 0 in float16; against features of 10^4 it is not."""
    anchor, background, others = maps(1, 2, 3, 4, (4, 6), torch.float16)
    grad = torch.full((1, 2), 1e-4)
    background *= 4000
    got = gradients_of(grad, anchor, background, others)
    signs = torch.einsum(
        "bjcn,bdn->bjcd", (anchor.unsqueeze(1) - others).float().flatten(3), background.float().flatten(2)
    )
    wanted = torch.einsum("bj,bjcd,bdn->bcn", grad / (3 * 4 * 24), signs.sign(), background.float().flatten(2))
    assert float(wanted.abs().max()) > 1e-3
    torch.testing.assert_close(got[0].float().flatten(2), wanted, rtol=2**-10, atol=2**-24)


def test_no_others_and_no_images() -> None:
    for batch, others in ((2, 0), (0, 2)):
        anchor, background, further = (t.requires_grad_() for t in maps(batch, others, 3, 4, (2, 2), torch.float32))
        distances = sf.ops.gram_distances(anchor, background, further, backend="cuda")
        assert distances.shape == (batch, others)
        for gradient in torch.autograd.grad(distances.sum(), (anchor, background, further)):
            assert (gradient == 0).all()


@pytest.mark.parametrize("layout", [lambda t: t, channels_last], ids=["planes", "channels last"])
@pytest.mark.parametrize("channels", [(72, 8), (136, 128)])
def test_tf32(channels: tuple[int, int], layout: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Operands are rounded to ten bits, nearest: at most 2^-11 each, and differently from IEEE products."""
    tensors = [layout(t) for t in maps(2, 2, *channels, (4, 6), torch.float32)]
    grad, results = random(2, 2, dtype=torch.float32), []
    for on in (True, False):
        monkeypatch.setattr(gram_distances, "tf32", lambda _, on=on: on)
        results.append((distances_of(*tensors), *gradients_of(grad, *tensors)))
    for rounded, exact in zip(*results, strict=True):
        error = float((rounded - exact).abs().max() / exact.abs().max())
        assert 2**-22 < error < 2**-10


@pytest.mark.parametrize("layout", [lambda t: t, channels_last], ids=["planes", "channels last"])
@pytest.mark.parametrize("channels", [4, 128])
def test_tf32_is_rounded_and_not_cut(
    channels: int, layout: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 + 3/4 of the last bit becomes 1 and that bit, of both operands; no gradient has a sum that is rounded."""
    monkeypatch.setattr(gram_distances, "tf32", lambda _: True)
    number, rounded = 1 + 3 * 2**-12, 1 + 2**-10
    anchor, background = (layout(torch.full((1, channels, 2, 2), scale * number)) for scale in (2, 1))
    others = torch.zeros_like(anchor)[:, None]
    grad = torch.full((1, 1), 4.0 * channels)
    distance = distances_of(anchor, background, others)
    torch.testing.assert_close(distance, torch.full((1, 1), 2 * rounded**2), rtol=2**-20, atol=0)
    d_anchor, d_background, d_others = gradients_of(grad, anchor, background, others)
    assert (d_anchor == rounded).all()
    assert (d_others == -rounded).all()
    assert (d_background == 2 * rounded).all()


def test_registered_op_passes_opcheck() -> None:
    tensors = (t.requires_grad_() for t in maps(1, 2, 3, 4, (2, 3), torch.float32))
    operation = torch.ops.scsco_fast.gram_distances.default
    torch.library.opcheck(operation, (*tensors, "cuda"), test_utils=CHECKS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_every_time(dtype: torch.dtype) -> None:
    tensors = maps(2, 3, 72, 70, (6, 8), dtype)
    grad = random(2, 3, dtype=torch.float32)
    results = [(distances_of(*tensors), *gradients_of(grad, *tensors)) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("width", [3, 4])
def test_addresses_pass_2_to_the_31(width: int, tmp_path: Path) -> None:
    """Channels 2^30 elements apart, in a sparse file of which a few pages exist: copied, or read 16 bytes at once."""
    near, background, others = maps(1, 1, 4, 3, (2, width), torch.float16)
    apart = 2**30
    file = np.memmap(tmp_path / "sparse", np.float16, "w+", shape=(3 * apart + 2 * width,))
    far = torch.from_numpy(file).as_strided((1, 4, 2, width), (0, apart, width, 1)).copy_(near)
    grad = random(1, 1, dtype=torch.float32)
    for plain, moved in (
        ((near, background, others), (far, background, others)),
        ((others[0], background, near[None]), (others[0], background, far[None])),
        ((background, near, background[None] + 1), (background, far, background[None] + 1)),
    ):
        assert torch.equal(distances_of(*plain), distances_of(*moved))
        pairs = zip(gradients_of(grad, *plain), gradients_of(grad, *moved), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_what_is_not_served_is_named() -> None:
    tensors = maps(1, 1, 2, 2, (1, 2), torch.float64)
    assert "float64" in str(refusal("cuda", "gram_distances", *tensors))
    with pytest.raises(RuntimeError, match="float64"):
        sf.ops.gram_distances(*tensors, backend="cuda")


def test_the_library_checks_what_it_is_given() -> None:
    anchor, background, others = (t.flatten(-2) for t in maps(2, 2, 3, 4, (2, 3), torch.float32))
    with pytest.raises(RuntimeError, match=r"^background must have shape \(2, 4, 6\), got \(2, 4, 5\)$"):
        operations().gram_distances_forward(anchor, background[..., 1:], others, False)
    with pytest.raises(RuntimeError, match=r"^grad must have shape \(2, 2\), got \(2, 1\)$"):
        operations().gram_distances_backward(torch.zeros(2, 1), anchor, background, others, False)
