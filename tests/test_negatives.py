"""Dynamic negatives: what they are, seeds, and where they leave the real picture alone."""

import pytest
import torch
from oracle import make_mask

import scsco_fast as sf
from scsco_fast.negatives import WholeBatch
from scsco_fast.photometric import random_curve


def batch(size: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    real = torch.rand(size, 3, 12, 10, generator=generator) * torch.rand(size, 3, 1, 1, generator=generator)
    mask = make_mask("block", size, 12, 10).float()
    return real, torch.where(mask > 0.5, real * 0.5, real), mask


@pytest.mark.parametrize("size", [1, 3])
def test_composite_first_then_recoloured_foregrounds(size: int) -> None:
    real, composite, mask = batch(size)
    negatives = sf.make_negatives(real, composite, mask, 12, torch.Generator().manual_seed(1))
    assert negatives.shape == (size, 12, 3, 12, 10)
    assert torch.equal(negatives[:, 0], composite)
    outside = (mask < 0.5).expand_as(real)
    inside = ~outside
    for k in range(1, 12):
        assert torch.equal(negatives[:, k][outside], real[outside])
        assert not torch.equal(negatives[:, k][inside], real[inside])
    assert float(negatives.min()) >= 0
    assert float(negatives.max()) <= 1


def test_seeded_and_drawn_anew() -> None:
    real, composite, mask = batch()
    first, again = (sf.make_negatives(real, composite, mask, 5, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    generator = torch.Generator().manual_seed(3)
    sf.make_negatives(real, composite, mask, 5, generator)
    assert not torch.equal(first, sf.make_negatives(real, composite, mask, 5, generator))


def test_every_family_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    from scsco_fast import negatives

    drawn = []
    monkeypatch.setattr(negatives, "transfer_color", lambda s, r, kind, *a, **k: drawn.append(kind) or s)
    monkeypatch.setattr(negatives, "apply_curve", lambda images, curves: drawn.append("curve") or images)
    real, composite, mask = batch()
    sf.make_negatives(real, composite, mask, 60, torch.Generator().manual_seed(0))
    assert set(drawn) == {"reinhard", "gaussian", "histogram", "curve"}


@pytest.mark.parametrize("cuts", [(2, 3), (1, 1, 3), (5,)])
def test_parts_of_a_batch_have_the_negatives_of_the_whole(cuts: tuple[int, ...]) -> None:
    real, composite, mask = batch(5)
    whole = sf.make_negatives(real, composite, mask, 12, torch.Generator().manual_seed(2))
    first = 0
    for rows in cuts:
        part = slice(first, first + rows)
        negatives = sf.make_negatives(
            real[part],
            composite[part],
            mask[part],
            12,
            torch.Generator().manual_seed(2),
            WholeBatch(real, mask, first),
        )
        torch.testing.assert_close(negatives, whole[part], rtol=0, atol=1e-6)
        first += rows


def test_random_curve_of_strength_zero_is_the_identity() -> None:
    real, _, _ = batch()
    torch.testing.assert_close(random_curve(real, strength=0.0), real, rtol=0, atol=1e-6)
    changed = random_curve(real, torch.Generator().manual_seed(0))
    assert (changed - real).abs().mean() > 0.02


def test_bad_arguments_are_named() -> None:
    real, composite, mask = batch()
    with pytest.raises(ValueError, match="count must be at least 1"):
        sf.make_negatives(real, composite, mask, 0)
    with pytest.raises(ValueError, match="composite must have the shape of real"):
        sf.make_negatives(real, composite[:1], mask, 2)
