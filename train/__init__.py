"""Training: `train(config)` runs a `TrainConfig` into a run folder; `PRESETS` holds the named ones.

To read it: `config` (the settings), `engine` (from the settings to the loop), `decision` (what is due after a step),
`step` (one step: forward, backward, update) with its `parts` and `schedules`, and `build` (model, loss, optimizer).
These are the training. `samples` and `loader` say which pictures a step sees, `run_folder` and `checkpoint` what is
written and how a run is resumed, `failures` what may go wrong, `processes` how several processes train as one.

`train` is imported when it is first used: the settings and their help need no torch.
"""

from typing import TYPE_CHECKING, Any

from scsco_fast.train.config import TrainConfig
from scsco_fast.train.presets import PRESETS

if TYPE_CHECKING:
    from scsco_fast.train.engine import train

__all__ = ["PRESETS", "TrainConfig", "train"]


def __getattr__(name: str) -> Any:
    if name != "train":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from scsco_fast.train import engine

    globals()["train"] = engine.train  # the next use finds it without this function
    return engine.train


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
