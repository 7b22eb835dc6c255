"""The compiled CUDA library: built, accurate, clean under compute-sanitizer, and timed beside Triton."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from scsco_fast.benchmarks import operations
from scsco_fast.benchmarks.gpu_pass import accuracy, speed, tools
from scsco_fast.benchmarks.gpu_pass.items import Item, Phase, Record
from scsco_fast.benchmarks.gpu_pass.plan import Plan

BUILD_SECONDS, CHECK_SECONDS = 150.0, 90.0
CHECK_MARGIN = 10.0  # a check is ended this long before its item's deadline, so that its report is kept
TOOL = "compute-sanitizer"
# All at once, the most telling first. Triton's kernels load columns that nobody wrote and nothing uses: no initcheck.
CHECKS = {"cuda": ("memcheck", "racecheck", "initcheck", "synccheck"), "triton": ("memcheck",)}
VARIANTS = ("cuda", "triton")
LINES = 40  # of a checker's report


def phases(plan: Plan) -> list[Phase]:
    build = Item("build", BUILD_SECONDS, partial(load, plan))
    checks = [
        Item(f"{check} {backend}", CHECK_SECONDS, partial(sanitized, plan, backend, check))
        for backend, names in CHECKS.items()
        for check in names
    ]
    accurate = [built_only(plan, item) for phase in accuracy.phases(plan, "cuda") for item in phase.items]
    timed = [built_only(plan, item) if item.name.endswith(": cuda") else item for item in times(plan)]
    checks = [item if item.name.endswith("triton") else built_only(plan, item) for item in checks]
    return [Phase([build]), Phase(accurate, together=True), Phase(checks, together=True), Phase(timed)]


def load(plan: Plan) -> Iterator[Record]:
    """The library that was carried along, or the one whose build `look` has begun, or one that is built now."""
    from scsco_fast.cuda import library

    missing_library(plan).write_text("its build was not finished")
    try:
        path = library.load(target())
    except Exception as problem:
        missing_library(plan).write_text(str(problem))
        raise
    missing_library(plan).unlink()
    yield {"library": str(path), "about": library.describe()}


def target() -> str:
    from scsco_fast import cuda

    return "emulated" if cuda.emulated() else "cuda"


def missing_library(plan: Plan) -> Path:
    """Says why there is no library: every process that needs it would try to build it again, one after the other."""
    return plan.cache / "no-cuda-library.txt"


def built_only(plan: Plan, item: Item) -> Item:
    """The same item, which fails at once where there is no library: no item's time is enough to build one.

    That is so where the build failed, and where it was done, and written down, on another machine than this.
    """

    def measure() -> Iterator[Record]:
        from scsco_fast.cuda import library

        if library.find(target()) is None:
            said, none = missing_library(plan), "none was built on this machine, take another OUT"
            raise RuntimeError(f"no CUDA library: {said.read_text() if said.exists() else none}")
        yield from item.measure()

    return replace(item, measure=measure)


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
    tool = tools.find(TOOL)
    program = Path(__file__).resolve().parents[2] / "tests/kernels/every_kernel.py"
    if tool is None or plan.rehearsing:
        yield {"note": f"{TOOL} is not there" if tool is None else "there is no GPU to check"}
        return
    command = [tool, "--tool", check, "--error-exitcode", "9", sys.executable, str(program), backend]
    code, report = tools.run(command, CHECK_SECONDS - CHECK_MARGIN, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
    if code == tools.OUT_OF_TIME:
        yield {"report": report[-LINES:]}
        raise TimeoutError(f"{check} was not done in time")  # which another call tries again
    yield {"exit code": code, "report": report[-LINES:], "passed": code == 0}
