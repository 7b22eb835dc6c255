"""Regions: the permutation, resolutions, the valid mask, and refusals."""

from unittest import mock

import pytest
import torch
from oracle import MASKS, make_mask

import scsco_fast as sf
from scsco_fast import regions as regions_module


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("with_valid", [False, True])
def test_order_is_foreground_excluded_background(kind: str, with_valid: bool) -> None:
    mask = make_mask(kind, 3, 5, 7)
    valid = make_mask("random", 3, 5, 7, seed=8) if with_valid else None
    level = sf.Regions(mask, valid).at(5, 7)
    for image in range(3):
        usable = torch.ones(35, dtype=torch.bool) if valid is None else valid[image].flatten() > 0.5
        fg = (mask[image].flatten() > 0.5) & usable
        bg = ~(mask[image].flatten() > 0.5) & usable
        wanted = torch.cat([region.nonzero().squeeze(1) for region in (fg, ~usable, bg)])
        assert torch.equal(level.order[image], wanted)
        assert level.counts[image].tolist() == [int(fg.sum()), int(bg.sum())]
        assert torch.equal(level.background[image].flatten(), bg)


def test_levels_are_nearest_and_kept() -> None:
    mask = make_mask("random", 2, 8, 8)
    regions = sf.Regions(mask)
    half = regions.at(4, 4)
    assert torch.equal(half.foreground, mask[..., ::2, ::2] > 0.5)
    assert regions.at(4, 4) is half
    bigger = regions.at(16, 16).foreground
    assert torch.equal(bigger[..., ::2, ::2], mask > 0.5)


def test_a_level_is_sorted_once_and_only_if_the_attention_reads_it() -> None:
    regions, x = sf.Regions(make_mask("random", 1, 8, 8)), torch.randn(1, 2, 8, 8)
    with mock.patch.object(regions_module, "_foreground_first", wraps=regions_module._foreground_first) as sort:
        sf.ops.region_norm(x, regions)
        sf.ops.masked_gram(x, regions)
        assert sort.call_count == 0
        sf.ops.bain_attention(x, x, x, regions)
        order = regions.at(8, 8).order
        sf.ops.bain_attention(x, x, x, regions)
        assert regions.at(8, 8).order is order
        assert sort.call_count == 1


def test_a_level_that_inference_sorted_can_be_trained_with() -> None:
    regions, x = sf.Regions(make_mask("random", 1, 12, 12)), torch.randn(1, 2, 12, 12)
    with torch.inference_mode():
        sf.ops.bain_attention(x, x, x, regions)
    leaf = x.clone().requires_grad_()
    sf.ops.bain_attention(leaf, leaf, leaf, regions)[0].sum().backward()
    assert leaf.grad is not None


def test_soft_masks_are_cut_above_one_half() -> None:
    mask = torch.tensor([0.0, 0.5, 127 / 255, 128 / 255, 1.0]).reshape(1, 1, 1, 5)
    assert sf.Regions(mask).at(1, 5).foreground.flatten().tolist() == [False, False, False, True, True]


def test_a_pixel_that_is_not_valid_is_neither() -> None:
    level = sf.Regions(torch.ones(1, 1, 2, 2), torch.tensor([[1.0, 0], [0, 1]]).reshape(1, 1, 2, 2)).at(2, 2)
    assert level.counts.tolist() == [[2, 0]]


@pytest.mark.parametrize(
    ("mask", "valid", "error", "message"),
    [
        (torch.zeros(1, 2, 2), None, ValueError, r"mask must have shape \(B, 1, H, W\)"),
        (torch.zeros(1, 3, 2, 2), None, ValueError, r"mask must have shape \(B, 1, H, W\)"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.uint8), None, TypeError, "divide an 8-bit mask by 255"),
        (torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 3), ValueError, "valid must have the mask's shape"),
        ("mask.png", None, TypeError, "mask must be a tensor, got str"),
    ],
)
def test_refusals(mask: object, valid: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sf.Regions(mask, valid)


def test_a_level_of_another_size_is_refused() -> None:
    level = sf.Regions(make_mask("random", 1, 4, 4)).at(4, 4)
    with pytest.raises(ValueError, match="regions are 4x4, the features are 2x2"):
        sf.ops.masked_gram(torch.zeros(1, 3, 2, 2), level)
