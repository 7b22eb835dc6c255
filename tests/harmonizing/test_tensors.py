"""Batches as tensors: both layouts, every type, and the same result as picture by picture."""

import numpy as np
import pytest
import torch
from stand_ins import Shift, disc, picture
from torch import Tensor

from scsco_fast.errors import ScscoError
from scsco_fast.harmonizing.pictures import harmonize
from scsco_fast.nn.unet import HarmonizationUNet

PICTURES = np.stack([picture(40, 56, seed) for seed in range(3)])  # (3, 40, 56, 3) uint8
MASKS = np.stack([disc(40, 56, radius) for radius in (0.2, 0.3, 0.4)])  # (3, 40, 56)


def laid_out(pictures: Tensor, first: bool) -> Tensor:
    return pictures.permute(0, 3, 1, 2) if first else pictures


@pytest.mark.parametrize("first", [False, True], ids=["BHWC", "BCHW"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_batch_is_its_pictures(dtype: torch.dtype, first: bool, small_model: HarmonizationUNet) -> None:
    whole = torch.from_numpy(PICTURES)
    given = (whole if dtype == torch.uint8 else (whole / 255).to(dtype)).clone()
    before = given.clone()
    result = harmonize(laid_out(given, first), torch.from_numpy(MASKS), small_model)
    assert (result.dtype, result.device, result.shape) == (dtype, given.device, laid_out(given, first).shape)
    assert torch.equal(given, before)
    plain = given if dtype in (torch.uint8, torch.float64) else given.float()
    for index in range(3):
        wanted = torch.from_numpy(harmonize(plain[index].numpy(), MASKS[index], small_model)).to(dtype)
        assert torch.equal(laid_out(result[index][None], False)[0], laid_out(wanted[None], first)[0])
        assert (wanted != given[index]).any()


@pytest.mark.parametrize(
    "masks",
    [
        pytest.param(torch.from_numpy(MASKS), id="B,H,W bool"),
        pytest.param(torch.from_numpy(MASKS)[:, None].float(), id="B,1,H,W"),
        pytest.param(torch.from_numpy(MASKS)[..., None].double(), id="B,H,W,1"),
        pytest.param(torch.from_numpy(MASKS).to(torch.uint8) * 255, id="uint8"),
        pytest.param(torch.from_numpy(MASKS).bfloat16(), id="bfloat16"),
    ],
)
def test_every_form_of_mask(masks: Tensor) -> None:
    given = torch.from_numpy(PICTURES).float() / 255
    result = harmonize(given, masks, Shift(0.1, 0.0, -0.1))
    assert torch.equal((result != given).any(dim=3), torch.from_numpy(MASKS))


@pytest.mark.parametrize("shape", [(40, 56), (1, 40, 56), (1, 1, 40, 56), (1, 40, 56, 1)])
def test_one_mask_belongs_to_every_picture(shape: tuple[int, ...]) -> None:
    given = torch.from_numpy(PICTURES)
    result = harmonize(given, torch.from_numpy(MASKS[1]).reshape(shape), Shift(0.1, 0.1, 0.1))
    assert torch.equal((result != given).any(dim=3), torch.from_numpy(MASKS[1]).expand(3, -1, -1))


def test_options_reach_the_batch() -> None:
    given, masks = torch.from_numpy(PICTURES), torch.from_numpy(MASKS)
    half = harmonize(given, masks, Shift(0.2, 0.0, 0.0), strength=0.5)
    assert torch.equal(half, harmonize(given, masks, Shift(0.1, 0.0, 0.0)))


def test_a_batch_of_none_comes_back() -> None:
    assert harmonize(torch.zeros(0, 3, 8, 9), torch.zeros(1, 8, 9), Shift(0.1, 0.1, 0.1)).shape == (0, 3, 8, 9)


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        (torch.zeros(1, 3, 8, 3), torch.ones(1, 8, 3), "could be either"),
        (torch.zeros(1, 4, 8, 8), torch.ones(1, 8, 8), "is neither"),
        (torch.zeros(3, 8, 8), torch.ones(1, 8, 8), "is neither"),
        (torch.zeros(2, 3, 8, 9), torch.ones(3, 8, 9), "there are 3 masks for 2 pictures"),
        (torch.zeros(2, 3, 8, 9), torch.ones(2, 9, 8), r"of shape \(2, 9, 8\); wanted \(B, H, W\)"),
        (torch.zeros(2, 3, 8, 9), np.ones((2, 8, 9)), "give a tensor"),
        (torch.zeros(2, 3, 8, 9), None, "give a tensor"),
        (torch.zeros(2, 3, 8, 9, dtype=torch.int32), torch.ones(2, 8, 9), "wanted uint8 or floating"),
        (torch.full((2, 3, 8, 9), 2.0), torch.ones(2, 8, 9), "float values from 2 to 2"),
        (np.zeros((8, 9, 3)), torch.ones(8, 9), "the mask is a tensor and the picture is not"),
    ],
)
def test_what_is_no_batch_is_refused_in_one_line(images: Tensor, masks: Tensor, message: str) -> None:
    with pytest.raises(ScscoError, match=message) as caught:
        harmonize(images, masks, Shift(0.1, 0.1, 0.1))
    assert "\n" not in str(caught.value)
