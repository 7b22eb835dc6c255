"""Maps and the tolerance for tests of gram_distances, whose gradients jump where a Gram difference is 0."""

import math
from collections.abc import Sequence

import torch
from oracle import random, run
from torch import Tensor

import scsco_fast as sf

SHIFTS = (2.0, 4.0, -6.0, 3.0, 8.0, -5.0, 7.0, -3.0, 5.0)


def maps(
    batch: int, others: int, channels: int, width: int, pixels: tuple[int, int], dtype: torch.dtype
) -> list[Tensor]:
    """Anchor, background and others whose Gram differences are far from 0, where the sign of a gradient would be
    rounding's."""
    anchor = random(batch, channels, *pixels).abs()
    background = random(batch, width, *pixels, seed=1).abs()
    shift = torch.tensor(SHIFTS[:others], dtype=torch.float64).reshape(1, -1, 1, 1, 1)
    further = random(batch, others, channels, *pixels, seed=2).abs() + anchor.unsqueeze(1) + shift
    return [t.to(dtype) for t in (anchor, background, further)]


def assert_distances_match(tensors: Sequence[Tensor], backend: str) -> None:
    """As `oracle.assert_matches`, with one rounding to the operands' dtype: the kernels round the differences to it
    before they multiply them."""
    got = run(sf.ops.gram_distances, tensors, backend)
    truth = run(sf.ops.gram_distances, [t.double() for t in tensors], "reference")
    near = run(sf.ops.gram_distances, [t.float() for t in tensors], "reference")
    terms = max(t.numel() for t in tensors)
    band = max(torch.finfo(t.dtype).eps for t in tensors) + math.log2(terms) * torch.finfo(torch.float32).eps
    for index, (ours, theirs, exact) in enumerate(zip(got, near, truth, strict=True)):
        allowed = 2 * (float((theirs.double() - exact).abs().max()) + band * float(exact.abs().max()))
        error = float((ours.double() - exact).abs().max())
        assert error <= allowed, f"result {index} is off by {error:.3g}, allowed {allowed:.3g}"
