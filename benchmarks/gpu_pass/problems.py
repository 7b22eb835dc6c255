"""Inputs, calls and derived tolerances of every operation, for the accuracy stages of the pass.

A result may err by twice what a reference of the same precision errs against float64, plus the rounding band: one
rounding to its own dtype, log2(n) float32 roundings of a sum, and, where a kernel rounds the operands of a product that
were not rounded before, one rounding of each (tests/oracle.py and tests/attention_oracle.py have the derivation).
"""

import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import scsco_fast as sf
from scsco_fast import kernels
from scsco_fast.benchmarks.gpu_pass.items import Record
from scsco_fast.regions import Regions

# Of tests/, which the pass has on its path.
oracle: Any = importlib.import_module("oracle")
attention_oracle: Any = importlib.import_module("attention_oracle")

SCALE, EPS = attention_oracle.SCALE, attention_oracle.EPS
KINDS = tuple(attention_oracle.KINDS)
OTHERS = ("region_norm", "masked_gram", "cross_gram", "feature_distances", "gram_distances")
PRODUCTS = ("masked_gram", "cross_gram", "gram_distances")
OPERAND_EPS = {"bfloat16": 2**-7, "float16": 2**-10, "tf32": 2**-10, "float32": 2**-23}
BATCH = 3
AFFINE = ("d_fg_gain", "d_fg_bias", "d_bg_gain", "d_bg_bias")
Call = Callable[[Sequence[Tensor], Sequence[Tensor], Regions, str], Tensor | tuple[Tensor, ...]]


@dataclass(frozen=True)
class Problem:
    """An operation with its inputs: `leaves` get gradients, `fixed` do not, `grads` are those of the outputs."""

    name: str
    kind: str
    call: Call
    leaves: Sequence[Tensor]
    fixed: Sequence[Tensor]
    grads: Sequence[Tensor]
    results: Sequence[str]

    def wide(self) -> "Problem":
        """The same in float64."""
        leaves, fixed, grads = ([t.double() for t in ts] for ts in (self.leaves, self.fixed, self.grads))
        return replace(self, leaves=leaves, fixed=fixed, grads=grads)

    def compute(self, regions: Regions, backend: str) -> list[Tensor]:
        """Outputs, and gradients of the leaves."""
        leaves = [t.detach().requires_grad_() for t in self.leaves]
        outputs = self.call(leaves, self.fixed, regions, backend)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        grads = [g.to(o.dtype) for g, o in zip(self.grads, outputs, strict=True)]
        return [*(o.detach() for o in outputs), *torch.autograd.grad(outputs, leaves, grads)]


def problem(name: str, kind: str, channels: int, size: int, keys: int, device: str, batch: int = BATCH) -> Problem:
    """Random inputs of an operation; `keys` matters to the attention alone."""
    dtype = torch.float32 if kind == "tf32" else getattr(torch, kind)
    maps, narrow = (batch, channels, size, size), (batch, keys, size, size)

    def random(*shape: int, seed: int, dtype: torch.dtype = dtype, offset: float = 0.0) -> Tensor:
        return oracle.random(*shape, seed=seed, dtype=dtype, offset=offset).to(device)

    if name in ("bain_attention", "bain_norm"):
        qkv = [random(*shape, seed=seed, offset=0.5) for seed, shape in enumerate((narrow, narrow, maps))]
        if name == "bain_attention":
            grads = [random(*maps, seed=seed, offset=0.5) for seed in (3, 4)]
            return Problem(name, kind, _attention, qkv, [], grads, ("mean", "std", "d_query", "d_key", "d_value"))
        affine = [random(channels, seed=seed, dtype=torch.float32, offset=0.5) for seed in range(10, 14)]
        names = ("y", "d_query", "d_key", "d_value", "d_normalised", *AFFINE)
        return Problem(name, kind, _norm, [*qkv, random(*maps, seed=3), *affine], [], [random(*maps, seed=4)], names)
    # Features are not negative. The others differ from the anchor by more than rounding everywhere: no kink is near.
    x, b = (oracle.random(*maps, seed=seed).abs() for seed in (0, 1))
    shift = torch.tensor([2.0, 4.0, -6.0], dtype=torch.float64).reshape(1, -1, 1, 1, 1)
    apart = oracle.random(batch, 3, *maps[1:], seed=2).abs() + x.unsqueeze(1) + shift
    x, b, others = (t.to(dtype).to(device) for t in (x, b, apart))
    matrix = random(batch, channels, channels, seed=5, dtype=torch.float32)
    distances = random(batch, 3, seed=6, dtype=torch.float32)
    if name == "region_norm":
        affine = [random(channels, seed=seed, dtype=torch.float32) for seed in range(10, 14)]
        return Problem(name, kind, _region_norm, [x, *affine], [], [random(*maps, seed=3)], ("y", "d_x", *AFFINE))
    if name == "masked_gram":
        return Problem(name, kind, _masked_gram, [x], [], [matrix], ("gram", "d_x"))
    if name == "cross_gram":
        return Problem(name, kind, _cross_gram, [x, b], [], [matrix], ("gram", "d_a", "d_b"))
    if name == "feature_distances":
        return Problem(name, kind, _feature_distances, [x], [others], [distances], ("distances", "d_anchor"))
    return Problem(name, kind, _gram_distances, [x], [b, others], [distances], ("distances", "d_anchor"))


def _attention(t: Sequence[Tensor], _: Sequence[Tensor], regions: Regions, backend: str) -> tuple[Tensor, ...]:
    return sf.ops.bain_attention(t[0], t[1], t[2], regions, SCALE, EPS, backend)


