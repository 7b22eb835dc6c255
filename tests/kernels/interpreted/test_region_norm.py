"""region_norm's kernels against the float64 formulas: masks, shapes, layouts, large means, int64 addresses."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import assert_matches, make_mask, random
from torch import Tensor

import scsco_fast as sf
from scsco_fast.kernels import region_norm as kernels
from scsco_fast.regions import RegionLevel, Regions

DTYPES = [torch.float32, torch.float16]
Guard = Callable[[Tensor], Tensor]


def inputs(
    batch: int, channels: int, height: int, width: int, dtype: torch.dtype = torch.float32, offset: float = 2.0
) -> list[Tensor]:
    """x, and gains and offsets of both regions."""
    parameters = [random(channels, seed=seed, dtype=torch.float32) for seed in (11, 12, 13, 14)]
    return [random(batch, channels, height, width, dtype=dtype, offset=offset), *parameters]


def check(tensors: list[Tensor], regions: Regions | Tensor, adapt: bool = True) -> None:
    assert_matches(lambda x, *p: sf.ops.region_norm(x, regions, *p, adapt=adapt), tensors, "triton")


def level_of(mask: str, batch: int, height: int, width: int) -> RegionLevel:
    return Regions(make_mask(mask, batch, height, width)).at(height, width)


@pytest.mark.parametrize("adapt", [True, False])
@pytest.mark.parametrize("mask", ["random", "empty", "full", "one pixel", "all but one", "ragged"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_masks(mask: str, dtype: torch.dtype, adapt: bool, guarded: Guard) -> None:
    check([guarded(t) for t in inputs(3, 5, 4, 7, dtype)], make_mask(mask, 3, 4, 7), adapt)


@pytest.mark.parametrize("pixels", [1, 2, 15, 16, 17, 31, 63, 64, 65, 127, 130])
def test_pixels(pixels: int, guarded: Guard) -> None:
    mask = make_mask("random", 1, 1, pixels)
    check([guarded(t) for t in inputs(1, 3, 1, pixels)], Regions(mask, make_mask("random", 1, 1, pixels, seed=5)))


@pytest.mark.parametrize("channels", [1, 15, 65])
def test_channels(channels: int, guarded: Guard) -> None:
    check([guarded(t) for t in inputs(1, channels, 5, 6, torch.float16)], make_mask("random", 1, 5, 6))


@pytest.mark.parametrize("mask", ["random", "block"])
def test_splits_join(mask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks in a part and several parts in an image, in both layouts."""
    for name, value in (("TILES", ()), ("CHANNELS_LAST_TILES", ()), ("FEW_PIXELS", 0)):
        monkeypatch.setattr(kernels, name, value)
    monkeypatch.setattr(kernels, "SPLIT_TILES", {True: kernels.Tile(1, 64, 4), False: kernels.Tile(2, 32, 4)})
    x, *parameters = inputs(1, 3, 9, 17)
    for programs in (2, 8):
        monkeypatch.setattr(kernels, "PROGRAMS", programs)
        for image in (x, x.to(memory_format=torch.channels_last)):
            assert kernels._plan(image.flatten(2)).form == "split"
            check([image, *parameters], make_mask(mask, 1, 9, 17))


