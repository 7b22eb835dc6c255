"""Runs tests/cuda/emulated/ and tests/contract/ in processes that hold the emulated library, not the CUDA one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from compiled import needs_cxx

FOLDERS = (Path(__file__).parent / "emulated", Path(__file__).parents[1] / "contract")
FILES = [path for folder in FOLDERS for path in sorted(folder.glob("test_*.py"))]
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@needs_cxx
@pytest.mark.parametrize("compiled", [("real", "emulated")], indirect=True)
@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_kernels_equal_the_formulas(path: Path, compiled: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", str(path)]
    environment = {**os.environ, "SCSCO_CUDA_EMULATION": "1"}
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"{run.stdout[-6000:]}\n{run.stderr[-2000:]}"
