"""Harmonization without a network, against loops over pixels in float64."""

import math
from collections.abc import Sequence
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from oracle import make_mask
from torch import Tensor

from scsco_fast.cli.evaluate import EvaluateOptions
from scsco_fast.errors import ScscoError
from scsco_fast.evaluation.baselines import BASELINES, FLATTEST, SHORT_NAMES, full_name


def moments(values: Sequence[float]) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))


def moved(name: str, x: float, inside: tuple[float, float], outside: tuple[float, float]) -> float:
    """One foreground pixel by the formulas, before it is clamped."""
    (mean, deviation), (wanted_mean, wanted_deviation) = inside, outside
    like_background = (x - mean) * wanted_deviation / max(deviation, FLATTEST) + wanted_mean
    return {
        "half-mean": x + (wanted_mean - mean) / 2,
        "full-mean": x + wanted_mean - mean,
        "half-statistics": (x + like_background) / 2,
        "full-statistics": like_background,
    }[name]


def expected(name: str, composite: Tensor, mask: Tensor) -> np.ndarray:
    """One picture (3, H, W) and its mask (H, W), one pixel after the other."""
    result = composite.double().numpy().copy()
    weights = mask.double().numpy()
    for channel in result:
        before = channel.copy()
        inside, outside = before[weights > 0.5].tolist(), before[weights <= 0.5].tolist()
        if not inside or not outside:
            continue
        for place in np.ndindex(*channel.shape):
            after = min(1.0, max(0.0, moved(name, before[place], moments(inside), moments(outside))))
            channel[place] += weights[place] * (after - before[place])
    return result


def pictures(batch: int, height: int = 7, width: int = 6, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(batch, 3, height, width, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("kind", ["random", "empty", "full", "one pixel", "all but one", "ragged", "soft"])
def test_the_formulas_pixel_by_pixel(name: str, kind: str) -> None:
    composite, mask = pictures(3), make_mask(kind, 3, 7, 6)
    # Other colours inside, so that some of the results leave [0, 1] and are clamped.
    composite = torch.where(mask > 0.5, composite * 0.3 + 0.7, composite)
    result = BASELINES[name](composite, mask)
    for index in range(3):
        wanted = expected(name, composite[index], mask[index, 0])
        np.testing.assert_allclose(result[index].numpy(), wanted, rtol=0, atol=1e-12)
    assert result.min() >= 0
    assert result.max() <= 1
    assert result.dtype == composite.dtype


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_other_types_are_computed_in_float64_and_rounded_once(name: str, dtype: torch.dtype) -> None:
    composite, mask = pictures(2, dtype=dtype), make_mask("random", 2, 7, 6).to(dtype)
    result = BASELINES[name](composite, mask)
    assert result.dtype == dtype
    assert torch.equal(result, BASELINES[name](composite.double(), mask.double()).to(dtype))
    assert torch.equal(result, BASELINES[name](composite, mask > 0.5))


@pytest.mark.parametrize("name", BASELINES)
def test_pixels_outside_the_mask_and_pictures_of_one_region_keep_their_bits(name: str) -> None:
    composite = pictures(1, dtype=torch.float32)
    mask = make_mask("random", 1, 7, 6).float()
    outside = (mask == 0).expand_as(composite)
    result = BASELINES[name](composite, mask)
    assert torch.equal(result[outside], composite[outside])
    assert not torch.equal(result[~outside], composite[~outside])
    for whole in (torch.zeros_like(mask), torch.ones_like(mask)):
        assert torch.equal(BASELINES[name](composite, whole), composite)


def test_a_result_outside_of_the_range_is_clamped() -> None:
    composite, mask = torch.zeros(1, 3, 1, 4), torch.tensor([1.0, 1.0, 0.0, 0.0]).reshape(1, 1, 1, 4)
    composite[..., :2] = torch.tensor([0.1, 0.9])
    composite[..., 2:] = 0.9
    assert BASELINES["full-mean"](composite, mask)[0, 0, 0].tolist() == pytest.approx([0.5, 1, 0.9, 0.9])


def test_a_foreground_of_one_colour_gets_no_contrast_from_rounding() -> None:
    composite = pictures(1, dtype=torch.float32)
    mask = torch.zeros(1, 1, 7, 6)
    mask[..., :3, :] = 1
    composite[..., :3, :] = 1 / 3
    composite[..., ::2, :][..., :2, :] += 1e-7
    background = composite[..., 3:, :].double().mean(dim=(2, 3), keepdim=True)
    result = BASELINES["full-statistics"](composite, mask)
    wanted = background.expand(-1, -1, 3, 6).float()
    # A rounding of 1e-7 times at most 0.5 / FLATTEST; without the floor it is the background's deviation, about 0.3.
    torch.testing.assert_close(result[..., :3, :], wanted, rtol=0, atol=1e-7 * 0.5 / FLATTEST + 1e-7)


def test_names() -> None:
    assert full_name("mean") == "half-mean"
    assert [full_name(name) for name in BASELINES] == list(BASELINES)
    with pytest.raises(ScscoError, match=r"baseline 'median' is unknown; use one of half-statistics, .*, mean"):
        full_name("median")
    offered = get_args(get_args(get_type_hints(EvaluateOptions)["baseline"])[0])
    assert offered == (*BASELINES, *SHORT_NAMES)


@pytest.mark.parametrize(("composite", "mask"), [((1, 3, 4, 4), (1, 1, 4, 5)), ((3, 4, 4), (1, 1, 4, 4))])
def test_shapes_that_do_not_agree(composite: tuple[int, ...], mask: tuple[int, ...]) -> None:
    with pytest.raises(ScscoError, match=r"shapes do not agree: composite .* are wanted"):
        BASELINES["half-mean"](torch.zeros(composite), torch.zeros(mask))
