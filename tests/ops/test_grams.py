"""masked_gram, cross_gram, feature_distances and gram_distances: the reference, and what is the eager backend's own.

tests/contract/ holds what every backend must do.
"""

from typing import Any

import pytest
import torch
from oracle import assert_matches, make_mask, random

import scsco_fast as sf
from scsco_fast.eager import gram_distances as eager_gram_distances

SHAPES = [(1, 1, 1), (2, 1, 2), (3, 15, 16), (17, 5, 31), (65, 8, 8)]
BACKENDS = ["reference", "eager"]


def maps(*shape: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """Anchor, background and three others with maps of this (C, H, W)."""
    return [
        random(2, *shape, dtype=dtype),
        random(2, *shape, seed=1, dtype=dtype),
        random(2, 3, *shape, seed=2, dtype=dtype),
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_gram_distances_of_any_shape(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert_matches(sf.ops.gram_distances, maps(*shape, dtype=dtype))


def test_masked_gram_is_the_cross_gram_of_the_masked_features() -> None:
    features, mask = random(2, 4, 6, 6), make_mask("random", 2, 6, 6)
    inside = features * (mask > 0.5)
    torch.testing.assert_close(sf.ops.masked_gram(features, mask), sf.ops.cross_gram(inside, inside))


@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_gram_ignores_nan_outside_the_foreground(backend: str) -> None:
    mask = make_mask("random", 1, 6, 6)
    features = torch.where(mask > 0.5, random(1, 4, 6, 6), torch.nan)
    assert torch.isfinite(sf.ops.masked_gram(features, mask, backend=backend)).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_gram_distances_equals_distances_of_gram_matrices(backend: str) -> None:
    anchor, background, others = maps(5, 6, 7)
    own = sf.ops.cross_gram(anchor, background)
    wanted = [(own - sf.ops.cross_gram(other, background)).abs().mean(dim=(1, 2)) for other in others.unbind(1)]
    torch.testing.assert_close(
        sf.ops.gram_distances(anchor, background, others, backend=backend), torch.stack(wanted, 1)
    )


def test_gram_distances_in_row_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eager_gram_distances, "BLOCK_ELEMENTS", 1)
    assert_matches(sf.ops.gram_distances, maps(5, 6, 7))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend: str) -> None:
    anchor, background, others = (t.requires_grad_() for t in maps(2, 2, 3))
    mask = make_mask("random", 2, 2, 3)
    check = torch.autograd.gradcheck
    assert check(lambda f: sf.ops.masked_gram(f, mask, backend=backend), anchor)
    assert check(lambda a, b: sf.ops.cross_gram(a, b, backend=backend), (anchor, background))
    assert check(lambda a, o: sf.ops.feature_distances(a, o, backend=backend), (anchor, others))
    assert check(lambda a, b, o: sf.ops.gram_distances(a, b, o, backend=backend), (anchor, background, others))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("operation", [sf.ops.gram_distances, sf.ops.feature_distances])
def test_constants_get_no_gradient_and_the_anchor_the_same(operation: Any, backend: str) -> None:
    """As in training, where negatives and background are constants: the others' gradients are not even computed."""
    anchor, *constants = maps(5, 6, 7, dtype=torch.float64)
    constants = constants if operation is sf.ops.gram_distances else constants[1:]
    alone = anchor.clone().requires_grad_()
    every = [tensor.clone().requires_grad_() for tensor in (anchor, *constants)]
    weights = torch.rand(constants[-1].shape[:2], dtype=torch.float64)
    (operation(alone, *constants, backend=backend) * weights).sum().backward()
    (operation(*every, backend=backend) * weights).sum().backward()
    torch.testing.assert_close(alone.grad, every[0].grad, rtol=1e-12, atol=1e-15)
    assert all(tensor.grad is None for tensor in constants)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_distance_of_zero_has_no_gradient(backend: str) -> None:
    anchor, background, _ = maps(3, 4, 4)
    anchor.requires_grad_()
    others = anchor.detach().unsqueeze(1)
    distances = sf.ops.feature_distances(anchor, others, backend=backend)
    distances = distances + sf.ops.gram_distances(anchor, background, others, backend=backend)
    distances.sum().backward()
    assert (distances == 0).all()
    assert (anchor.grad == 0).all()


def test_bad_arguments_are_named() -> None:
    anchor, background, others = maps(3, 4, 4)
    with pytest.raises(ValueError, match="batch and size of b"):
        sf.ops.cross_gram(anchor, background[..., :3])
    with pytest.raises(ValueError, match="shape of each of others"):
        sf.ops.feature_distances(anchor, others[:, :, :2])
    with pytest.raises(ValueError, match="batch and size of background"):
        sf.ops.gram_distances(anchor, background[:1], others)
    with pytest.raises(ValueError, match="others must have shape"):
        sf.ops.feature_distances(anchor, anchor)
    with pytest.raises(TypeError, match="anchor must be float16"):
        sf.ops.feature_distances(anchor.long(), others)
