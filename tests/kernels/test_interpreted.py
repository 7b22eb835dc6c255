"""Runs tests/kernels/interpreted/ and tests/contract/ where Triton is its own interpreter, chosen before its import."""

import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

triton = pytest.importorskip("triton")
FOLDERS = (Path(__file__).parent / "interpreted", Path(__file__).parents[1] / "contract")
FILES = [path for folder in FOLDERS for path in sorted(folder.glob("test_*.py"))]
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(
    triton.__version__.startswith("3.6.") and numpy.lib.NumpyVersion(numpy.__version__) >= "2.4.0",
    reason="the interpreter of Triton 3.6 needs numpy older than 2.4",
)
@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_kernels_equal_the_formulas(path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", str(path)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"{run.stdout[-6000:]}\n{run.stderr[-2000:]}"
