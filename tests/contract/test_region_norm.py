"""region_norm of every backend against the float64 formulas: masks, shapes, layouts, large means, int64 addresses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from guarded import Guard
from mode import BACKEND, DTYPES, OTHER, REFUSED
from oracle import MASKS, OPCHECKS, assert_matches, make_mask, random
from torch import Tensor

import scsco_fast as sf
from scsco_fast.ops.backend import implementation, refusal
from scsco_fast.regions import RegionLevel, Regions

kernels = implementation(BACKEND, "region_norm")


def inputs(
    batch: int, channels: int, height: int, width: int, dtype: torch.dtype = torch.float32, offset: float = 2.0
) -> list[Tensor]:
    """x, and gains and offsets of both regions."""
    parameters = [random(channels, seed=seed, dtype=torch.float32) for seed in (11, 12, 13, 14)]
    return [random(batch, channels, height, width, dtype=dtype, offset=offset), *parameters]


def check(tensors: list[Tensor], regions: Regions | Tensor, adapt: bool = True) -> None:
    assert_matches(lambda x, *p: sf.ops.region_norm(x, regions, *p, adapt=adapt), tensors, BACKEND)


def results(x: Tensor, grad: Tensor, parameters: list[Tensor], level: RegionLevel) -> list[Tensor]:
    """All that forward and backward return."""
    where, affine = (x, level.foreground, level.valid, torch.stack(parameters)), (1e-5, True)
    y, mean, std = kernels.forward(*where, *affine)
    return [y, mean, std, *kernels.backward(grad, *where, mean, std, True)]


def level_of(mask: str, batch: int, height: int, width: int) -> RegionLevel:
    return Regions(make_mask(mask, batch, height, width)).at(height, width)


@pytest.mark.parametrize("adapt", [True, False])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_masks(mask: str, dtype: torch.dtype, adapt: bool, guarded: Guard) -> None:
    check([guarded(t) for t in inputs(3, 5, 7, 9, dtype)], make_mask(mask, 3, 7, 9), adapt)


@pytest.mark.parametrize("pixels", [1, 2, 15, 16, 17, 31, 63, 64, 65, 127, 130])
def test_pixels(pixels: int, guarded: Guard) -> None:
    mask = make_mask("random", 1, 1, pixels)
    check([guarded(t) for t in inputs(1, 3, 1, pixels)], Regions(mask, make_mask("random", 1, 1, pixels, seed=5)))


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (15, 16), (17, 31), (63, 65), (127, 2)])
def test_odd_shapes(shape: tuple[int, int]) -> None:
    check(inputs(2, 3, *shape), make_mask("random", 2, *shape))


@pytest.mark.parametrize("channels", [1, 15, 65])
def test_channels(channels: int, guarded: Guard) -> None:
    check([guarded(t) for t in inputs(1, channels, 5, 6, torch.float16)], make_mask("random", 1, 5, 6))


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != torch.float64])
def test_layouts(dtype: torch.dtype, guarded: Guard) -> None:
    mask = make_mask("random", 2, 4, 6)
    x, *parameters = inputs(2, 5, 4, 6, dtype)
    maps = [
        x.to(memory_format=torch.channels_last),
        x[:1].expand(2, -1, -1, -1),
        inputs(2, 5, 6, 4, dtype)[0].transpose(2, 3),
    ]
    if BACKEND != "eager":  # its means are a matrix product's, whose rounding 1 / sqrt(eps) then multiplies
        maps.append(x[:, :, :1, :1].expand(-1, -1, 4, 6))
    for changed in maps:
        check([guarded(changed) if 0 not in changed.stride() else changed, *parameters], mask)


def test_maps_and_masks_with_gaps() -> None:
    """Neither order of memory is dense, or vectors are not aligned; one mask for all images."""
    x, *parameters = inputs(2, 9, 6, 8)
    mask = make_mask("random", 2, 6, 8)
    for part in (x[:, 1:], x.to(memory_format=torch.channels_last)[:, 1:]):
        check([part, *(p[1:] for p in parameters)], mask)
    check([x[..., 1:], *parameters], mask[..., 1:])
    check([x, *parameters], Regions(mask).at(6, 8))
    check([x, *parameters], mask[:1].expand(2, -1, -1, -1))


def test_expanded_gradient() -> None:
    x, *parameters = (t.requires_grad_() for t in inputs(2, 3, 4, 4))
    mask, grads = make_mask("random", 2, 4, 4), []
    for backend in (BACKEND, OTHER):
        y = sf.ops.region_norm(x, mask, *parameters, backend=backend)
        grads.append(torch.autograd.grad(y.sum(), [x, *parameters]))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_excluded_pixels_may_hold_nan() -> None:
    level = Regions(make_mask("random", 2, 5, 7), make_mask("random", 2, 5, 7, seed=9)).at(5, 7)
    clean, *p = inputs(2, 3, 5, 7)
    grad = random(2, 3, 5, 7, seed=3, dtype=torch.float32)
    poisoned = (torch.where(level.valid, t, torch.nan) for t in (clean, grad))
    found = results(clean, grad, p, level), results(*poisoned, p, level)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert (found[0][0][~level.valid.expand_as(clean)] == 0).all()


def test_a_large_mean_does_not_hide_the_deviation() -> None:
    """E[x^2] - E[x]^2 in float32 would have no correct digit here: (10^4)^2 eps is 12."""
    x, level = random(1, 2, 20, 30, dtype=torch.float32, offset=1e4), level_of("random", 1, 20, 30)
    ones, zeros = torch.ones(2), torch.zeros(2)
    std = results(x, x, [ones, zeros, ones, zeros], level)[2]
    truth = torch.stack(
        [x.double()[0][:, region[0, 0]].var(1, correction=0) for region in (level.foreground, level.background)]
    )
    torch.testing.assert_close(std[0].double(), (truth.T + 1e-5).sqrt(), rtol=1e-4, atol=0)


def test_parameters_of_another_dtype_and_stride() -> None:
    """Each may be of a dtype and a layout of its own; the operation itself takes them in any floating dtype too."""
    (x, *p), mask = inputs(1, 4, 3, 5), make_mask("random", 1, 3, 5)
    changed = [p[0].half(), p[1].repeat_interleave(2)[::2], p[2].double(), p[3].bfloat16()]
    got, wanted = (
        sf.ops.region_norm(x, mask, *these, backend=BACKEND)
        for these in (changed, [t.float().contiguous() for t in changed])
    )
    assert torch.equal(got, wanted)
    level, affine = level_of("random", 1, 3, 5), torch.stack(p)
    alike = [
        kernels.forward(x, level.foreground, None, a, 1e-5, True) for a in (affine, affine.T.contiguous().T.double())
    ]
    assert all(torch.equal(a, b) for a, b in zip(*alike, strict=True))


def test_registered_op_passes_opcheck() -> None:
    level = Regions(make_mask("random", 1, 2, 3), make_mask("random", 1, 2, 3, seed=5)).at(2, 3)
    x, *parameters = inputs(1, 2, 2, 3)
    affine = torch.stack(parameters).requires_grad_()
    arguments = (x.requires_grad_(), level.foreground, level.valid, affine, 1e-5, True, BACKEND)
    torch.library.opcheck(torch.ops.scsco_fast.region_norm.default, arguments, test_utils=OPCHECKS)


def test_addresses_pass_2_to_the_31(tmp_path: Path) -> None:
    """Channels 2^30 elements apart, in a sparse file of which a few pages exist."""
    (x, *p), level = inputs(1, 4, 2, 3, torch.float16), level_of("block", 1, 2, 3)
    apart = 2**30
    file = np.memmap(tmp_path / "sparse", np.float16, "w+", shape=(3 * apart + 6,))
    far = torch.from_numpy(file).as_strided((1, 4, 2, 3), (0, apart, 3, 1)).copy_(x)
    near, moved = (results(image, image, p, level) for image in (x, far))
    assert all(torch.equal(a, b) for a, b in zip(near, moved, strict=True))


@pytest.mark.parametrize(("channels", "dtype", "reason"), REFUSED)
def test_what_is_not_served_is_named(channels: int, dtype: torch.dtype, reason: str) -> None:
    x, *p = inputs(1, channels, 1, 2, dtype)
    assert reason in str(refusal(BACKEND, "region_norm", x))
    with pytest.raises(RuntimeError, match=reason):
        sf.ops.region_norm(x, make_mask("block", 1, 1, 2), *p, backend=BACKEND)


def test_the_same_bits_every_time() -> None:
    (x, *p), level = inputs(2, 3, 40, 40), level_of("random", 2, 40, 40)
    found = [results(x, x, p, level) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_an_empty_batch() -> None:
    x = torch.zeros(0, 3, 4, 4, requires_grad=True)
    gain = torch.ones(3, requires_grad=True)
    y = sf.ops.region_norm(x, torch.zeros(0, 1, 4, 4), gain, backend=BACKEND)
    assert y.shape == (0, 3, 4, 4)
    assert torch.autograd.grad(y.sum(), gain)[0].tolist() == [0, 0, 0]