def _norm(t: Sequence[Tensor], _: Sequence[Tensor], regions: Regions, backend: str) -> Tensor:
    q, k, v, n, gain, bias, bg_gain, bg_bias = t
    return sf.ops.bain_norm(q, k, v, n, regions, gain, bias, bg_gain, bg_bias, SCALE, EPS, backend)


def _region_norm(t: Sequence[Tensor], _: Sequence[Tensor], regions: Regions, backend: str) -> Tensor:
    x, gain, bias, bg_gain, bg_bias = t
    return sf.ops.region_norm(x, regions, gain, bias, bg_gain, bg_bias, EPS, backend)


def _masked_gram(t: Sequence[Tensor], _: Sequence[Tensor], regions: Regions, backend: str) -> Tensor:
    return sf.ops.masked_gram(t[0], regions, backend)


def _cross_gram(t: Sequence[Tensor], _: Sequence[Tensor], regions: Regions, backend: str) -> Tensor:
    return sf.ops.cross_gram(t[0], t[1], backend)


def _feature_distances(t: Sequence[Tensor], fixed: Sequence[Tensor], regions: Regions, backend: str) -> Tensor:
    return sf.ops.feature_distances(t[0], fixed[0], backend)


def _gram_distances(t: Sequence[Tensor], fixed: Sequence[Tensor], regions: Regions, backend: str) -> Tensor:
    return sf.ops.gram_distances(t[0], fixed[0], fixed[1], backend)


# --- what they are held to --------------------------------------------------------------------------------------------


def same_precision(problem: Problem, regions: Regions) -> list[Tensor]:
    """The results of a reference that rounds what the kernels round: dense formulas, or the eager backend."""
    size = problem.leaves[0].shape[-1]
    if problem.name == "bain_attention":
        level = regions.at(size, size)
        found: list[Tensor] = attention_oracle.same_precision([*problem.leaves, *problem.grads], level, problem.kind)
        return found
    if problem.name == "bain_norm":
        return _norm_in_same_precision(problem, regions)
    return problem.compute(regions, "eager")


def _norm_in_same_precision(problem: Problem, regions: Regions) -> list[Tensor]:
    """y = (std n + mean) g + b inside the foreground and n g' + b' outside, on the rounded attention's statistics."""
    q, k, v, n, *affine = (t.double() for t in problem.leaves)
    gain, bias, bg_gain, bg_bias = (t.reshape(1, -1, 1, 1) for t in affine)
    level = regions.at(q.shape[-1], q.shape[-1])
    grad, inside = problem.grads[0].double(), level.foreground.double()
    statistics = [q, k, v, grad * gain * inside, grad * gain * n * inside]
    mean, std, *d_qkv = attention_oracle.same_precision(statistics, level, problem.kind)
    y = torch.where(level.foreground, (std * n + mean) * gain + bias, n * bg_gain + bg_bias)
    d_n = grad * torch.where(level.foreground, std * gain, bg_gain)
    terms = (grad * inside * (std * n + mean), grad * inside, grad * (1 - inside) * n, grad * (1 - inside))
    return [y, *d_qkv, d_n, *(term.sum((0, 2, 3)) for term in terms)]


def compare(problem: Problem, regions: Regions, backend: str) -> Iterator[Record]:
    """A record for each result: its error against float64 and what is allowed, both absolute, and its largest value.

    Triton's interpreter multiplies bfloat16 wrongly: there only what fails is found, and no error is judged.
    """
    judged = not (backend == "triton" and kernels.interpreted() and problem.kind == "bfloat16")
    with matmul_precision(problem.kind):
        ours = problem.compute(regions, backend)
        near = same_precision(problem, regions)
    truths = problem.wide().compute(regions, "eager")
    terms = math.log2(max(t.numel() for t in (*problem.leaves, *problem.fixed)))
    operands = 2 * OPERAND_EPS[problem.kind] if problem.name in PRODUCTS else 0.0
    for name, found, close, truth in zip(problem.results, ours, near, truths, strict=True):
        band = torch.finfo(found.dtype).eps + operands + terms * torch.finfo(torch.float32).eps
        largest = float(truth.abs().max())
        allowed = 2 * (float((close.double() - truth).abs().max()) + band * largest)
        error = float((found.double() - truth).abs().max())
        passed = error <= allowed if judged else None
        yield {"result": name, "error": error, "allowed": allowed, "largest": largest, "passed": passed}


@contextmanager
def matmul_precision(kind: str) -> Iterator[None]:
    """float32 products in TF32 for the kind "tf32", in full otherwise."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def ragged(size: int, device: str, batch: int = BATCH) -> Regions:
    """Every image with another number of foreground pixels, one with none."""
    return Regions(oracle.make_mask("ragged", batch, size, size).to(device))


def counted(counts: Sequence[tuple[int, int]], size: int, device: str) -> Regions:
    """Images with these numbers of foreground and background pixels, at random places; the rest is excluded."""
    generator = torch.Generator().manual_seed(0)
    mask, valid = (torch.zeros(len(counts), size * size) for _ in range(2))
    for image, (n_fg, n_bg) in enumerate(counts):
        places = torch.randperm(size * size, generator=generator)
        mask[image, places[:n_fg]] = 1
        valid[image, places[: n_fg + n_bg]] = 1
    mask, valid = (t.reshape(-1, 1, size, size).to(device) for t in (mask, valid))
    return Regions(mask, valid)
