"""The local affine colour transform: what it recovers, what it never invents, and that strips are the whole."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import FLOAT64, NoReading, NoWaiting

from scsco_fast.harmonizing import recolour
from scsco_fast.harmonizing.pictures import harmonize
from scsco_fast.nn.local_affine import apply_local_affine, enlarged_rows, extend, fit_local_affine

MATRIX = torch.tensor([[0.5, 0.1, -0.2], [0.0, -0.3, 0.2], [0.2, 0.0, 0.4]], dtype=torch.float64)


class Truth(torch.nn.Module):
    """Stands in for a perfect network: it gives the true picture, reduced to what it is asked for."""

    def __init__(self, truth: np.ndarray) -> None:
        super().__init__()
        self.working_size = 64
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.truth = torch.from_numpy(truth).permute(2, 0, 1)[None].float()

    def forward(self, composite: torch.Tensor, mask: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        small = F.interpolate(self.truth, composite.shape[-2:], mode="bilinear", antialias=True)
        return torch.lerp(composite, small, mask)


def textured(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(H, W, 3) float64 in [0.2, 0.8]: smooth colours, sharp patches of a few pixels, and noise of single pixels."""
    rng = np.random.default_rng(seed)
    patches = rng.random((height // 12 + 1, width // 12 + 1, 3)).repeat(12, 0).repeat(12, 1)[:height, :width]
    y, x = np.mgrid[0:height, 0:width]
    smooth = np.stack([x / width, y / height, 1 - x / width], axis=2)
    return (0.2 + 0.6 * (0.3 * smooth + 0.4 * patches + 0.3 * rng.random((height, width, 3)))).clip(0.2, 0.8)


def local_affine_truth(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Contrast, tint and brightness that change from left to right, as an affine function of each colour."""
    share = np.linspace(0, 1, image.shape[1])[None, :, None]  # (1, W, 1)
    left = 1.35 * (image - 0.5) + 0.5 + np.array([0.05, 0.0, -0.05])
    right = 0.7 * image + 0.1 * image[:, :, ::-1] + np.array([-0.02, 0.06, 0.03])
    changed = ((1 - share) * left + share * right).clip(0, 1)
    return np.where(mask[:, :, None] > 0, changed, image)


@pytest.mark.parametrize("times", [4, 8])
def test_a_local_affine_change_is_carried_over(times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the truth, far nearer than the enlarged change, and that is nearer than the enlarged output."""
    height, width = 48 * times, 64 * times
    image, mask = textured(height, width), np.zeros((height, width))
    mask[height // 6 : -height // 5, width // 8 : -width // 7] = 1
    truth = local_affine_truth(image, mask)
    model = Truth(truth)
    affine = harmonize(image, mask, model)
    monkeypatch.setattr(
        recolour, "fit_local_affine", lambda *given: fit_local_affine(*given, ridge=1e12)
    )  # the matrix is 0: the change alone, enlarged
    additive = harmonize(image, mask, model)
    small = F.interpolate(model.truth, (48, 64), mode="bilinear", antialias=True)
    enlarged = F.interpolate(small, (height, width), mode="bicubic")[0].permute(1, 2, 0).numpy()
    inside = mask > 0
    errors = [np.square(255 * (output - truth)[inside]).mean() for output in (affine, additive, enlarged)]
    assert errors[0] < 0.25 * errors[1]
    assert errors[1] < 0.5 * errors[2]


def test_the_matrix_is_found() -> None:
    colour = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    change = torch.einsum("ij,bjhw->bihw", MATRIX, colour.double()) + 0.1
    region = torch.zeros(1, 1, 40, 40)
    region[..., 5:30, 3:37] = 1
    matrix, offset = fit_local_affine(colour, change.float(), region, radius=4, ridge=1e-9)
    inside = region[0, 0] > 0
    wanted = MATRIX.reshape(9, 1).float()
    assert (matrix[0][:, inside] - wanted).abs().max() < 1e-3
    assert (offset[0][:, inside] - 0.1).abs().max() < 1e-3
    assert not matrix[0][:, ~inside].any()
    assert not offset[0][:, ~inside].any()


def test_what_lies_outside_the_region_enters_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    colour, change = (torch.rand(1, 3, 20, 24, generator=generator) for _ in range(2))
    region = (torch.rand(1, 1, 20, 24, generator=generator) > 0.5).float()
    other = [torch.where(region > 0, x, torch.rand(1, 3, 20, 24, generator=generator)) for x in (colour, change)]
    for one, two in zip(fit_local_affine(colour, change, region, 3), fit_local_affine(*other, region, 3), strict=True):
        assert torch.allclose(one, two, atol=1e-6)


def test_the_change_itself_is_exact_at_the_small_size() -> None:
    generator = torch.Generator().manual_seed(0)
    colour, change = (torch.rand(1, 3, 20, 24, generator=generator) for _ in range(2))
    region = torch.ones(1, 1, 20, 24)
    coefficients = torch.cat(fit_local_affine(colour, change, region, 2), dim=1)[0]
    assert torch.allclose(apply_local_affine(coefficients, colour[0]), change[0], atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.25, -0.1])
def test_a_shift_is_a_shift(value: float) -> None:
    colour = torch.rand(1, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    region = torch.zeros(1, 1, 20, 24)
    region[..., 3:12, 4:20] = 1
    matrix, offset = fit_local_affine(colour, torch.full_like(colour, value), region, 3)
    assert matrix.abs().max() < 1e-8
    assert torch.allclose(offset, value * region.expand(1, 3, -1, -1), atol=1e-7)
    if value == 0:
        assert not matrix.any()
        assert not offset.any()


def test_flat_colours_are_shifted() -> None:
    """Where the colour does not vary, no matrix can be told; noise of a level stretches it hardly."""
    generator = torch.Generator().manual_seed(0)
    colour = 0.5 + torch.rand(1, 3, 30, 30, generator=generator) / 255
    change = 0.1 + torch.rand(1, 3, 30, 30, generator=generator) / 255
    matrix, _ = fit_local_affine(colour, change, torch.ones(1, 1, 30, 30), 4)
    assert matrix.abs().max() < 0.02


@pytest.mark.parametrize(("small", "full"), [((7, 5), (61, 44)), ((1, 1), (9, 4)), ((8, 8), (8, 8)), ((3, 9), (3, 50))])
def test_strips_are_the_whole(small: tuple[int, int], full: tuple[int, int]) -> None:
    values = torch.rand(1, 12, *small)
    whole = F.interpolate(values, full, mode="bilinear", align_corners=False)[0]
    rows, columns = (full[0] // 3, full[0]), (0, full[1] - 1)
    covered = []
    for top, bottom, part in enlarged_rows(values, full, rows, columns, 4):
        assert torch.allclose(part, whole[:, top:bottom, : columns[1]], atol=1e-6)
        covered += range(top, bottom)
    assert covered == list(range(*rows))


def test_a_batch_is_extended_image_by_image_without_waiting() -> None:
    """What is known stays, bit for bit; an image that is known nowhere becomes 0."""
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(4, 2, 21, 34, generator=generator)
    known = (torch.rand(4, 1, 21, 34, generator=generator) > 0.9).float()
    known[1], known[2] = 0, 1
    with NoReading(), NoWaiting():
        filled = extend(values, known)
    for image in (0, 3):
        assert torch.equal(filled[image : image + 1], extend(values[image : image + 1], known[image : image + 1]))
    assert torch.equal(torch.where(known > 0, values, filled), filled)
    assert not filled[1].any()
    assert torch.equal(filled[2], values[2])


def test_a_transform_is_applied_to_one_picture_or_a_batch() -> None:
    coefficients, colour = torch.randn(2, 12, 5, 7).double(), torch.rand(2, 3, 5, 7).double()
    wanted = torch.einsum("bijhw,bjhw->bihw", coefficients[:, :9].unflatten(1, (3, 3)), colour) + coefficients[:, 9:]
    before = coefficients.clone()
    torch.testing.assert_close(apply_local_affine(coefficients, colour), wanted, rtol=0, atol=FLOAT64)
    torch.testing.assert_close(apply_local_affine(coefficients[0], colour[0]), wanted[0], rtol=0, atol=FLOAT64)
    assert torch.equal(coefficients, before)
