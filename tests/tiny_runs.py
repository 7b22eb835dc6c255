"""Samples and settings of tiny runs: four channels, 32x32 pictures that are a pure function of their index."""

import os
import signal
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from scsco_fast.data.samples import BadSample, Sample

SIZE = 32
SETTINGS: dict[str, Any] = {
    "size": SIZE,
    "batch_size": 2,
    "base_channels": 4,
    "levels": 6,  # the fewest with a dropout in the decoder
    "head": "residual",
    "style_weight": 0.0,
    "steps": 6,
    "lr": 1e-3,
    "schedule": "cosine",
    "ema_decay": 0.9,
    "log_every": 2,
    "picture_every": 100,
    "checkpoint_every": 100,
    "device": "cpu",
    "precision": "float32",
}


@dataclass
class Pictures(Dataset[Sample | BadSample]):
    """Two-tone pictures whose foreground square is too dark or too bright. Item i depends on i alone."""

    bad: set[int] = field(default_factory=set)
    not_finite: set[int] = field(default_factory=set)
    stop_at: int | None = None
    length: int = 1000

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample | BadSample:
        if index == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        if index in self.bad:
            return BadSample(f"picture{index}.jpg", f"picture{index}.jpg: truncated")
        random = np.random.default_rng((7, index))
        real = torch.from_numpy(random.uniform(0.3, 0.7, (3, 1, 1)) + random.normal(0, 0.05, (3, SIZE, SIZE))).float()
        top, left = random.integers(2, 12, 2)
        mask = torch.zeros(1, SIZE, SIZE)
        mask[:, top : top + 16, left : left + 16] = 1
        composite = (real * (1 - mask) + real * mask * float(random.uniform(0.5, 1.5))).clamp(0, 1)
        if index in self.not_finite:
            composite[0, top, left] = float("nan")
        return Sample(composite, real.clamp(0, 1), mask, f"picture{index}.jpg", "fake")


def differing(one: Any, other: Any, path: str = "") -> list[str]:
    """Places where two nested states are not equal bit for bit."""
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [path]
        return [place for key in one for place in differing(one[key], other[key], f"{path}/{key}")]
    if isinstance(one, (list, tuple)):
        pairs = enumerate(zip(one, other, strict=True))
        return [place for key, (a, b) in pairs for place in differing(a, b, f"{path}/{key}")]
    equal = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    return [] if equal else [path]
