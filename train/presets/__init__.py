"""Named configurations: `paper` (the published result), `demo` (minutes on two cores), `compact` (what is shipped)."""

from scsco_fast.train.config import TrainConfig
from scsco_fast.train.presets.compact import COMPACT
from scsco_fast.train.presets.demo import DEMO
from scsco_fast.train.presets.paper import PAPER

PRESETS: dict[str, TrainConfig] = {"paper": PAPER, "demo": DEMO, "compact": COMPACT}

__all__ = ["PRESETS"]
