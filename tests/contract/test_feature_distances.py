"""feature_distances of every backend against the float64 formulas."""

from pathlib import Path

import numpy as np
import pytest
import torch
from guarded import Guard
from mode import BACKEND, DTYPES, REFUSED, long_interpreted
from oracle import OPCHECKS, assert_matches, random
from torch import Tensor

import scsco_fast as sf
from scsco_fast.ops.backend import implementation, refusal

kernels = implementation(BACKEND, "feature_distances")


def maps(batch: int, others: int, channels: int, pixels: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return random(batch, channels, *pixels, dtype=dtype), random(batch, others, channels, *pixels, seed=2, dtype=dtype)


def check(anchor: Tensor, others: Tensor) -> None:
    assert_matches(sf.ops.feature_distances, [anchor, others], BACKEND)


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.movedim(-3, -1).contiguous().movedim(-1, -3)


@pytest.mark.parametrize("pixels", [1, 2, 15, 16, 17, 31, 63, 64, 65, 127, 130])
def test_pixels(pixels: int, guarded: Guard) -> None:
    check(*(guarded(t) for t in maps(1, 2, 3, (1, pixels), torch.float32)))


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 2), (3, 15, 16), (17, 5, 31), (65, 8, 8)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_shapes(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    channels, *pixels = shape
    check(*maps(2, 3, channels, tuple(pixels), dtype))


@pytest.mark.parametrize("channels", [1, 3, 64, 65, 130])
@pytest.mark.parametrize("dtype", DTYPES)
def test_channels(channels: int, dtype: torch.dtype, guarded: Guard) -> None:
    check(*(guarded(t) for t in maps(1, 2, channels, (3, 5), dtype)))


@pytest.mark.parametrize("pixels", [(3, 5), (4, 8)])
@pytest.mark.parametrize("others", [1, 3, 9, 17])
def test_others(others: int, pixels: tuple[int, int], guarded: Guard) -> None:
    """Nine are more than are held at once."""
    check(*(guarded(t) for t in maps(2, others, 3, pixels, torch.float32)))


@pytest.mark.parametrize(
    ("channels", "pixels"),
    [
        (5, (12, 16)),  # in the order of memory
        (5, (64, 64)),
        pytest.param(4, (243, 270), marks=long_interpreted),  # 257 blocks of 1024: the last split has fewer
        (5, (3, 7)),  # in tiles
        (5, (63, 65)),
        pytest.param(65, (55, 75), marks=long_interpreted),  # a split has the end of a row and the start of the next
    ],
)
@pytest.mark.parametrize("last", [False, True])
def test_splits_join(channels: int, pixels: tuple[int, int], last: bool) -> None:
    check(*(channels_last(t) if last else t for t in maps(1, 1, channels, pixels, torch.float32)))


@pytest.mark.parametrize("pixels", [(4, 5), (5, 7)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(dtype: torch.dtype, pixels: tuple[int, int], guarded: Guard) -> None:
    anchor, others = maps(2, 2, 3, pixels, dtype)
    last = [channels_last(t) for t in (anchor, others)]
    check(*(guarded(t) for t in last))
    check(last[0], others)
    check(anchor, last[1])
    check(*(t[:1].expand(2, *t.shape[1:]) for t in (anchor, others)))
    check(*(t.transpose(-1, -2) for t in (anchor, others)))
    check(*(t.transpose(-1, -3).contiguous().transpose(-1, -3) for t in (anchor, others)))
    check(anchor[:, 1:], others[:, :, 1:])
    check(anchor[..., 1:], others[..., 1:])


def test_channels_last_of_several_tiles(guarded: Guard) -> None:
    check(*(guarded(channels_last(t)) for t in maps(1, 2, 70, (5, 9), torch.float16)))


def test_two_dtypes() -> None:
    anchor, others = maps(1, 2, 3, (4, 5), torch.float16)
    check(anchor.float(), others)
    check(anchor, others.float())
    if torch.bfloat16 in DTYPES:
        check(anchor.bfloat16(), others)


def test_equal_maps_have_distance_and_gradient_zero() -> None:
    anchor = random(2, 3, 4, 5, dtype=torch.float32).requires_grad_()
    distances = sf.ops.feature_distances(anchor, anchor.detach().unsqueeze(1), backend=BACKEND)
    distances.sum().backward()
    assert (distances == 0).all()
    assert (anchor.grad == 0).all()


def test_the_anchor_alone_has_the_same_gradient() -> None:
    anchor, others = maps(2, 2, 3, (4, 5), torch.float32)
    every = [tensor.clone().requires_grad_() for tensor in (anchor, others)]
    alone = anchor.clone().requires_grad_()
    sf.ops.feature_distances(*every, backend=BACKEND).sum().backward()
    sf.ops.feature_distances(alone, others, backend=BACKEND).sum().backward()
    assert torch.equal(alone.grad, every[0].grad)
    assert others.grad is None


def test_differences_beyond_float16() -> None:
    """60000 - (-60000) is infinite in float16; the distance is not."""
    anchor = torch.full((1, 2, 2, 2), 6e4, dtype=torch.float16)
    distances = sf.ops.feature_distances(anchor, -anchor.unsqueeze(1), backend=BACKEND)
    assert distances.item() == 2 * float(anchor[0, 0, 0, 0])


@pytest.mark.parametrize(("batch", "count"), [(3, 0), (0, 2)])
def test_nothing_to_compare(batch: int, count: int) -> None:
    anchor = torch.ones(batch, 2, 4, 4, requires_grad=True)
    distances = sf.ops.feature_distances(anchor, torch.ones(batch, count, 2, 4, 4), backend=BACKEND)
    assert distances.shape == (batch, count)
    distances.sum().backward()
    assert (anchor.grad == 0).all()


def test_registered_op_passes_opcheck() -> None:
    anchor, others = (t.requires_grad_() for t in maps(1, 2, 2, (2, 3), torch.float32))
    operation = torch.ops.scsco_fast.feature_distances.default
    torch.library.opcheck(operation, (anchor, others, BACKEND), test_utils=OPCHECKS)


def test_the_same_bits_every_time() -> None:
    anchor, others = maps(2, 3, 5, (33, 40), torch.float32)
    results = [kernels.forward(anchor, others) for _ in range(2)]
    assert torch.equal(*results)


def test_addresses_pass_2_to_the_31(tmp_path: Path) -> None:
    """Channels 2^30 elements apart, in a sparse file of which a few pages exist."""
    anchor, others = maps(1, 1, 4, (2, 3), torch.float16)
    apart = 2**30
    file = np.memmap(tmp_path / "sparse", np.float16, "w+", shape=(3 * apart + 6,))
    far = torch.from_numpy(file).as_strided((1, 4, 2, 3), (0, apart, 3, 1)).copy_(anchor)
    grad = torch.ones(1, 1)
    for near, moved in (((anchor, others), (far, others)), ((others[0], anchor[None]), (others[0], far[None]))):
        # Triton reads the near map as one channel, and adds up in another order.
        torch.testing.assert_close(kernels.forward(*near), kernels.forward(*moved))
        pairs = zip(kernels.backward(grad, *near, False), kernels.backward(grad, *moved, False), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(("channels", "dtype", "reason"), REFUSED)
def test_what_is_not_served_is_named(channels: int, dtype: torch.dtype, reason: str) -> None:
    anchor, others = maps(1, 1, channels, (1, 2), dtype)
    assert reason in str(refusal(BACKEND, "feature_distances", anchor, others))
    with pytest.raises(RuntimeError, match=reason):
        sf.ops.feature_distances(anchor, others, backend=BACKEND)
