"""Training: `train(config)` runs a `TrainConfig` into a run folder; `PRESETS` holds the named ones."""

from scsco_fast.train.config import TrainConfig
from scsco_fast.train.engine import train
from scsco_fast.train.presets import PRESETS

__all__ = ["PRESETS", "TrainConfig", "train"]
