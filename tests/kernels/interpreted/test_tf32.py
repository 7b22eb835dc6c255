"""TF32 products: operands are rounded to 10 bits of mantissa, which the interpreter's exact products show."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
import triton
import triton.language as tl
from oracle import make_mask, random
from torch import Tensor

from scsco_fast.eager import cross_gram as eager_cross_gram
from scsco_fast.eager import gram_distances as eager_gram_distances
from scsco_fast.eager import masked_gram as eager_masked_gram
from scsco_fast.kernels.cross_gram import launch as cross_gram
from scsco_fast.kernels.gram_distances import launch as gram_distances
from scsco_fast.kernels.masked_gram import launch as masked_gram
from scsco_fast.kernels.rounding import to_tf32

BITS = 10  # of TF32's mantissa
EPS = torch.finfo(torch.float32).eps


@triton.jit
def _round_kernel(x_ptr, out_ptr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out_ptr + at, to_tf32(tl.load(x_ptr + at)))


def nearest(x: Tensor) -> Tensor:
    """By float64 arithmetic: the nearest multiple of the last bit's worth, ties away from zero."""
    wide = x.double()
    exponent = torch.frexp(wide).exponent.clamp_min(-125)
    unit = torch.ldexp(torch.ones_like(wide), exponent - 1 - BITS)
    rounded = torch.copysign((wide.abs() / unit + 0.5).floor() * unit, wide)
    return torch.where(wide.isfinite(), rounded, wide).float()


def test_rounding_is_to_nearest() -> None:
    one, least = 1 + 2.0**-BITS, 2.0**-149
    ties = [1 + 2.0 ** -(BITS + 1), one + 2.0 ** -(BITS + 1), 2 - 2.0 ** -(BITS + 1)]
    around = [1 + 2.0 ** -(BITS + 1) - 2.0**-23, 1 + 2.0 ** -(BITS + 1) + 2.0**-23, 1 - 2.0**-24]
    small = [0.0, -0.0, least, 2.0**-137, 3 * 2.0**-137, 2.0**-126, 2.0**-126 - least]
    numbers = [one, *ties, *around, *small, 3.0e38, torch.finfo(torch.float32).max, math.inf, -math.inf, math.nan]
    x = torch.tensor(numbers + [-number for number in ties + around], dtype=torch.float32)
    x = torch.cat([x, random(512 - len(x), dtype=torch.float32) * 2.0 ** torch.arange(512 - len(x)).sub(250).div(3)])
    out = torch.empty_like(x)
    _round_kernel[(1,)](x, out, SIZE=512)
    torch.testing.assert_close(out, nearest(x), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(out.signbit(), nearest(x).signbit())


@pytest.fixture
def tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


def maps() -> tuple[Tensor, Tensor, Tensor]:
    """Two positive maps, so that no sum cancels, and a gradient of their Gram matrix."""
    a, b = (random(1, channels, 5, 7, seed=channels).abs().add(0.1).float() for channels in (3, 4))
    return a, b, random(1, 3, 4, seed=2, dtype=torch.float32)


def cases() -> dict[str, tuple[Callable[[], Tensor], Callable[[Callable[[Tensor], Tensor]], Tensor]]]:
    """The kernels' result, and the float64 formula's with its operands as a function makes them."""
    a, b, grad = maps()
    others, mask = b[:, :3].unsqueeze(1) + 3, make_mask("random", 1, 5, 7) > 0.5
    square = random(1, 3, 3, seed=3, dtype=torch.float32)
    half = a.double() * 0.5 - others[:, 0].double() * 0.5
    distance = torch.ones(1, 1)

    def signs() -> Tensor:
        return gram_distances.forward(a, b, others)[1]

    def masked_gradient(operand: Callable[[Tensor], Tensor]) -> Tensor:
        doubled = operand((square + square.transpose(1, 2)).double()) / 2
        return eager_masked_gram.backward(doubled, operand(a.double()), mask)

    return {
        "cross_gram": (
            lambda: cross_gram.forward(a, b),
            lambda operand: eager_cross_gram.forward(operand(a.double()), operand(b.double())),
        ),
        "cross_gram backward": (
            lambda: cross_gram.backward(grad, a, b)[0],
            lambda operand: eager_cross_gram.backward(operand(grad.double()), a.double(), operand(b.double()))[0],
        ),
        "masked_gram": (
            lambda: masked_gram.forward(a, mask),
            lambda operand: eager_masked_gram.forward(operand(a.double()), mask),
        ),
        "masked_gram without a mask": (
            lambda: masked_gram.forward(a, None),
            lambda operand: eager_masked_gram.forward(operand(a.double()), None),
        ),
        "masked_gram backward": (lambda: masked_gram.backward(square, a, mask), masked_gradient),
        "gram_distances": (
            lambda: gram_distances.forward(a, b, others)[0],
            lambda operand: 2 * eager_cross_gram.forward(operand(half), operand(b.double())).abs().mean((1, 2))[None],
        ),
        "gram_distances backward, features": (
            lambda: gram_distances.backward(distance, signs(), a, b, others, False)[0],
            lambda operand: eager_gram_distances.backward(
                distance.double(), signs(), a.double(), operand(b.double()), others.double(), True
            )[0],
        ),
        "gram_distances backward, background": (
            lambda: gram_distances.backward(distance, signs(), a, b, others, False)[1],
            lambda operand: eager_cross_gram.backward(signs()[:, 0].double() / (3 * 4), 2 * operand(half), b.double())[
                1
            ],
        ),
    }


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("name", list(cases()))
def test_products_are_of_rounded_operands(name: str) -> None:
    """To a float32 rounding for each level of a sum of 35 products; the product of what was not rounded is farther."""
    kernel, formula = cases()[name]
    ours, truth = kernel().double(), formula(lambda x: nearest(x.float()).double())
    size = float(truth.abs().max())
    allowed = 2 * (1 + math.log2(35)) * EPS * size
    assert float((formula(lambda x: x) - truth).abs().max()) > 4 * allowed
    assert float((ours - truth).abs().max()) <= allowed


def test_truncation_is_what_rounding_prevents() -> None:
    """The matrix instructions drop 13 bits: positive maps shrink; a rounded operand has nothing there."""

    def truncated(x: Tensor) -> Tensor:
        return (x.view(torch.int32) & -0x2000).view(torch.float32)

    a, b = (random(1, 8, 64, 64, seed=seed).abs().float() for seed in range(2))
    assert torch.equal(truncated(nearest(a)), nearest(a))
    truth = eager_cross_gram.forward(a.double(), b.double())
    # Roundings of two operands, each at most half a unit and independent of the others: they grow with the root.
    band = 2 * 2.0 ** -(BITS + 1) * float(truth.abs().max()) / math.sqrt(64)
    for operand, within in ((nearest, True), (truncated, False)):
        found = eager_cross_gram.forward(operand(a).double(), operand(b).double())
        assert (float((found - truth).abs().max()) <= band) == within
