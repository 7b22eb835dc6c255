"""masked_gram and cross_gram compiled from csrc/: TF32, little shared memory, and what the library checks.

tests/contract/test_grams.py holds what every backend must do.
"""

from collections.abc import Callable

import pytest
import torch
from oracle import make_mask, random
from torch import Tensor

from scsco_fast.cuda import cross_gram, masked_gram
from scsco_fast.cuda.library import operations


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def test_wide_tiles_where_shared_memory_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The 64 KB of sm_75 hold the forward's wide tiles and not the backward's, which has the same bits without."""
    a, b = (random(1, c, 8, 16, seed=c, dtype=torch.float16) for c in (130, 128))
    grad = random(1, 130, 128, seed=1, dtype=torch.float32)
    wide = cross_gram.forward(a, b), *cross_gram.backward(grad, a, b)
    monkeypatch.setenv("SCSCO_EMULATED_SHARED_BYTES", str(64 * 1024))
    assert all(
        torch.equal(x, y)
        for x, y in zip(wide, (cross_gram.forward(a, b), *cross_gram.backward(grad, a, b)), strict=True)
    )


@pytest.mark.parametrize("layout", [lambda t: t, channels_last], ids=["planes", "channels last"])
@pytest.mark.parametrize("channels", [(72, 8), (136, 128)])
def test_tf32(channels: tuple[int, int], layout: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Operands are rounded to ten bits, nearest: at most 2^-11 each, and differently from IEEE products."""
    a, b = (layout(random(2, c, 6, 8, seed=c, dtype=torch.float32)) for c in channels)
    square = random(2, channels[0], channels[0], seed=1, dtype=torch.float32)
    wide = random(2, *channels, seed=2, dtype=torch.float32)
    foreground = make_mask("random", 2, 6, 8) > 0.5
    results = []
    for on in (True, False):
        for module in (masked_gram, cross_gram):
            monkeypatch.setattr(module, "tf32", lambda _, on=on: on)
        masked = (masked_gram.forward(a, foreground), masked_gram.backward(square, a, foreground))
        results.append((*masked, cross_gram.forward(a, b), *cross_gram.backward(wide, a, b)))
    for rounded, exact in zip(*results, strict=True):
        error = float((rounded - exact).abs().max() / exact.abs().max())
        assert 2**-20 < error < 2**-10


@pytest.mark.parametrize("layout", [lambda t: t, channels_last], ids=["planes", "channels last"])
@pytest.mark.parametrize("channels", [4, 128])
def test_tf32_is_rounded_and_not_cut(
    channels: int, layout: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 + 3/4 of the last bit becomes 1 and that bit, of both operands, and no sum of these is rounded."""
    for module in (masked_gram, cross_gram):
        monkeypatch.setattr(module, "tf32", lambda _: True)
    number, square = 1 + 3 * 2**-12, (1 + 2**-10) ** 2
    a = layout(torch.full((1, channels, 2, 2), number))
    foreground = torch.tensor([[[[True, True], [False, True]]]])
    grad = torch.zeros(1, channels, channels)
    grad[..., :4] = number
    assert (masked_gram.forward(a, None) == square).all()
    assert (masked_gram.forward(a, foreground) == square * 3 / 4).all()
    assert (cross_gram.forward(a, a) == square).all()
    assert (cross_gram.backward(grad, a, a)[0] == square).all()


def test_the_library_checks_what_it_is_given() -> None:
    a, mask = random(1, 4, 15, dtype=torch.float32), torch.zeros(1, 14, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match=r"^foreground must have shape \(1, 15\), got \(1, 14\)$"):
        operations().masked_gram_forward(a, mask, False)
    with pytest.raises(RuntimeError, match=r"^b must have shape \(1, 4, 15\), got \(1, 4, 14\)$"):
        operations().cross_gram_forward(a, a[..., 1:], False)
    with pytest.raises(RuntimeError, match=r"^grad must have shape \(1, 4, 4\), got \(1, 4, 3\)$"):
        operations().masked_gram_backward(torch.zeros(1, 4, 3), a, None, False)
