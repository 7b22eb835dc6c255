"""compute-sanitizer on one run of each kernel: no access out of bounds, no race in shared memory, no barrier that some
threads miss, no read of global memory that nobody wrote."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scsco_fast import cuda, kernels
from scsco_fast.benchmarks.gpu_pass import tools

TOOL = tools.find("compute-sanitizer")
PROGRAM = Path(__file__).with_name("every_kernel.py")
# The CUDA library packs the pixels of both regions into matrices whose other rows are neither written nor read, so
# that initcheck must find nothing. Triton's kernels load a query's whole row of moments, whose columns past the last
# channel nobody wrote and nothing uses: initcheck would report those.
CHECKS = {
    "cuda": ("memcheck", "racecheck", "initcheck", "synccheck"),
    "triton": ("memcheck", "racecheck", "synccheck"),
}


@pytest.mark.gpu
@pytest.mark.skipif(TOOL is None, reason="compute-sanitizer is not installed")
@pytest.mark.parametrize(("backend", "check"), [(name, check) for name, checks in CHECKS.items() for check in checks])
def test_sanitizer_finds_nothing(backend: str, check: str) -> None:
    reason = {"triton": kernels, "cuda": cuda}[backend].unavailable()
    if reason is not None:
        pytest.skip(reason)
    command = [str(TOOL), "--tool", check, "--error-exitcode", "9", sys.executable, str(PROGRAM), backend]
    # Torch's caching allocator hands out parts of large blocks, in which an access out of bounds is none.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]


def test_the_program_runs() -> None:
    """By a backend that a CPU has: what the sanitizer watches is worth nothing if it ends early."""
    run = subprocess.run([sys.executable, PROGRAM, "eager", "cpu"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
