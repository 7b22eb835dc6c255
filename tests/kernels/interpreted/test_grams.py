"""The kernels of masked_gram and cross_gram against the float64 formulas."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import assert_matches, make_mask, random
from torch import Tensor

import scsco_fast as sf
from scsco_fast.eager import cross_gram as eager
from scsco_fast.kernels.cross_gram import launch as cross_gram
from scsco_fast.kernels.masked_gram import launch as masked_gram
from scsco_fast.ops.backend import refusal
from scsco_fast.regions import Regions

DTYPES = [torch.float32, torch.float16]
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")
Guard = Callable[[Tensor], Tensor]


def check_masked(features: Tensor, mask: Tensor | Regions | None) -> None:
    assert_matches(lambda f: sf.ops.masked_gram(f, mask), [features], "triton")


def check_cross(a: Tensor, b: Tensor) -> None:
    assert_matches(sf.ops.cross_gram, [a, b], "triton")


@pytest.mark.parametrize("mask", ["random", "empty", "full", "one pixel", "all but one", "ragged"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_masks(mask: str, dtype: torch.dtype, guarded: Guard) -> None:
    check_masked(guarded(random(3, 5, 7, 9, dtype=dtype)), make_mask(mask, 3, 7, 9))


@pytest.mark.parametrize("pixels", [1, 2, 15, 16, 17, 31, 63, 64, 65, 127, 130])
def test_pixels(pixels: int, guarded: Guard) -> None:
    a, b = (guarded(random(1, 3, 1, pixels, seed=seed, dtype=torch.float32)) for seed in range(2))
    check_masked(a, make_mask("random", 1, 1, pixels))
    check_cross(a, b)


@pytest.mark.parametrize("channels", [1, 2, 64, 65, 130])
@pytest.mark.parametrize("dtype", DTYPES)
def test_channels(channels: int, dtype: torch.dtype, guarded: Guard) -> None:
    """Up to three tiles in a row: the mirrored ones and the last, which is not full."""
    a, b = (guarded(random(1, c, 3, 5, seed=c, dtype=dtype)) for c in (channels, 33))
    check_masked(a, make_mask("random", 1, 3, 5))
    check_masked(a, None)
    check_cross(a, b)
    check_cross(b, a)


@pytest.mark.parametrize("mask", ["random", "block"])
def test_splits_join(mask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = (random(2, 3, 24, 32, seed=seed, dtype=torch.float32) for seed in range(2))
    for programs in (2, 64):
        monkeypatch.setattr(masked_gram, "PROGRAMS", programs)
        monkeypatch.setattr(cross_gram, "PROGRAMS", programs)
        check_masked(a, make_mask(mask, 2, 24, 32))
        check_cross(a, b)


def test_more_blocks_than_are_listed_at_once() -> None:
    mask = make_mask("empty", 1, 40, 40)
    mask[0, 0, 0, 3] = mask[0, 0, 39, 39] = 1
    check_masked(random(1, 2, 40, 40, dtype=torch.float32), mask)


def test_blocks_without_foreground_are_not_read() -> None:
    """An address that is never touched cannot hold NaN's way into the result; neither may an address that is masked."""
    mask = make_mask("block", 2, 16, 16) > 0.5
    features = torch.where(mask, random(2, 3, 16, 16, dtype=torch.float32), torch.nan).requires_grad_()
    gram = sf.ops.masked_gram(features, mask, backend="triton")
    gram.sum().backward()
    assert torch.isfinite(gram).all()
    assert torch.isfinite(features.grad).all()
    assert (features.grad[~mask.expand_as(features)] == 0).all()


def test_the_gram_is_symmetric_to_the_bit() -> None:
    gram = masked_gram.forward(random(1, 130, 4, 5, dtype=torch.float16), None)
    assert torch.equal(gram, gram.transpose(1, 2))


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(dtype: torch.dtype, guarded: Guard) -> None:
    a, b = (random(2, 5, 4, 6, seed=seed, dtype=dtype) for seed in range(2))
    for change in (
        lambda t: guarded(t.to(memory_format=torch.channels_last)),
        lambda t: t[:1].expand(2, -1, -1, -1),
        lambda t: t.transpose(2, 3),
    ):
        check_masked(change(a), None)
        check_cross(change(a), change(b))


