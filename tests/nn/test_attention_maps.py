"""Rows of BAIN's attention: those of the dense matrix, at the point that was asked for."""

import pytest
import torch
from oracle import make_mask

import scsco_fast as sf
from scsco_fast.nn.attention_maps import attention_map, attention_maps, foreground_points


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("mask", ["block", "random", "one pixel"])
def test_row_gives_the_norms_own_mean(mask: str, cosine: bool) -> None:
    """What `bain_attention` averages with: the row times the values is the mean that the operation returns."""
    torch.manual_seed(0)
    bain, x, inside = sf.BAIN(6, cosine=cosine), torch.randn(2, 6, 9, 7), make_mask(mask, 2, 9, 7).float()
    with torch.no_grad():
        for weight in (bain.query.weight, bain.key.weight):
            weight.mul_(3)
        n = sf.ops.region_norm(x, inside, adapt=False)
        q, k, scale = bain.query(n), bain.key(n), None
        if cosine:
            q, k, scale = (*(torch.nn.functional.normalize(t, dim=1) for t in (q, k)), 5.0)
        mean, _ = sf.ops.bain_attention(q, k, x, inside, scale)
    points = foreground_points(inside)
    rows = attention_map(bain, x, inside, points)
    assert (rows * inside.squeeze(1)).abs().max() == 0
    torch.testing.assert_close(rows.sum((1, 2)), torch.ones(2))
    for image, (row, column) in enumerate(points.tolist()):
        assert inside[image, 0, row, column] == 1
        ours = (rows[image] * x[image]).sum((1, 2))
        torch.testing.assert_close(ours, mean[image, :, row, column], rtol=1e-4, atol=1e-5)


def test_no_background_gives_zeros() -> None:
    rows = attention_map(sf.BAIN(4), torch.randn(1, 4, 5, 5), torch.ones(1, 1, 5, 5), torch.tensor([[2, 2]]))
    assert (rows == 0).all()


def test_point_is_in_the_foreground_nearest_the_centre() -> None:
    mask = torch.zeros(3, 1, 9, 9)
    mask[0, 0, 2:5, 3:6] = 1  # its centre
    mask[1, 0, 0], mask[1, 0, 8] = 1, 1  # two bars: the centre between them is background
    points = foreground_points(mask).tolist()
    assert points[0] == [3, 4]
    assert points[1] == [0, 4]
    assert len(points) == 3  # an empty mask has a point too, which means nothing


@pytest.mark.parametrize(
    ("options", "size", "scale"),
    [
        ({}, (64, 64), 1.0),
        ({}, (40, 48), 1.0),
        ({"head": "affine"}, (40, 48), 1.0),
        ({"head": "affine"}, (96, 80), 0.5),
    ],
)
def test_points_are_those_of_the_picture_whatever_is_padded_or_reduced(
    options: dict, size: tuple[int, int], scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full mask has a foreground pixel everywhere, so that each level's point is the one that was asked for."""
    model = sf.HarmonizationUNet(base_channels=4, levels=5, **options).eval()
    model.working_size = 48
    found: list[tuple[int, list[int]]] = []

    def note(bain: sf.BAIN, x: torch.Tensor, level: object, points: torch.Tensor) -> torch.Tensor:
        found.append((x.shape[-1], points[0].tolist()))
        return torch.zeros(0)

    monkeypatch.setattr("scsco_fast.nn.attention_maps.attention_map", note)
    row, column = size[0] - 3, size[1] // 2 + 5
    attention_maps(model, torch.rand(1, 3, *size), torch.ones(1, 1, *size), torch.tensor([[row, column]]))
    padded = -(-round(size[1] * scale) // 32) * 32
    assert [width for width, _ in found] == [padded // 2**level for level in (4, 3, 2, 1)]
    for width, point in found:
        at = scale * width / padded
        assert point == [int(row * at), int(column * at)]


def test_maps_of_a_network_leave_it_as_it_was(small_model: sf.HarmonizationUNet) -> None:
    composite, mask = torch.rand(2, 3, 40, 48), make_mask("block", 2, 40, 48).float()
    before = small_model(composite, mask)
    maps = attention_maps(small_model, composite, mask, foreground_points(mask))
    assert list(maps) == ["norm.3", "norm.2", "norm.1", "norm.0"]
    for rows in maps.values():
        sums = rows.sum((1, 2))
        assert ((sums - 1).abs() < 1e-5).logical_or(sums == 0).all()
    assert torch.equal(small_model(composite, mask), before)
    assert not any(module._forward_pre_hooks for module in small_model.modules())
