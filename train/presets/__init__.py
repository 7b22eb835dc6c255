"""Named configurations: `paper` to reproduce the published result, `demo` for minutes on two CPU cores."""

from scsco_fast.train.config import TrainConfig
from scsco_fast.train.presets.demo import DEMO
from scsco_fast.train.presets.paper import PAPER

PRESETS: dict[str, TrainConfig] = {"paper": PAPER, "demo": DEMO}

__all__ = ["PRESETS"]
