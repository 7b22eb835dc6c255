"""The kernels of feature_distances and gram_distances against the float64 formulas."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import assert_matches, random, run
from torch import Tensor

import scsco_fast as sf
from scsco_fast.kernels.feature_distances import launch as feature_distances
from scsco_fast.kernels.gram_distances import launch as gram_distances
from scsco_fast.ops.backend import refusal

DTYPES = [torch.float32, torch.float16]
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")
Guard = Callable[[Tensor], Tensor]
SHIFTS = (2.0, 4.0, -6.0, 3.0, 8.0, -5.0, 7.0, -3.0, 5.0)


def maps(
    batch: int, others: int, channels: int, width: int, pixels: tuple[int, int], dtype: torch.dtype
) -> list[Tensor]:
    """Anchor, background and others whose Gram differences are far from 0, where the sign of a gradient would be
    rounding's."""
    anchor = random(batch, channels, *pixels).abs()
    background = random(batch, width, *pixels, seed=1).abs()
    shift = torch.tensor(SHIFTS[:others], dtype=torch.float64).reshape(1, -1, 1, 1, 1)
    further = random(batch, others, channels, *pixels, seed=2).abs() + anchor.unsqueeze(1) + shift
    return [t.to(dtype) for t in (anchor, background, further)]


def check(anchor: Tensor, background: Tensor, others: Tensor) -> None:
    assert_matches(sf.ops.feature_distances, [anchor, others], "triton")
    check_grams(anchor, background, others)


def check_grams(*tensors: Tensor) -> None:
    """As `assert_matches`, with one rounding to the operands' dtype: the differences are rounded to it before they are
    multiplied."""
    got = run(sf.ops.gram_distances, tensors, "triton")
    truth = run(sf.ops.gram_distances, [t.double() for t in tensors], "reference")
    near = run(sf.ops.gram_distances, [t.float() for t in tensors], "reference")
    terms = max(t.numel() for t in tensors)
    band = max(torch.finfo(t.dtype).eps for t in tensors) + math.log2(terms) * torch.finfo(torch.float32).eps
    for index, (ours, theirs, exact) in enumerate(zip(got, near, truth, strict=True)):
        allowed = 2 * (float((theirs.double() - exact).abs().max()) + band * float(exact.abs().max()))
        error = float((ours.double() - exact).abs().max())
        assert error <= allowed, f"result {index} is off by {error:.3g}, allowed {allowed:.3g}"


@pytest.mark.parametrize("pixels", [1, 2, 15, 16, 17, 31, 63, 64, 65, 127, 130])
def test_pixels(pixels: int, guarded: Guard) -> None:
    check(*(guarded(t) for t in maps(1, 2, 3, 4, (1, pixels), torch.float32)))


