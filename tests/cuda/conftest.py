"""Libraries built once, and the emulated tests collected only where the emulation was asked for."""

import os
from pathlib import Path

import pytest
from compiled import missing, plan_of

from scsco_fast.cuda import build

collect_ignore = [] if os.environ.get("SCSCO_CUDA_EMULATION") == "1" else ["emulated"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SCSCO_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def compiled(request: pytest.FixtureRequest) -> Path:
    """The library of the parameter (which, target), in the user's cache: compiled the first time anybody asks."""
    which, target = request.param
    if reason := missing(target):
        pytest.skip(f"compiles the {target} library: {reason}")
    return build.build(plan_of(which, target))
