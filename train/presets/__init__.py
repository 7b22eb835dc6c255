"""Named configurations: the published result, minutes on two cores, and a small model on two cores or a GPU."""

from scsco_fast.train.config import TrainConfig
from scsco_fast.train.presets.compact import COMPACT, COMPACT_GPU
from scsco_fast.train.presets.demo import DEMO
from scsco_fast.train.presets.paper import PAPER

PRESETS: dict[str, TrainConfig] = {"paper": PAPER, "demo": DEMO, "compact": COMPACT, "compact-gpu": COMPACT_GPU}

__all__ = ["PRESETS"]
