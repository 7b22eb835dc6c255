"""What changes with the step: learning rate, decay of the averaged weights, seeds. Pure functions of its number."""

import math
from collections.abc import Callable

from scsco_fast.train.config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of step `step` (0-based): linear warm-up, then the schedule over all of `config.steps`."""
    progress = step / config.steps
    factors: dict[str, Callable[[], float]] = {
        "constant": lambda: 1.0,
        "cosine": lambda: 0.5 * (1 + math.cos(math.pi * progress)),
        "linear-decay": lambda: min(1.0, 2 * (1 - progress)),
        "step": lambda: 0.1 ** ((12 * step >= 10 * config.steps) + (12 * step >= 11 * config.steps)),
    }
    warmup = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    return config.lr * warmup * factors[config.schedule]()


def ema_decay(config: TrainConfig, step: int) -> float:
    """Decay of the averaged weights at step `step` (0-based): (1 + t) / (10 + t) until that reaches `ema_decay`.

    Without the ramp the first average of a short run would still hold the random start.
    """
    return min(config.ema_decay, (1 + step) / (10 + step))


def step_seed(seed: int, step: int) -> int:
    """Seed of the negatives of one step, a pure function of both numbers."""
    return (seed * 1_000_003 + step * 7_919 + 1) % 2**63
