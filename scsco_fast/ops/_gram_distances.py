"""Mean absolute differences between Gram matrices that share one factor."""

from typing import Any

import torch
from torch import Tensor

from scsco_fast.kernels.gram_distances import allocate_gradients
from scsco_fast.ops.backend import choose, implementation, is_reference, memory
from scsco_fast.ops.checks import check_device, check_map, check_same
from scsco_fast.ops.registration import (
    register_operation,
    register_reference,
    statistics_dtype,
)
from scsco_fast.reference import gram_distances as reference


def gram_distances(anchor: Tensor, background: Tensor, others: Tensor, backend: str = "auto") -> Tensor:
    """D_j = mean |G(anchor, background) - G(others_j, background)| with G = `cross_gram`.

    As the background is shared, D_j = mean |(anchor - others_j) background^T| / (H W): one product, no stored Gram
    matrix.

    Args:
        anchor: (B, C, H, W), float16 to float64.
        background: (B, D, H, W).
        others: (B, J, C, H, W).
        backend: "auto" or one of `scsco_fast.ops.backends()`.

    Returns:
        (B, J), float32 (float64 if an input is). The gradient at a difference of exactly 0 is 0.

    Raises:
        TypeError, ValueError: an argument's type, shape or device; the message names it.
        RuntimeError: an explicit backend cannot serve.

    Source: the style consistency term of SCS-Co (Hang et al., CVPR 2022), D being the mean absolute difference.

    Examples:
        >>> import torch, scsco_fast as sf
        >>> one = torch.ones(1, 2, 3, 3)
        >>> sf.ops.gram_distances(one, one, torch.zeros(1, 1, 2, 3, 3)).tolist()
        [[1.0]]
    """
    check_map("anchor", anchor)
    check_map("background", background)
    check_map("others", others, dims=5)
    size = anchor.shape[:1] + anchor.shape[2:]
    check_same("batch and size of background", background.shape[:1] + background.shape[2:], "anchor", size)
    check_same("the shape of each of others", others.shape[:1] + others.shape[2:], "anchor", anchor.shape)
    check_device("background", background, "anchor is", anchor.device)
    check_device("others", others, "anchor is", anchor.device)
    chosen = choose(backend, "gram_distances", anchor, background, others)
    if is_reference(chosen):
        return torch.ops.scsco_fast.gram_distances_reference(anchor, background, others)
    return _gram_distances(anchor, background, others, chosen)[0]


register_reference(
    "gram_distances_reference(Tensor anchor, Tensor background, Tensor others) -> Tensor", reference.gram_distances
)


def _fake(anchor: Tensor, background: Tensor, others: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    distances = anchor.new_empty(others.shape[:2], dtype=statistics_dtype(anchor, background, others))
    return distances, memory(backend, "gram_distances").allocate_signs(anchor, background, others)


@register_operation("gram_distances", _fake)
def _gram_distances(anchor: Tensor, background: Tensor, others: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """The distances, and the signs of the products: kept for the backward, empty where it computes them anew."""
    return implementation(backend, "gram_distances").forward(anchor, background, others)


def _fake_backward(
    grad: Tensor, signs: Tensor, anchor: Tensor, background: Tensor, others: Tensor, backend: str, anchor_only: bool
) -> list[Tensor]:
    return list(allocate_gradients(anchor, background, others, anchor_only))


@register_operation("gram_distances_backward", _fake_backward, differentiable=False)
def _gram_distances_backward(
    grad: Tensor, signs: Tensor, anchor: Tensor, background: Tensor, others: Tensor, backend: str, anchor_only: bool
) -> list[Tensor]:
    """Gradients of anchor, background and others; of the anchor alone where the others need none, as in training."""
    module = implementation(backend, "gram_distances")
    return list(module.backward(grad, signs, anchor, background, others, anchor_only))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    anchor, background, others, ctx.backend = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # else zeros are made for the signs
    ctx.save_for_backward(output[1], anchor, background, others)


def _backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None, None
    anchor_only = not any(ctx.needs_input_grad[1:3])
    grads = _gram_distances_backward(grad, *ctx.saved_tensors, ctx.backend, anchor_only)
    return *grads, *[None] * (4 - len(grads))


torch.library.register_autograd(_gram_distances, _backward, setup_context=_setup_context)
