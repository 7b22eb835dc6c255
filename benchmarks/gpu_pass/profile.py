"""Hardware counters of single kernels, read by Nsight Compute (ncu): what a kernel that is too slow waits for.

    python -m scsco_fast.benchmarks.gpu_pass.profile OUT CACHE OPERATION [--rehearse]

is what ncu watches: one forward and backward of an operation by Triton, between the marks of CUDA's profiler.
"""

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from scsco_fast.benchmarks import operations
from scsco_fast.benchmarks.gpu_pass import speed, tools
from scsco_fast.benchmarks.gpu_pass.items import Item, Phase, Record
from scsco_fast.benchmarks.gpu_pass.plan import Plan, plan_of

MODULE = "scsco_fast.benchmarks.gpu_pass.profile"
SECONDS, MARGIN = 60.0, 5.0  # of an item; ncu is ended this long before its deadline, so that its report is kept
OPERATIONS = ("bain_attention", "region_norm")
# What bounds a kernel: rates of the units beside their peaks, the pipes' use, caches, what warps wait for, occupancy.
SECTIONS = (
    *("SpeedOfLight", "ComputeWorkloadAnalysis", "MemoryWorkloadAnalysis", "WarpStateStats"),
    *("SchedulerStats", "LaunchStats", "Occupancy"),
)
NOT_METRICS = frozenset(
    ("ID", "Process ID", "Process Name", "Host Name", "Kernel Name", "Context", "Stream", "Device", "CC")
)
LINES = 20  # of a report without a kernel


def phases(plan: Plan) -> list[Phase]:
    """One after the other: two profilers cannot read the counters at once."""
    return [Phase([Item(f"ncu {name}", SECONDS, partial(profiled, plan, name)) for name in OPERATIONS])]


def profiled(plan: Plan, name: str) -> Iterator[Record]:
    """The counters of each kernel that the operation launches; a rehearsal runs the program alone."""
    program = [sys.executable, "-m", MODULE, str(plan.out), str(plan.cache), name]
    if plan.rehearsing:
        code, report = tools.run([*program, "--rehearse"], SECONDS * plan.scale - MARGIN, {})
        yield {"note": "there is no GPU to profile", "passed": code == 0, "report": report[-LINES:]}
        return
    tool = tools.find("ncu")
    if tool is None:
        yield {"note": "ncu is not there"}
        return
    code, report = tools.run([tool, *options(name), *program], SECONDS - MARGIN, {})
    kernels = list(counters(report))
    yield from kernels
    if code != 0 or not kernels:
        yield {"exit code": code, "report": report[-LINES:], "passed": False}


def options(name: str) -> list[str]:
    """Of ncu: our kernels between the profiler's marks, as a table. The clocks stay as they are."""
    sections = [argument for section in SECTIONS for argument in ("--section", section)]
    which = ["--profile-from-start", "off", "--kernel-name", f"regex:^{name}_"]
    return ["--csv", "--page", "raw", "--clock-control", "none", *which, *sections]


def counters(report: Sequence[str]) -> Iterator[Record]:
    """Name and counters of each kernel of ncu's table, which has a line of names, one of units, and one a launch."""
    table = csv.reader(line for line in report if line.startswith('"'))
    names, units = next(table, None), next(table, None)
    if names is None or units is None:
        return
    for values in table:
        found = dict(zip(names, values, strict=True))
        of = dict(zip(names, units, strict=True))
        metrics = {n: f"{value} {of[n]}".strip() for n, value in found.items() if value and n not in NOT_METRICS}
        yield {"kernel": found["Kernel Name"], "counters": metrics}


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("cache", type=Path)
    parser.add_argument("operation", choices=OPERATIONS)
    parser.add_argument("--rehearse", action="store_true")
    given = parser.parse_args()
    plan = plan_of(given.out, given.cache, given.rehearse)
    size, channels = plan.profiled
    where = (plan.device, speed.dtype_of(plan), plan.batch, channels, size, plan.ratios[0])
    make = partial(getattr(operations, given.operation), *where)
    speed.call(given.operation, make, "triton")  # what is compiled or loaded at the first call
    if plan.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
    speed.call(given.operation, make, "triton")
    if plan.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


if __name__ == "__main__":
    main()
