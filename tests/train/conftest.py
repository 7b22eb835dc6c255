"""Tiny runs in a temporary folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import SETTINGS, Pictures

from scsco_fast.train.config import TrainConfig


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., TrainConfig]:
    """A configuration of a run of seconds; keyword arguments replace its fields."""

    def build(**changes: Any) -> TrainConfig:
        return TrainConfig(**{**SETTINGS, "output": str(tmp_path / "run"), **changes})

    return build


@pytest.fixture
def pictures() -> type[Pictures]:
    return Pictures
