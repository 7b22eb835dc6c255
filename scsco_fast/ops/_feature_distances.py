"""Mean absolute differences between one feature map and several others."""

from typing import Any

import torch
from torch import Tensor

from scsco_fast.kernels.feature_distances import allocate_gradients
from scsco_fast.ops.backend import choose, implementation, is_reference
from scsco_fast.ops.checks import check_device, check_map, check_same
from scsco_fast.ops.registration import (
    register_operation,
    register_reference,
    statistics_dtype,
)
from scsco_fast.reference import feature_distances as reference


def feature_distances(anchor: Tensor, others: Tensor, backend: str = "auto") -> Tensor:
    """D_j = mean over channels and pixels of |anchor - others_j|.

    Args:
        anchor: (B, C, H, W), float16 to float64.
        others: (B, J, C, H, W).
        backend: "auto" or one of `scsco_fast.ops.backends()`.

    Returns:
        (B, J), float32 (float64 if an input is). The gradient at a difference of exactly 0 is 0.

    Raises:
        TypeError, ValueError: an argument's type, shape or device; the message names it.
        RuntimeError: an explicit backend cannot serve.

    Source: the self-style term of SCS-Co (Hang et al., CVPR 2022), D being the mean absolute difference.

    Examples:
        >>> import torch, scsco_fast as sf
        >>> sf.ops.feature_distances(torch.zeros(1, 2, 3, 3), torch.ones(1, 2, 2, 3, 3)).tolist()
        [[1.0, 1.0]]
    """
    check_map("anchor", anchor)
    check_map("others", others, dims=5)
    check_same("the shape of each of others", others.shape[:1] + others.shape[2:], "anchor", anchor.shape)
    check_device("others", others, "anchor is", anchor.device)
    chosen = choose(backend, "feature_distances", anchor, others)
    if is_reference(chosen):
        return torch.ops.scsco_fast.feature_distances_reference(anchor, others)
    return _feature_distances(anchor, others, chosen)


register_reference("feature_distances_reference(Tensor anchor, Tensor others) -> Tensor", reference.feature_distances)


def _fake(anchor: Tensor, others: Tensor, backend: str) -> Tensor:
    return anchor.new_empty(others.shape[:2], dtype=statistics_dtype(anchor, others))


@register_operation("feature_distances", _fake)
def _feature_distances(anchor: Tensor, others: Tensor, backend: str) -> Tensor:
    return implementation(backend, "feature_distances").forward(anchor, others)


def _fake_backward(grad: Tensor, anchor: Tensor, others: Tensor, backend: str, anchor_only: bool) -> list[Tensor]:
    return list(allocate_gradients(anchor, others, anchor_only))


@register_operation("feature_distances_backward", _fake_backward, differentiable=False)
def _feature_distances_backward(
    grad: Tensor, anchor: Tensor, others: Tensor, backend: str, anchor_only: bool
) -> list[Tensor]:
    """Gradients of anchor and others; of the anchor alone where the others need none, as in training."""
    return list(implementation(backend, "feature_distances").backward(grad, anchor, others, anchor_only))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    anchor, others, ctx.backend = inputs
    ctx.save_for_backward(anchor, others)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = _feature_distances_backward(grad, *ctx.saved_tensors, ctx.backend, not ctx.needs_input_grad[1])
    return *grads, *[None] * (3 - len(grads))


torch.library.register_autograd(_feature_distances, _backward, setup_context=_setup_context)
