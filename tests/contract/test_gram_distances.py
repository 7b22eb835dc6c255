"""gram_distances of every backend against the float64 formulas."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gram_maps import assert_distances_match, maps
from guarded import Guard
from mode import BACKEND, DTYPES, REFUSED, long_interpreted
from oracle import OPCHECKS, assert_matches, random
from torch import Tensor

import scsco_fast as sf
from scsco_fast.ops.backend import implementation, is_compiled, refusal

kernels = implementation(BACKEND, "gram_distances")


def check(*tensors: Tensor) -> None:
    if is_compiled(BACKEND):
        assert_distances_match(tensors, BACKEND)
    else:  # the differences are not rounded
        assert_matches(sf.ops.gram_distances, tensors, BACKEND)


def gradients(grad: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    _, signs = kernels.forward(*tensors)
    return kernels.backward(grad, signs, *tensors, False)


def results(grad: Tensor, *tensors: Tensor) -> list[Tensor]:
    """All that forward and backward return."""
    distances, signs = kernels.forward(*tensors)
    return [distances, signs, *kernels.backward(grad, signs, *tensors, False)]


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


@long_interpreted
@pytest.mark.parametrize(("channels", "width"), [(130, 200), (256, 128)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_wide_tiles(channels: int, width: int, dtype: torch.dtype, guarded: Guard) -> None:
    """Half precision takes tiles of 128 x 128: full ones, and the last of a row."""
    for change in (lambda t: t, channels_last):
        check(*(guarded(change(t)) for t in maps(1, 2, channels, width, (3, 3), dtype)))


@long_interpreted
@pytest.mark.parametrize("pixels", [(24, 32), (23, 31)])
@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != torch.float16])
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
        lambda t: t.transpose(-1, -3).contiguous().transpose(-1, -3),
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
    if torch.bfloat16 in DTYPES:
        check(anchor, background.bfloat16(), others)


def test_equal_maps_have_distance_and_gradient_zero() -> None:
    anchor, background, _ = (t.requires_grad_() for t in maps(2, 1, 3, 4, (4, 5), torch.float32))
    distances = sf.ops.gram_distances(anchor, background, anchor.detach().unsqueeze(1), backend=BACKEND)
    distances.sum().backward()
    assert (distances == 0).all()
    assert (anchor.grad == 0).all()
    assert (background.grad == 0).all()


def test_parts_of_a_product_meet_before_the_absolute_value() -> None:
    """Halves of the pixels whose products cancel: the distance is 0, not the sum of the halves'."""
    anchor, background = torch.ones(1, 2, 32, 32), torch.ones(1, 3, 32, 32)
    background[:, :, 16:] = -1
    distances, signs = kernels.forward(anchor, background, torch.zeros(1, 2, 2, 32, 32))
    assert (distances == 0).all()
    assert (signs == 0).all()


def test_the_anchor_alone_has_the_same_gradient() -> None:
    anchor, *constants = maps(2, 2, 3, 4, (4, 5), torch.float32)
    every = [tensor.clone().requires_grad_() for tensor in (anchor, *constants)]
    alone = anchor.clone().requires_grad_()
    sf.ops.gram_distances(*every, backend=BACKEND).sum().backward()  # the gradient arrives expanded
    sf.ops.gram_distances(alone, *constants, backend=BACKEND).sum().backward()
    assert torch.equal(alone.grad, every[0].grad)
    assert all(tensor.grad is None for tensor in constants)


def test_differences_beyond_float16() -> None:
    """60000 - (-60000) is infinite in float16; the distance is not."""
    anchor = torch.full((1, 2, 2, 2), 6e4, dtype=torch.float16)
    background = torch.full((1, 2, 2, 2), 0.5, dtype=torch.float16)
    distance = sf.ops.gram_distances(anchor, background, -anchor.unsqueeze(1), backend=BACKEND)
    assert distance.item() == float(anchor[0, 0, 0, 0])


@pytest.mark.parametrize("scale", [2.0**-40, 2.0**20])
def test_gradients_of_any_size(scale: float) -> None:
    """The gradient of a distance meets float32 sums, never float16: scaled by a power of two it scales every bit."""
    tensors = maps(1, 3, 8, 16, (4, 6), torch.float32)
    grad = random(1, 3, dtype=torch.float32)
    plain, scaled = gradients(grad, *tensors), gradients(grad * scale, *tensors)
    assert all(torch.equal(a * scale, b) for a, b in zip(plain, scaled, strict=True))


def test_small_gradients_reach_float16_features() -> None:
    """1e-8 is 0 in float16; against features of 10^4 it is not."""
    anchor, background, others = maps(1, 2, 3, 4, (4, 6), torch.float16)
    grad = torch.full((1, 2), 1e-4)
    background *= 4000
    got = gradients(grad, anchor, background, others)
    signs = torch.einsum(
        "bjcn,bdn->bjcd", (anchor.unsqueeze(1) - others).float().flatten(3), background.float().flatten(2)
    )
    wanted = torch.einsum("bj,bjcd,bdn->bcn", grad / (3 * 4 * 24), signs.sign(), background.float().flatten(2))
    assert float(wanted.abs().max()) > 1e-3
    torch.testing.assert_close(got[0].float().flatten(2), wanted, rtol=2**-10, atol=2**-24)


def test_no_others_and_no_images() -> None:
    for batch, others in ((2, 0), (0, 2)):
        anchor, background, further = (t.requires_grad_() for t in maps(batch, others, 3, 4, (2, 2), torch.float32))
        distances = sf.ops.gram_distances(anchor, background, further, backend=BACKEND)
        assert distances.shape == (batch, others)
        for gradient in torch.autograd.grad(distances.sum(), (anchor, background, further)):
            assert (gradient == 0).all()


def test_registered_op_passes_opcheck() -> None:
    tensors = (t.requires_grad_() for t in maps(1, 2, 3, 4, (2, 3), torch.float32))
    operation = torch.ops.scsco_fast.gram_distances.default
    torch.library.opcheck(operation, (*tensors, BACKEND), test_utils=OPCHECKS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_every_time(dtype: torch.dtype) -> None:
    tensors = maps(2, 3, 72, 70, (6, 8), dtype)
    grad = random(2, 3, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    found = [results(grad, *tensors) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


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
        assert all(torch.equal(a, b) for a, b in zip(results(grad, *plain), results(grad, *moved), strict=True))


@pytest.mark.parametrize(("channels", "dtype", "reason"), REFUSED)
def test_what_is_not_served_is_named(channels: int, dtype: torch.dtype, reason: str) -> None:
    tensors = maps(1, 1, channels, 2, (1, 2), dtype)
    assert reason in str(refusal(BACKEND, "gram_distances", *tensors))
    with pytest.raises(RuntimeError, match=reason):
        sf.ops.gram_distances(*tensors, backend=BACKEND)
