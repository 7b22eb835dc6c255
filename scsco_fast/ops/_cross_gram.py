"""The Gram matrix of two feature maps."""

from typing import Any

import torch
from torch import Tensor

from scsco_fast.kernels.memory import contiguous_like
from scsco_fast.ops.backend import choose, implementation, is_reference
from scsco_fast.ops.checks import check_device, check_map, check_same
from scsco_fast.ops.registration import (
    register_operation,
    register_reference,
    statistics_dtype,
)
from scsco_fast.reference import cross_gram as reference


def cross_gram(a: Tensor, b: Tensor, backend: str = "auto") -> Tensor:
    """Correlation of two feature maps' channels: G = a b^T / (H W), the product over pixels.

    Args:
        a: (B, C, H, W), float16 to float64.
        b: (B, D, H, W).
        backend: "auto" or one of `scsco_fast.ops.backends()`.

    Returns:
        (B, C, D), float32 (float64 if an input is).

    Raises:
        TypeError, ValueError: an argument's type, shape or device; the message names it.
        RuntimeError: an explicit backend cannot serve.

    Source: the foreground-background style consistency of SCS-Co (Hang et al., CVPR 2022).

    Examples:
        >>> import torch, scsco_fast as sf
        >>> sf.ops.cross_gram(torch.ones(1, 1, 2, 2), torch.full((1, 2, 2, 2), 3.0)).tolist()
        [[[3.0, 3.0]]]
    """
    check_map("a", a)
    check_map("b", b)
    check_same("batch and size of b", b.shape[:1] + b.shape[2:], "a", a.shape[:1] + a.shape[2:])
    check_device("b", b, "a is", a.device)
    chosen = choose(backend, "cross_gram", a, b)
    if is_reference(chosen):
        return torch.ops.scsco_fast.cross_gram_reference(a, b)
    return _cross_gram(a, b, chosen)


register_reference("cross_gram_reference(Tensor a, Tensor b) -> Tensor", reference.cross_gram)


def _fake(a: Tensor, b: Tensor, backend: str) -> Tensor:
    return a.new_empty((a.shape[0], a.shape[1], b.shape[1]), dtype=statistics_dtype(a, b))


@register_operation("cross_gram", _fake)
def _cross_gram(a: Tensor, b: Tensor, backend: str) -> Tensor:
    return implementation(backend, "cross_gram").forward(a, b)


def _fake_backward(grad: Tensor, a: Tensor, b: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return contiguous_like(a), contiguous_like(b)


@register_operation("cross_gram_backward", _fake_backward, differentiable=False)
def _cross_gram_backward(grad: Tensor, a: Tensor, b: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return implementation(backend, "cross_gram").backward(grad, a, b)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    a, b, ctx.backend = inputs
    ctx.save_for_backward(a, b)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_cross_gram_backward(grad, *ctx.saved_tensors, ctx.backend), None


torch.library.register_autograd(_cross_gram, _backward, setup_context=_setup_context)