def test_two_dtypes() -> None:
    check_cross(random(1, 3, 4, 5, dtype=torch.float16), random(1, 4, 4, 5, seed=1, dtype=torch.float32))
    check_cross(random(1, 3, 4, 5, dtype=torch.float32), random(1, 4, 4, 5, seed=1, dtype=torch.float16))


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e7])
def test_gradients_of_any_size_reach_float16_features(scale: float) -> None:
    """Rounded to float16 as they are, gradients of 1e-9 would be 0 and those of 1e7 infinite."""
    a, b = random(1, 3, 4, 5, dtype=torch.float16), random(1, 4, 4, 5, seed=1, dtype=torch.float16)
    grad = random(1, 3, 4, seed=2, dtype=torch.float32) * scale
    # The same products at a size that float16 features' gradients can show.
    d_a, d_b = cross_gram._times(grad, b, a.float()), cross_gram._times(grad.transpose(1, 2), a, b)
    assert torch.isfinite(d_a).all()
    truth, _ = eager.backward(grad.double(), a.double(), b.double())
    assert float((d_a - truth).abs().max() / truth.abs().max()) < 1e-5
    if scale == 1.0:
        _, truth = eager.backward(grad.double(), a.double(), b.double())
        assert float((d_b - truth).abs().max() / truth.abs().max()) < 2 * torch.finfo(torch.float16).eps


def test_registered_ops_pass_opcheck() -> None:
    a, b = (random(1, 3, 2, 3, seed=seed, dtype=torch.float32).requires_grad_() for seed in range(2))
    foreground = make_mask("random", 1, 2, 3) > 0.5
    ops = torch.ops.scsco_fast
    torch.library.opcheck(ops.masked_gram.default, (a, foreground, "triton"), test_utils=CHECKS)
    torch.library.opcheck(ops.cross_gram.default, (a, b, "triton"), test_utils=CHECKS)


def test_addresses_pass_2_to_the_31(tmp_path: Path) -> None:
    """Channels 2^30 elements apart, in a sparse file of which a few pages exist."""
    near, apart = random(1, 4, 2, 3, dtype=torch.float16), 2**30
    file = np.memmap(tmp_path / "sparse", np.float16, "w+", shape=(3 * apart + 6,))
    far = torch.from_numpy(file).as_strided((1, 4, 2, 3), (0, apart, 3, 1)).copy_(near)
    grad = random(1, 4, 4, seed=1, dtype=torch.float32)
    assert torch.equal(masked_gram.forward(far, None), masked_gram.forward(near, None))
    assert torch.equal(masked_gram.backward(grad, far, None), masked_gram.backward(grad, near, None))
    assert torch.equal(cross_gram.forward(far, near), cross_gram.forward(near, near))


@pytest.mark.parametrize(
    ("channels", "dtype", "reason"), [(513, torch.float32, "513 channels"), (2, torch.float64, "float64")]
)
def test_what_is_not_served_is_named(channels: int, dtype: torch.dtype, reason: str) -> None:
    a = random(1, channels, 1, 2, dtype=dtype)
    assert reason in str(refusal("triton", "masked_gram", a))
    for operation, tensors in ((sf.ops.masked_gram, [a]), (sf.ops.cross_gram, [a, a])):
        with pytest.raises(RuntimeError, match=reason):
            operation(*tensors, backend="triton")


def test_an_empty_batch() -> None:
    nothing = torch.zeros(0, 3, 4, 4, requires_grad=True)
    sf.ops.masked_gram(nothing, backend="triton").sum().backward()
    assert sf.ops.cross_gram(nothing, nothing, backend="triton").shape == (0, 3, 3)
