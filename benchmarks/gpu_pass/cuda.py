"""The compiled CUDA library: built, accurate, clean under compute-sanitizer, and timed beside Triton."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from scsco_fast.benchmarks import operations
from scsco_fast.benchmarks.gpu_pass import accuracy, speed
from scsco_fast.benchmarks.gpu_pass.items import Item, Phase, Record
from scsco_fast.benchmarks.gpu_pass.plan import Plan

BUILD_SECONDS, CHECK_SECONDS = 150.0, 90.0
TOOL = "compute-sanitizer"
CHECKS = {"cuda": ("memcheck", "synccheck"), "triton": ("memcheck",)}
VARIANTS = ("cuda", "triton")
LINES = 40  # of a checker's report


def phases(plan: Plan) -> list[Phase]:
    build = Item("build", BUILD_SECONDS, partial(load, plan))
    checks = [
        Item(f"{check} {backend}", CHECK_SECONDS, partial(sanitized, plan, backend, check))
        for backend, names in CHECKS.items()
        for check in names
    ]
    accurate = [item for phase in accuracy.phases(plan, "cuda") for item in phase.items]
    return [Phase([build]), Phase(accurate, together=True), Phase(list(times(plan))), Phase(checks, together=True)]


def load(plan: Plan) -> Iterator[Record]:
    """The library that was carried along, or the one whose build `look` has begun, or one that is built now."""
    from scsco_fast import cuda
    from scsco_fast.cuda import library

    path = library.load("emulated" if cuda.emulated() else "cuda")
    yield {"library": str(path), "about": library.describe()}


def times(plan: Plan) -> Iterator[Item]:
    """Both backends at the same maps, one after the other; Triton's kernels are compiled first."""
    where = (plan.device, speed.dtype_of(plan), plan.batch)
    for size, channels in plan.maps:
        make = partial(speed.attention_case, plan, size, channels, plan.ratios[0])
        yield from speed.variants(plan, f"bain_attention {size}x{size} C={channels}", make, VARIANTS)
        make = partial(operations.region_norm, *where, channels, size, plan.ratios[0])
        yield from speed.variants(plan, f"region_norm {size}x{size} C={channels}", make, VARIANTS)
    size, channels = plan.vgg[0]
    for index, name in enumerate(("masked_gram", "cross_gram", "gram_distances", "feature_distances")):
        make = partial(speed.style_case, plan, channels, size, index)
        yield from speed.variants(plan, f"{name} {size}x{size} C={channels}", make, VARIANTS)


def sanitized(plan: Plan, backend: str, check: str) -> Iterator[Record]:
    """One forward and backward of every operation under a checker.

    Torch's caching allocator hands out parts of large blocks, in which an access out of bounds is none: it is off.
    """
    tool, program = shutil.which(TOOL), Path(__file__).resolve().parents[2] / "tests/kernels/every_kernel.py"
    if tool is None or plan.rehearsing:
        yield {"note": f"{TOOL} is not there" if tool is None else "there is no GPU to check"}
        return
    command = [tool, "--tool", check, "--error-exitcode", "9", sys.executable, str(program), backend]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    report = (run.stdout + run.stderr).splitlines()
    yield {"exit code": run.returncode, "report": report[-LINES:], "passed": run.returncode == 0}
