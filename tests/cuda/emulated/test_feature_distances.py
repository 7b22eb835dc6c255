"""feature_distances compiled from csrc/ against the float64 formulas."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import assert_matches, random
from torch import Tensor

import scsco_fast as sf
from scsco_fast.cuda import feature_distances
from scsco_fast.cuda.library import operations

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")
Guard = Callable[[Tensor], Tensor]


def maps(batch: int, others: int, channels: int, pixels: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return random(batch, channels, *pixels, dtype=dtype), random(batch, others, channels, *pixels, seed=2, dtype=dtype)


def check(anchor: Tensor, others: Tensor) -> None:
    assert_matches(sf.ops.feature_distances, [anchor, others], "cuda")


@pytest.mark.parametrize("pixels", [1, 2, 15, 16, 17, 31, 63, 64, 65, 127, 130])
def test_pixels(pixels: int, guarded: Guard) -> None:
    check(*(guarded(t) for t in maps(1, 2, 3, (1, pixels), torch.float32)))


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
    ("channels", "pixels", "splits"),
    [
        (5, (12, 16), 1),  # in the order of memory, 1024 elements at once
        (5, (64, 64), 20),
        (4, (243, 270), 129),  # 257 blocks: two to a split, the last has one
        (5, (3, 7), 1),  # in tiles of 64 channels by 32 pixels
        (5, (63, 65), 128),
        (65, (55, 75), 129),  # 2 x 129 tiles: one split has the last of a row and the first of the next
    ],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_splits_join(channels: int, pixels: tuple[int, int], splits: int, channels_last: bool) -> None:
    """Shapes that are cut into 256 splits at most."""
    anchor, others = maps(1, 1, channels, pixels, torch.float32)
    if channels_last:
        anchor, others = (t.movedim(-3, -1).contiguous().movedim(-1, -3) for t in (anchor, others))
    parts = operations().feature_distances_forward(anchor.flatten(2), others.flatten(3))
    assert parts.shape == (1, 1, splits)
    check(anchor, others)


@pytest.mark.parametrize("pixels", [(4, 5), (5, 7)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(dtype: torch.dtype, pixels: tuple[int, int], guarded: Guard) -> None:
    anchor, others = maps(2, 2, 3, pixels, dtype)
    last = [t.movedim(-3, -1).contiguous().movedim(-1, -3) for t in (anchor, others)]
    check(*(guarded(t) for t in last))
    check(last[0], others)
    check(anchor, last[1])
    check(*(t[:1].expand(2, *t.shape[1:]) for t in (anchor, others)))
    check(*(t.transpose(-1, -2) for t in (anchor, others)))
    check(anchor[:, 1:], others[:, :, 1:])
    check(anchor[..., 1:], others[..., 1:])


def test_channels_last_of_several_tiles(guarded: Guard) -> None:
    anchor, others = maps(1, 2, 70, (5, 9), torch.float16)
    check(*(guarded(t.movedim(-3, -1).contiguous().movedim(-1, -3)) for t in (anchor, others)))


def test_two_dtypes() -> None:
    anchor, others = maps(1, 2, 3, (4, 5), torch.float16)
    check(anchor.float(), others)
    check(anchor, others.float())
    check(anchor.bfloat16(), others)


def test_equal_maps_have_distance_and_gradient_zero() -> None:
    anchor = random(2, 3, 4, 5, dtype=torch.float32).requires_grad_()
    distances = sf.ops.feature_distances(anchor, anchor.detach().unsqueeze(1), backend="cuda")
    distances.sum().backward()
    assert (distances == 0).all()
    assert (anchor.grad == 0).all()


def test_differences_beyond_float16() -> None:
    """60000 - (-60000) is infinite in float16; the distance is not."""
    anchor = torch.full((1, 2, 2, 2), 6e4, dtype=torch.float16)
    distances = sf.ops.feature_distances(anchor, -anchor.unsqueeze(1), backend="cuda")
    assert distances.item() == 2 * float(anchor[0, 0, 0, 0])


@pytest.mark.parametrize("count", [0, 2])
def test_nothing_to_compare(count: int) -> None:
    anchor = torch.ones(3 - count, 2, 4, 4)[: 3 * (count == 0)].requires_grad_()
    distances = sf.ops.feature_distances(anchor, torch.ones(anchor.shape[0], count, 2, 4, 4), backend="cuda")
    assert distances.shape == (anchor.shape[0], count)
    distances.sum().backward()
    assert (anchor.grad == 0).all()


def test_registered_op_passes_opcheck() -> None:
    anchor, others = (t.requires_grad_() for t in maps(1, 2, 2, (2, 3), torch.float32))
    operation = torch.ops.scsco_fast.feature_distances.default
    torch.library.opcheck(operation, (anchor, others, "cuda"), test_utils=CHECKS)


def test_the_same_bits_every_time() -> None:
    anchor, others = maps(2, 3, 5, (33, 40), torch.float32)
    results = [feature_distances.forward(anchor, others) for _ in range(2)]
    assert torch.equal(*results)


def test_addresses_pass_2_to_the_31(tmp_path: Path) -> None:
    """Channels 2^30 elements apart, in a sparse file of which a few pages exist."""
    anchor, others = maps(1, 1, 4, (2, 3), torch.float16)
    apart = 2**30
    file = np.memmap(tmp_path / "sparse", np.float16, "w+", shape=(3 * apart + 6,))
    far = torch.from_numpy(file).as_strided((1, 4, 2, 3), (0, apart, 3, 1)).copy_(anchor)
    grad = torch.ones(1, 1)
    for near, moved in (((anchor, others), (far, others)), ((others[0], anchor[None]), (others[0], far[None]))):
        assert torch.equal(feature_distances.forward(*near), feature_distances.forward(*moved))
        pairs = zip(*(feature_distances.backward(grad, *maps, False) for maps in (near, moved)), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_what_is_not_served_is_named() -> None:
    anchor, others = maps(1, 1, 2, (2, 2), torch.float64)
    with pytest.raises(RuntimeError, match="float64"):
        sf.ops.feature_distances(anchor, others, backend="cuda")
