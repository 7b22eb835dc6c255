"""What every timed function is held to: the formulas in float64, differentiated by autograd."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from scsco_fast.reference.bain_norm import bain_norm as affine
from scsco_fast.regions import RegionLevel

BLOCK = 2**26  # elements of attention that exist at a time: half a GiB in float64


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v of rows (B, n, D), (B, m, D), (B, m, E): (B, n, E), block by block of the queries."""

    def block(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(q @ k.transpose(1, 2) * q.shape[2] ** -0.5, dim=2) @ v

    length = max(1, BLOCK // (key.shape[0] * key.shape[1]))
    blocks = [checkpoint(block, q, key, value, use_reentrant=False) for q in query.split(length, dim=1)]
    return torch.cat(blocks, dim=1)


def rows(maps: Tensor) -> Tensor:
    """(B, C, H, W) as rows (B, H * W, C)."""
    return maps.flatten(2).transpose(1, 2)


def bain_attention(
    level: RegionLevel, query: Tensor, key: Tensor, value: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Mean and deviation, where every image has the same number of foreground pixels (which is read to the host)."""
    n_fg = int(level.counts[0, 0])
    assert bool((level.counts == level.counts[:1]).all())
    foreground, background = level.order[:, :n_fg], level.order[:, n_fg:]
    q, k, v = take(rows(query), foreground), take(rows(key), background), take(rows(value), background)
    pivot = v.mean(dim=1, keepdim=True)
    centred = v - pivot
    first, second = attention(q, k, torch.cat([centred, centred.square()], dim=2)).chunk(2, dim=2)
    std = (second - first.square() + eps).sqrt()
    where = foreground.unsqueeze(2).expand(-1, -1, v.shape[2])
    empty = torch.zeros_like(rows(value))
    maps = (empty.scatter(1, where, first + pivot), (empty + 1).scatter(1, where, std))
    mean, std = (m.transpose(1, 2).reshape(value.shape) for m in maps)
    return mean, std


def bain_norm(level: RegionLevel, query: Tensor, key: Tensor, value: Tensor, normalised: Tensor) -> Tensor:
    one, zero = normalised.new_ones(normalised.shape[1]), normalised.new_zeros(normalised.shape[1])
    mean, std = bain_attention(level, query, key, value)
    return affine(normalised, mean, std, level.foreground, None, torch.stack([one, zero, one, zero]))


def take(table: Tensor, index: Tensor) -> Tensor:
    return table.gather(1, index.unsqueeze(2).expand(-1, -1, table.shape[2]))


def outputs_and_gradients(
    function: Callable[..., Any], tensors: Sequence[Tensor], gradients: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs, and the gradients of the inputs that ask for one; with no `gradients` the outputs alone."""
    outputs = function(*tensors)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    leaves = [tensor for tensor in tensors if tensor.requires_grad] if gradients else []
    found: Sequence[Tensor] = ()
    if leaves:
        found = torch.autograd.grad(outputs, leaves, [g.to(o.dtype) for g, o in zip(gradients, outputs, strict=True)])
    return [o.detach() for o in outputs], list(found)


def in_float64(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in tensors]


def error(found: tuple[list[Tensor], list[Tensor]], wanted: tuple[list[Tensor], list[Tensor]]) -> float:
    """The worst of all outputs and gradients.

    Of an output the largest difference relative to its largest value, of a gradient the difference relative to it in
    the Euclidean norm: where a loss has a kink (|f - o| near 0) rounding alone turns single gradients around.
    """
    worst = [0.0]
    for ours, truth in zip(found[0], wanted[0], strict=True):
        worst.append(float((ours.double() - truth).abs().max() / truth.abs().max()))
    for ours, truth in zip(found[1], wanted[1], strict=True):
        worst.append(float((ours.double() - truth).norm() / truth.norm()))
    return max(worst) if all(value == value for value in worst) else float("nan")
