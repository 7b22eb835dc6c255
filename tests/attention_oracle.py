"""How far bain_attention's kernels may be from the float64 formulas, in every kind of product.

Twice what the dense formulas err whose products take operands rounded as the kind does, plus the rounding band of
oracle.py: one rounding to the result's dtype and log2(n) float32 roundings.
"""

import math
from typing import Any

import torch
from oracle import make_mask, random
from torch import Tensor

from scsco_fast.eager import bain_attention as eager
from scsco_fast.regions import RegionLevel, Regions

SCALE, EPS = 0.3, 1e-5
KINDS = ["bfloat16", "float16", "tf32", "float32"]


def inputs(kind: str, batch: int, size: int, keys: int, channels: int, device: str) -> tuple[list[Tensor], RegionLevel]:
    """query, key, value and both gradients, and the regions of a ragged batch."""
    dtype = torch.float32 if kind == "tf32" else getattr(torch, kind)
    shapes = [(batch, keys, size, size)] * 2 + [(batch, channels, size, size)] * 3
    tensors = [random(*shape, seed=seed, dtype=dtype, offset=0.5).to(device) for seed, shape in enumerate(shapes)]
    return tensors, Regions(make_mask("ragged", batch, size, size).to(device)).at(size, size)


def both(kernels: Any, tensors: list[Tensor], level: RegionLevel) -> list[Tensor]:
    """mean, std and the three gradients from a backend's module."""
    query, key, value, grad_mean, grad_std = tensors
    mean, std, *saved = kernels.forward(query, key, value, level.order, level.counts, SCALE, EPS)
    grads = kernels.backward(grad_mean, grad_std, query, key, value, level.order, level.counts, *saved, SCALE, EPS)
    return [mean, std, *grads]


def rounded(tensor: Tensor, kind: str) -> Tensor:
    """float64 numbers as the operands of a product in `kind` would be."""
    if kind == "tf32":
        return ((tensor.float().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32).double()
    return tensor.to(getattr(torch, kind)).double()


def saved_by_pixel(tensors: list[Tensor], level: RegionLevel, scale: float) -> list[Tensor]:
    """first and variance (B, N, C) and the logits' log-sum-exp (B, N), in float64, 0 outside the foreground."""
    query, key, value = (t.double().flatten(2).transpose(1, 2) for t in tensors)
    first, variance, lse = torch.zeros_like(value), torch.zeros_like(value), torch.zeros_like(value[..., 0])
    for image, (n_fg, n_bg) in enumerate(level.counts.tolist()):
        if not n_fg or not n_bg:
            continue
        at = level.order[image]
        fg, bg = at[:n_fg], at[len(at) - n_bg :]
        logits, v = scale * query[image, fg] @ key[image, bg].T, value[image, bg]
        v = v - v.mean(0)
        first[image, fg] = logits.softmax(1) @ v
        variance[image, fg] = logits.softmax(1) @ v.square() - first[image, fg].square()
        lse[image, fg] = logits.logsumexp(1)
    return [first, variance, lse]


def same_precision(tensors: list[Tensor], level: RegionLevel, kind: str) -> list[Tensor]:
    """The dense formulas with the operands of every product rounded to `kind`."""
    results = [torch.zeros_like(t, dtype=torch.float64) for t in (*tensors[2:3], *tensors[2:3], *tensors[:3])]
    results[1] += 1
    for image, (n_fg, n_bg) in enumerate(level.counts.tolist()):
        if not n_fg or not n_bg:
            continue
        at = level.order[image]
        fg, bg = at[:n_fg], at[len(at) - n_bg :]
        q, k, v, dm, ds = (t[image].double().flatten(1).T for t in tensors)
        q, k, v, dm, ds = rounded(q[fg], kind), rounded(k[bg], kind), v[bg], dm[fg], ds[fg]
        pivot = v.mean(0)
        v = rounded(v - pivot, kind)
        square = rounded(v * v, kind)
        p = (SCALE * q @ k.T).softmax(1)
        a, b = rounded(p, kind) @ v, rounded(p, kind) @ square
        std = ((b - a * a).clamp(min=0) + EPS).sqrt()
        d_var = 0.5 * ds / std
        da, db = rounded(dm - 2 * a * d_var, kind), rounded(d_var, kind)
        d_logits = rounded(p * (da @ v.T + db @ square.T - (da * a + db * b).sum(1, keepdim=True)), kind)
        d_value = rounded(p, kind).T @ da + 2 * v * (rounded(p, kind).T @ db)
        values = (a + pivot, std, SCALE * d_logits @ k, SCALE * d_logits.T @ q, d_value)
        for result, rows, where in zip(results, values, (fg, fg, fg, bg, bg), strict=True):
            result[image].flatten(1)[:, where] = rows.T
    return results


def float64_results(tensors: list[Tensor], level: RegionLevel) -> list[Tensor]:
    """mean, std and the three gradients by the formulas in float64."""
    wide = [t.double() for t in tensors]
    mean, std, *saved = eager.forward(*wide[:3], level.order, level.counts, SCALE, EPS)
    return [mean, std, *eager.backward(*wide[3:], *wide[:3], level.order, level.counts, *saved, SCALE, EPS)]


def assert_digits_kept_over_many_keys(kernels: Any) -> None:
    """Of 64 queries that resemble all of 4032 keys a little, float16 gradients, in the Euclidean norm.

    Weights near 1/4032 times gradients are below float16's smallest normal number; rounded there, dq and dk err by four
    times as much as the dense formulas with rounded operands.
    """
    tensors = [random(1, 16, 64, 64, seed=seed, dtype=torch.float16) for seed in range(5)]
    tensors[0] *= 0.1
    mask = torch.zeros(1, 1, 64, 64)
    mask[:, :, 0] = 1
    level = Regions(mask).at(64, 64)
    results = zip(
        both(kernels, tensors, level),
        same_precision(tensors, level, "float16"),
        float64_results(tensors, level),
        strict=True,
    )
    for index, (ours, near, truth) in list(enumerate(results))[2:]:
        error, allowed = (float((result.double() - truth).norm() / truth.norm()) for result in (ours, near))
        assert error <= 2 * allowed, f"result {index} errs by {error:.3g} of its norm, rounded operands {allowed:.3g}"


def assert_accurate(kernels: Any, tensors: list[Tensor], level: RegionLevel, kind: str) -> None:
    """Hold a backend's module, forward and backward, to the float64 formulas."""
    truths = float64_results(tensors, level)
    terms = math.log2(max(t.numel() for t in tensors))
    for index, (ours, near, truth) in enumerate(
        zip(both(kernels, tensors, level), same_precision(tensors, level, kind), truths, strict=True)
    ):
        band = torch.finfo(ours.dtype).eps + terms * torch.finfo(torch.float32).eps
        allowed = 2 * (float((near - truth).abs().max()) + band * float(truth.abs().max()))
        error = float((ours.double() - truth).abs().max())
        assert error <= allowed, f"result {index} is off by {error:.3g}, allowed {allowed:.3g}"