@pytest.mark.parametrize("valid", [False, True])
@pytest.mark.parametrize("mask", ["random", "empty", "full", "one pixel"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_planes_of_several_steps(mask: str, dtype: torch.dtype, valid: bool, guarded: Guard) -> None:
    """Whole steps, and a last one that is not full."""
    for size in ((32, 128), (43, 53)):
        tensors = [guarded(t) for t in inputs(1, 2, *size, dtype)]
        assert kernels._plan(tensors[0].flatten(2)).form == "plane"
        check(tensors, Regions(make_mask(mask, 1, *size), make_mask("random", 1, *size, seed=5) if valid else None))


@pytest.mark.parametrize("size", [(20, 30), (48, 48)])
@pytest.mark.parametrize("offset", [1e3, 1e4])
@pytest.mark.parametrize("apart", [0.0, 1e3])
def test_moments_keep_their_digits(size: tuple[int, int], offset: float, apart: float) -> None:
    """Far from 0, regions far from each other, a pixel far from its region, a region that the sample of pixels misses.

    A moment may err by one float32 rounding for each of the log2(n) levels of a pairwise sum.
    """
    pixels = size[0] * size[1]
    index = torch.arange(pixels).reshape(1, 1, *size)
    unsampled = (index % 18 >= 16) & (index < 1000)  # of 48 x 48: the pixels between runs of 16 in every 18
    for foreground in (*(make_mask(kind, 1, *size) > 0.5 for kind in ("random", "block", "one pixel")), unsampled):
        x = random(1, 2, *size, offset=offset) + apart * foreground
        x[0, 1] += 1e3 * (index[0, 0] == 0)
        x = x.float()
        ones, zeros = torch.ones(2), torch.zeros(2)
        _, mean, std = kernels.forward(x, foreground, None, ones, zeros, ones, zeros, 1e-5, True)
        for which, region in enumerate((foreground, ~foreground)):
            inside = x.double()[0][:, region[0, 0]]
            truth = (inside.var(1, correction=0) + 1e-5).sqrt()
            eps, largest = torch.finfo(torch.float32).eps, inside.abs().amax(1)
            band = math.log2(pixels) * eps
            assert ((mean[0, :, which] - inside.mean(1)).abs() <= band * largest).all()
            # The deviations are from a mean that float32 can hold, which adds its error's square to the variance.
            assert ((std[0, :, which] / truth - 1).abs() <= band + (eps * largest / truth) ** 2).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(dtype: torch.dtype, guarded: Guard) -> None:
    mask = make_mask("random", 2, 4, 6)
    x, *parameters = inputs(2, 5, 4, 6, dtype)
    for changed in (
        x.to(memory_format=torch.channels_last),
        x[:1].expand(2, -1, -1, -1),
        inputs(2, 5, 6, 4, dtype)[0].transpose(2, 3),
        x[:, :, :1, :1].expand(-1, -1, 4, 6),
    ):
        check([guarded(changed) if 0 not in changed.stride() else changed, *parameters], mask)


def test_expanded_gradient() -> None:
    x, *parameters = (t.requires_grad_() for t in inputs(2, 3, 4, 4))
    mask, grads = make_mask("random", 2, 4, 4), []
    for backend in ("triton", "eager"):
        y = sf.ops.region_norm(x, mask, *parameters, backend=backend)
        grads.append(torch.autograd.grad(y.sum(), [x, *parameters]))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_excluded_pixels_may_hold_nan() -> None:
    level = Regions(make_mask("random", 2, 5, 7), make_mask("random", 2, 5, 7, seed=9)).at(5, 7)
    clean, *p = inputs(2, 3, 5, 7)
    grad = random(2, 3, 5, 7, seed=3, dtype=torch.float32)
    results = []
    for x, dy in (
        (clean, grad),
        (torch.where(level.valid, clean, torch.nan), torch.where(level.valid, grad, torch.nan)),
    ):
        y, mean, std = kernels.forward(x, level.foreground, level.valid, *p, 1e-5, True)
        back = kernels.backward(dy, x, level.foreground, level.valid, p[0], p[2], mean, std, True)
        results.append((y, mean, std, *back))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert (results[0][0][~level.valid.expand_as(clean)] == 0).all()


def test_a_large_mean_does_not_hide_the_deviation() -> None:
    """E[x^2] - E[x]^2 in float32 would have no correct digit here: (10^4)^2 eps is 12."""
    x, level = random(1, 2, 20, 30, dtype=torch.float32, offset=1e4), level_of("random", 1, 20, 30)
    ones, zeros = torch.ones(2), torch.zeros(2)
    _, _, std = kernels.forward(x, level.foreground, None, ones, zeros, ones, zeros, 1e-5, True)
    truth = torch.stack(
        [x.double()[0][:, region[0, 0]].var(1, correction=0) for region in (level.foreground, level.background)]
    )
    torch.testing.assert_close(std[0].double(), (truth.T + 1e-5).sqrt(), rtol=1e-4, atol=0)


def test_registered_op_passes_opcheck() -> None:
    level = Regions(make_mask("random", 1, 2, 3), make_mask("random", 1, 2, 3, seed=5)).at(2, 3)
    x, *parameters = (t.requires_grad_() for t in inputs(1, 2, 2, 3))
    arguments = (x, level.foreground, level.valid, *parameters, 1e-5, True, "triton")
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.scsco_fast.region_norm.default, arguments, test_utils=checks)


def test_addresses_pass_2_to_the_31(tmp_path: Path) -> None:
    """Channels 2^30 elements apart, in a sparse file of which a few pages exist."""
    (x, *p), level = inputs(1, 4, 2, 3, torch.float16), level_of("block", 1, 2, 3)
    apart = 2**30
    file = np.memmap(tmp_path / "sparse", np.float16, "w+", shape=(3 * apart + 6,))
    far = torch.from_numpy(file).as_strided((1, 4, 2, 3), (0, apart, 3, 1)).copy_(x)
    near, moved = [], []
    for image, results in ((x, near), (far, moved)):
        y, mean, std = kernels.forward(image, level.foreground, None, *p, 1e-5, True)
        results += [y, mean, std, *kernels.backward(image, image, level.foreground, None, p[0], p[2], mean, std, True)]
    assert all(torch.equal(a, b) for a, b in zip(near, moved, strict=True))


@pytest.mark.parametrize(
    ("channels", "dtype", "reason"), [(513, torch.float32, "513 channels"), (2, torch.float64, "float64")]
)
def test_what_is_not_served_is_named(channels: int, dtype: torch.dtype, reason: str) -> None:
    x, *p = inputs(1, channels, 1, 2, dtype)
    assert reason in str(kernels.supports(x))
    with pytest.raises(ValueError, match=reason):
        kernels.forward(x, level_of("block", 1, 1, 2).foreground, None, *p, 1e-5, True)


def test_an_empty_batch() -> None:
    check_empty = sf.ops.region_norm(torch.zeros(0, 3, 4, 4), torch.zeros(0, 1, 4, 4), backend="triton")
    assert check_empty.shape == (0, 3, 4, 4)