@pytest.mark.parametrize(("channels", "width"), [(1, 1), (65, 3), (3, 130), (64, 64)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_channels(channels: int, width: int, dtype: torch.dtype, guarded: Guard) -> None:
    check(*(guarded(t) for t in maps(1, 2, channels, width, (3, 5), dtype)))


@pytest.mark.parametrize("others", [1, 3, 9])
def test_others(others: int, guarded: Guard) -> None:
    """Nine are more than are held at once."""
    check(*(guarded(t) for t in maps(2, others, 3, 4, (3, 5), torch.float32)))


def test_splits_join(monkeypatch: pytest.MonkeyPatch) -> None:
    for programs in (2, 64):
        monkeypatch.setattr(feature_distances, "PROGRAMS", programs)
        monkeypatch.setattr(gram_distances, "PROGRAMS", programs)
        monkeypatch.setattr(gram_distances, "LEAST", 64)
        check(*maps(1, 2, 5, 3, (24, 24), torch.float32))


def test_parts_of_a_product_meet_before_the_absolute_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """Halves of the pixels whose products cancel: the distance is 0, not the sum of the halves'."""
    anchor = torch.ones(1, 2, 16, 32)
    background = torch.ones(1, 3, 16, 32)
    background[:, :, 8:] = -1
    for programs in (1, 64):
        monkeypatch.setattr(gram_distances, "PROGRAMS", programs)
        monkeypatch.setattr(gram_distances, "LEAST", 64)
        distances, signs = gram_distances.forward(anchor, background, torch.zeros(1, 2, 2, 16, 32))
        assert (distances == 0).all()
        assert (signs == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(dtype: torch.dtype, guarded: Guard) -> None:
    anchor, background, others = maps(2, 2, 3, 4, (4, 5), dtype)
    last = [t.movedim(-3, -1).contiguous().movedim(-1, -3) for t in (anchor, background, others)]
    check(*(guarded(t) for t in last))
    check(last[0], background, others)
    check(*(t[:1].expand(2, *t.shape[1:]) for t in (anchor, background, others)))
    check(*(t.transpose(-1, -2) for t in (anchor, background, others)))


def test_two_dtypes() -> None:
    anchor, background, others = maps(1, 2, 3, 4, (4, 5), torch.float16)
    check(anchor.float(), background, others)
    check(anchor, background.float(), others)


def test_equal_maps_have_distance_and_gradient_zero() -> None:
    anchor, background, _ = (t.requires_grad_() for t in maps(2, 1, 3, 4, (4, 5), torch.float32))
    others = anchor.detach().unsqueeze(1)
    distances = sf.ops.feature_distances(anchor, others, backend="triton")
    distances = distances + sf.ops.gram_distances(anchor, background, others, backend="triton")
    distances.sum().backward()
    assert (distances == 0).all()
    assert (anchor.grad == 0).all()
    assert (background.grad == 0).all()


def test_the_anchor_alone_has_the_same_gradient() -> None:
    anchor, *constants = maps(2, 2, 3, 4, (4, 5), torch.float32)
    for operation, rest in ((sf.ops.gram_distances, constants), (sf.ops.feature_distances, constants[1:])):
        every = [tensor.clone().requires_grad_() for tensor in (anchor, *rest)]
        alone = anchor.clone().requires_grad_()
        operation(*every, backend="triton").sum().backward()
        operation(alone, *rest, backend="triton").sum().backward()
        assert torch.equal(alone.grad, every[0].grad)


def test_differences_beyond_float16() -> None:
    """60000 - (-60000) is infinite in float16; the distance is not."""
    anchor = torch.full((1, 2, 2, 2), 6e4, dtype=torch.float16)
    background = torch.full((1, 2, 2, 2), 0.5, dtype=torch.float16)
    assert sf.ops.feature_distances(anchor, -anchor.unsqueeze(1), backend="triton").item() == 2 * float(
        anchor[0, 0, 0, 0]
    )
    assert sf.ops.gram_distances(anchor, background, -anchor.unsqueeze(1), backend="triton").item() == float(
        anchor[0, 0, 0, 0]
    )


def test_no_others_and_no_images() -> None:
    for batch, others in ((2, 0), (0, 2)):
        anchor, background, further = (t.requires_grad_() for t in maps(batch, others, 3, 4, (2, 2), torch.float32))
        for distances in (
            sf.ops.feature_distances(anchor, further, backend="triton"),
            sf.ops.gram_distances(anchor, background, further, backend="triton"),
        ):
            assert distances.shape == (batch, others)
            assert (torch.autograd.grad(distances.sum(), anchor)[0] == 0).all()


def test_registered_ops_pass_opcheck() -> None:
    anchor, background, others = (t.requires_grad_() for t in maps(1, 2, 3, 4, (2, 3), torch.float32))
    ops = torch.ops.scsco_fast
    torch.library.opcheck(ops.feature_distances.default, (anchor, others, "triton"), test_utils=CHECKS)
    torch.library.opcheck(ops.gram_distances.default, (anchor, background, others, "triton"), test_utils=CHECKS)


def test_addresses_pass_2_to_the_31(tmp_path: Path) -> None:
    """Channels 2^30 elements apart, in a sparse file of which a few pages exist."""
    near, background, others = maps(1, 2, 4, 3, (2, 3), torch.float16)
    apart = 2**30
    file = np.memmap(tmp_path / "sparse", np.float16, "w+", shape=(3 * apart + 6,))
    far = torch.from_numpy(file).as_strided((1, 4, 2, 3), (0, apart, 3, 1)).copy_(near)
    grad = random(1, 2, dtype=torch.float32)
    torch.testing.assert_close(feature_distances.forward(far, others), feature_distances.forward(near, others))
    results: list[list[Tensor]] = []
    for anchor in (near, far):
        distances, signs = gram_distances.forward(anchor, background, others)
        grads = gram_distances.backward(grad, signs, anchor, background, others, False)
        results.append([distances, signs, *grads, *feature_distances.backward(grad, anchor, others, False)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("channels", "dtype", "reason"), [(513, torch.float32, "513 channels"), (2, torch.float64, "float64")]
)
def test_what_is_not_served_is_named(channels: int, dtype: torch.dtype, reason: str) -> None:
    anchor, background, others = maps(1, 1, channels, 2, (1, 2), dtype)
    assert reason in str(refusal("triton", "gram_distances", anchor, background, others))
    with pytest.raises(RuntimeError, match=reason):
        sf.ops.feature_distances(anchor, others, backend="triton")
    with pytest.raises(RuntimeError, match=reason):
        sf.ops.gram_distances(anchor, background, others, backend="triton")
