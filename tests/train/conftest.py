"""Tiny runs: a four-channel network on 32x32 pictures that are a pure function of their index."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from scsco_fast.data.samples import BadSample, Sample
from scsco_fast.train.config import TrainConfig

SIZE = 32


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


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., TrainConfig]:
    """A configuration of a run of seconds; keyword arguments replace its fields."""

    def build(**changes: Any) -> TrainConfig:
        values: dict[str, Any] = {
            "output": str(tmp_path / "run"),
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
        return TrainConfig(**{**values, **changes})

    return build


@pytest.fixture
def pictures() -> type[Pictures]:
    return Pictures
