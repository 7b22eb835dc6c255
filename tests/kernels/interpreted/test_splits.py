"""Sums that Triton's launchers split among programs, for few programs and for many."""

import pytest
import torch
from gram_maps import assert_distances_match, maps
from oracle import assert_matches, make_mask, random

import scsco_fast as sf
from scsco_fast.kernels.cross_gram import launch as cross_gram
from scsco_fast.kernels.feature_distances import launch as feature_distances
from scsco_fast.kernels.gram_distances import launch as gram_distances
from scsco_fast.kernels.masked_gram import launch as masked_gram
from scsco_fast.kernels.transfer_color import launch as transfer_color
from scsco_fast.ops._transfer_color import TRANSFERS


@pytest.mark.parametrize("programs", [2, 64])
@pytest.mark.parametrize("mask", ["random", "block"])
def test_grams(mask: str, programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = (random(2, 3, 24, 32, seed=seed, dtype=torch.float32) for seed in range(2))
    monkeypatch.setattr(masked_gram, "PROGRAMS", programs)
    monkeypatch.setattr(cross_gram, "PROGRAMS", programs)
    where = make_mask(mask, 2, 24, 32)
    assert_matches(lambda f: sf.ops.masked_gram(f, where), [a], "triton")
    assert_matches(sf.ops.cross_gram, [a, b], "triton")


@pytest.mark.parametrize("programs", [2, 64])
def test_distances(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    anchor, background, others = maps(1, 2, 5, 3, (24, 24), torch.float32)
    monkeypatch.setattr(feature_distances, "PROGRAMS", programs)
    monkeypatch.setattr(gram_distances, "PROGRAMS", programs)
    monkeypatch.setattr(gram_distances, "LEAST", 64)
    assert_matches(sf.ops.feature_distances, [anchor, others], "triton")
    assert_distances_match([anchor, background, others], "triton")


@pytest.mark.parametrize("programs", [1, 64])
def test_parts_of_a_product_meet_before_the_absolute_value(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Halves of the pixels whose products cancel: the distance is 0, not the sum of the halves'."""
    anchor, background = torch.ones(1, 2, 16, 32), torch.ones(1, 3, 16, 32)
    background[:, :, 8:] = -1
    monkeypatch.setattr(gram_distances, "PROGRAMS", programs)
    monkeypatch.setattr(gram_distances, "LEAST", 64)
    distances, signs = gram_distances.forward(anchor, background, torch.zeros(1, 2, 2, 16, 32))
    assert (distances == 0).all()
    assert (signs == 0).all()


@pytest.mark.parametrize("programs", [2, 8])
@pytest.mark.parametrize("method", TRANSFERS)
def test_transfer_color(method: str, programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    source = torch.rand(2, 3, 45, 50, generator=generator) * 0.5 + 0.2
    source[1] = 0.4 + 0.01 * source[1]
    example = torch.rand(2, 3, 33, 64, generator=generator) ** 2 * 0.6 + 0.1
    masks = make_mask("block", 2, 45, 50), make_mask("random", 2, 33, 64)
    monkeypatch.setattr(transfer_color, "PROGRAMS", programs)
    found = sf.ops.transfer_color(source, example, method, masks[0], "triton", masks[1])
    exact = (t.double() for t in (source, example))
    truth = sf.ops.transfer_color(*exact, method, masks[0], "reference", masks[1])
    near = sf.ops.transfer_color(source, example, method, masks[0], "reference", masks[1])
    # Approximate powers, and a value on the edge of a bin may fall into the next one.
    band = {"reinhard": 2e-4, "gaussian": 2e-5, "histogram": 1 / 256}[method] + torch.finfo(torch.float32).eps
    band += 2 * float((near - truth).abs().max())
    torch.testing.assert_close(found.double(), truth, rtol=0, atol=band)
