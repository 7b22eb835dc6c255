"""The mean difference of two methods over the same pictures, and how far it would move with other pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

Verdict = Literal["better", "worse", "noise"]

RESAMPLES = 10_000
LEVEL = 0.95  # of the interval
# With n pictures all on one side the interval never holds 0; by chance that happens in 2^(1-n) of all cases: 6 % for 5,
# 0.2 % for 10. Below, every difference is called noise.
FEWEST_PICTURES = 10

_LOWER_IS_BETTER = ("mse", "fmse")
_BLOCK = 1 << 20  # drawn indices at a time: 16 MB, whatever the number of pictures and resamples


@dataclass(frozen=True)
class Difference:
    """Mean over pictures of B's value less A's.

    Attributes:
        group: a subset, or "all".
        metric: one of `METRICS`.
        pictures: pairs in the mean; pairs without a finite difference are not.
        left_out: how many those are.
        difference: the mean, NaN where no pair is left.
        low: lower end of the bootstrap percentile interval.
        high: upper end.
        verdict: of B against A; "noise" where the interval holds 0 or there are fewer than `FEWEST_PICTURES` pairs.
    """

    group: str
    metric: str
    pictures: int
    left_out: int
    difference: float
    low: float
    high: float
    verdict: Verdict


def mean_difference(
    metric: str, values: np.ndarray, resamples: int = RESAMPLES, seed: int = 0, group: str = "all"
) -> Difference:
    """The mean of (N,) differences, B's value less A's, with its interval and what that says of B.

    Examples:
        >>> found = mean_difference("mse", np.linspace(-3.0, -1.0, 20))
        >>> round(found.difference, 9), found.low < -2 < found.high, found.verdict
        (-2.0, True, 'better')
    """
    finite = values[np.isfinite(values)]
    if not len(finite):
        return Difference(group, metric, 0, len(values), math.nan, math.nan, math.nan, "noise")
    low, high = bootstrap_interval(finite, resamples, seed)
    verdict: Verdict = "noise"
    if len(finite) >= FEWEST_PICTURES and (low > 0 or high < 0):
        verdict = "better" if (high < 0) == (metric in _LOWER_IS_BETTER) else "worse"
    left_out = len(values) - len(finite)
    return Difference(group, metric, len(finite), left_out, float(finite.mean()), low, high, verdict)


def bootstrap_interval(values: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """The percentile interval, at `LEVEL`, of the mean of (N,) values; N is at least 1.

    Examples:
        >>> low, high = bootstrap_interval(np.arange(101.0), 1000, seed=0)
        >>> low < 50 < high
        True
    """
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    step = max(1, _BLOCK // len(values))
    for start in range(0, resamples, step):
        drawn = rng.integers(len(values), size=(min(step, resamples - start), len(values)))
        means[start : start + len(drawn)] = values[drawn].mean(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
