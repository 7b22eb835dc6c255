"""region_norm: gradients, its edge cases and errors; tests/contract holds each backend to the formula in float64."""

import pytest
import torch
from oracle import assert_matches, make_mask, random

import scsco_fast as sf


def parameters(channels: int, dtype: torch.dtype) -> list[torch.Tensor]:
    return [random(channels, seed=seed, dtype=dtype) for seed in (11, 12, 13, 14)]


@pytest.mark.parametrize("backend", ["reference", "eager"])
@pytest.mark.parametrize("mask", ["random", "one pixel", "empty", "full"])
def test_gradcheck(backend: str, mask: str) -> None:
    regions = sf.Regions(make_mask(mask, 2, 3, 4), make_mask("all but one", 2, 3, 4))
    inputs = [t.requires_grad_() for t in (random(2, 2, 3, 4), *parameters(2, torch.float64))]
    assert torch.autograd.gradcheck(lambda x, *p: sf.ops.region_norm(x, regions, *p, backend=backend), inputs)


@pytest.mark.parametrize("backend", ["reference", "eager"])
def test_regions_have_the_stated_moments(backend: str) -> None:
    x, mask = random(2, 4, 8, 8, offset=3.0), make_mask("random", 2, 8, 8)
    y = sf.ops.region_norm(x, mask, eps=0.0, backend=backend)
    for image in range(2):
        inside = mask[image, 0] > 0.5
        back = x[image][:, ~inside]
        torch.testing.assert_close(y[image][:, inside].mean(1), back.mean(1))
        torch.testing.assert_close(y[image][:, inside].var(1, correction=0), back.var(1, correction=0))
        torch.testing.assert_close(y[image][:, ~inside].mean(1), torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("backend", ["reference", "eager"])
def test_excluded_pixels_change_nothing_and_may_hold_nan(backend: str) -> None:
    mask, valid = make_mask("random", 2, 6, 6), make_mask("random", 2, 6, 6, seed=3)
    x = random(2, 3, 6, 6)
    clean = sf.ops.region_norm(x, sf.Regions(mask, valid), backend=backend)
    poisoned = torch.where(valid > 0.5, x, torch.nan).requires_grad_()
    y = sf.ops.region_norm(poisoned, sf.Regions(mask, valid), backend=backend)
    torch.testing.assert_close(y, clean, rtol=0, atol=0)
    assert (y[(valid < 0.5).expand_as(y)] == 0).all()
    if backend == "eager":
        y.sum().backward()
        assert torch.isfinite(poisoned.grad).all()


def test_layouts_give_the_same_bits() -> None:
    mask = make_mask("random", 2, 8, 6)
    x = random(2, 6, 8, 4, dtype=torch.float32).permute(0, 3, 2, 1)
    y = sf.ops.region_norm(x, mask)
    assert y.is_contiguous()
    torch.testing.assert_close(y, sf.ops.region_norm(x.contiguous(), mask), rtol=0, atol=0)
    expanded = random(1, 3, 8, 6, dtype=torch.float32).expand(2, -1, -1, -1)
    assert_matches(lambda x: sf.ops.region_norm(x, mask), [expanded])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 3, 4)}, r"x must have shape \(B, C, H, W\)"),
        ({"x": torch.zeros(2, 3, 4, 4, dtype=torch.int64)}, "x must be float16"),
        ({"regions_or_mask": torch.zeros(1, 1, 4, 4)}, "mask's batch"),
        ({"regions_or_mask": torch.zeros(2, 1, 4, 4, dtype=torch.uint8)}, "divide an 8-bit mask by 255"),
        ({"fg_weight": torch.zeros(4)}, "shape of fg_weight"),
        ({"backend": "fast"}, "'fast' is not one of"),
    ],
)
def test_bad_arguments_are_named(change: dict, message: str) -> None:
    arguments = {"x": torch.zeros(2, 3, 4, 4), "regions_or_mask": torch.zeros(2, 1, 4, 4)} | change
    with pytest.raises((TypeError, ValueError), match=message):
        sf.ops.region_norm(**arguments)
