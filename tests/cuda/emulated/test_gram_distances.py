"""gram_distances compiled from csrc/: TF32, little shared memory, and what the library checks.

tests/contract/test_gram_distances.py holds what every backend must do.
"""

from collections.abc import Callable

import pytest
import torch
from gram_maps import assert_distances_match, maps
from oracle import random
from torch import Tensor

from scsco_fast.cuda import gram_distances
from scsco_fast.cuda.library import operations


def distances_of(*tensors: Tensor) -> Tensor:
    return gram_distances.forward(*tensors)[0]


def gradients_of(grad: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    _, signs = gram_distances.forward(*tensors)
    return gram_distances.backward(grad, signs, *tensors, False)


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.movedim(-3, -1).contiguous().movedim(-1, -3)


def test_wide_tiles_where_shared_memory_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The 64 KB of sm_75 hold narrow tiles only."""
    monkeypatch.setenv("SCSCO_EMULATED_SHARED_BYTES", str(64 * 1024))
    assert_distances_match(maps(1, 2, 130, 128, (3, 3), torch.float16), "cuda")


@pytest.mark.parametrize("layout", [lambda t: t, channels_last], ids=["planes", "channels last"])
@pytest.mark.parametrize("channels", [(72, 8), (136, 128)])
def test_tf32(channels: tuple[int, int], layout: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Operands are rounded to ten bits, nearest: at most 2^-11 each, and differently from IEEE products."""
    tensors = [layout(t) for t in maps(2, 2, *channels, (4, 6), torch.float32)]
    grad, results = random(2, 2, dtype=torch.float32), []
    for on in (True, False):
        monkeypatch.setattr(gram_distances, "tf32", lambda _, on=on: on)
        results.append((distances_of(*tensors), *gradients_of(grad, *tensors)))
    for rounded, exact in zip(*results, strict=True):
        error = float((rounded - exact).abs().max() / exact.abs().max())
        assert 2**-22 < error < 2**-10


@pytest.mark.parametrize("layout", [lambda t: t, channels_last], ids=["planes", "channels last"])
@pytest.mark.parametrize("channels", [4, 128])
def test_tf32_is_rounded_and_not_cut(
    channels: int, layout: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 + 3/4 of the last bit becomes 1 and that bit, of both operands; no gradient has a sum that is rounded."""
    monkeypatch.setattr(gram_distances, "tf32", lambda _: True)
    number, rounded = 1 + 3 * 2**-12, 1 + 2**-10
    anchor, background = (layout(torch.full((1, channels, 2, 2), scale * number)) for scale in (2, 1))
    others = torch.zeros_like(anchor)[:, None]
    grad = torch.full((1, 1), 4.0 * channels)
    distance = distances_of(anchor, background, others)
    torch.testing.assert_close(distance, torch.full((1, 1), 2 * rounded**2), rtol=2**-20, atol=0)
    d_anchor, d_background, d_others = gradients_of(grad, anchor, background, others)
    assert (d_anchor == rounded).all()
    assert (d_others == -rounded).all()
    assert (d_background == 2 * rounded).all()


def test_the_library_checks_what_it_is_given() -> None:
    anchor, background, others = (t.flatten(-2) for t in maps(2, 2, 3, 4, (2, 3), torch.float32))
    with pytest.raises(RuntimeError, match=r"^background must have shape \(2, 4, 6\), got \(2, 4, 5\)$"):
        operations().gram_distances_forward(anchor, background[..., 1:], others, False)
    with pytest.raises(RuntimeError, match=r"^grad must have shape \(2, 2\), got \(2, 1\)$"):
        operations().gram_distances_backward(torch.zeros(2, 1), anchor, background, others, False)
