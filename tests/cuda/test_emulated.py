"""Runs tests/cuda/emulated/ in processes of their own: a process holds either the emulated library or the CUDA one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from compiled import needs_cxx

FILES = sorted((Path(__file__).parent / "emulated").glob("test_*.py"))


@pytest.mark.slow
@needs_cxx
@pytest.mark.parametrize("compiled", [("real", "emulated")], indirect=True)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_kernels_equal_the_formulas(path: Path, compiled: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", str(path)]
    environment = {**os.environ, "SCSCO_CUDA_EMULATION": "1"}
    run = subprocess.run(command, env=environment, cwd=path.parents[3], capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"{run.stdout[-6000:]}\n{run.stderr[-2000:]}"
