"""compute-sanitizer on one run of each kernel: no access out of bounds, no race in shared memory."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scsco_fast import cuda, kernels

pytestmark = pytest.mark.gpu
TOOL = shutil.which("compute-sanitizer")
PROGRAM = Path(__file__).with_name("every_kernel.py")


@pytest.mark.skipif(TOOL is None, reason="compute-sanitizer is not installed")
@pytest.mark.parametrize("check", ["memcheck", "racecheck"])
@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_sanitizer_finds_nothing(backend: str, check: str) -> None:
    reason = {"triton": kernels, "cuda": cuda}[backend].unavailable()
    if reason is not None:
        pytest.skip(reason)
    command = [str(TOOL), "--tool", check, "--error-exitcode", "9", sys.executable, str(PROGRAM), backend]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
