"""What is particular to region_norm's Triton kernels: the forms they take, and their moments. See tests/contract."""

import math

import pytest
import torch
from contract.test_region_norm import check, inputs
from guarded import Guard
from oracle import make_mask, random

from scsco_fast.kernels.region_norm import launch as kernels
from scsco_fast.regions import Regions

DTYPES = [torch.float32, torch.float16]


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
        affine = torch.tensor([[1.0], [0.0], [1.0], [0.0]]).expand(4, 2)
        _, mean, std = kernels.forward(x, foreground, None, affine, 1e-5, True)
        for which, region in enumerate((foreground, ~foreground)):
            inside = x.double()[0][:, region[0, 0]]
            truth = (inside.var(1, correction=0) + 1e-5).sqrt()
            eps, largest = torch.finfo(torch.float32).eps, inside.abs().amax(1)
            band = math.log2(pixels) * eps
            assert ((mean[0, :, which] - inside.mean(1)).abs() <= band * largest).all()
            # The deviations are from a mean that float32 can hold, which adds its error's square to the variance.
            assert ((std[0, :, which] / truth - 1).abs() <= band + (eps * largest / truth) ** 2).all()
