"""Hardware counters of single kernels, read by Nsight Compute (ncu): what a kernel that is too slow waits for.

    python -m scsco_fast.benchmarks.gpu_pass.profile [--rehearse]

is what ncu watches: a forward and backward of each operation by Triton, between the marks of CUDA's profiler.
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
from scsco_fast.benchmarks.timing import Work

MODULE = "scsco_fast.benchmarks.gpu_pass.profile"
SECONDS, MARGIN = 80.0, 10.0  # ncu is interrupted this long before its item's deadline, so that its report is kept
OPERATIONS = ("bain_attention", "region_norm")
# What bounds a kernel: rates of the units beside their peaks, the pipes' use, caches, what warps wait for, occupancy.
SECTIONS = (
    *("SpeedOfLight", "ComputeWorkloadAnalysis", "MemoryWorkloadAnalysis", "WarpStateStats"),
    *("SchedulerStats", "LaunchStats", "Occupancy"),
)
NOT_COUNTERS = frozenset(
    ("ID", "Process ID", "Process Name", "Host Name", "Kernel Name", "Context", "Stream", "Device", "CC")
)
LINES = 40  # of a report without its table


def phases(plan: Plan) -> list[Phase]:
    """One run of ncu, as starting it takes longest; the kernels are compiled before."""
    warm = [partial(launch, plan, name) for name in OPERATIONS]
    return [Phase([Item("ncu", SECONDS, partial(profiled, plan), warm)])]


def profiled(plan: Plan) -> Iterator[Record]:
    """The counters of each kernel that the operations launch; a rehearsal runs the program alone."""
    program = [sys.executable, "-m", MODULE]
    seconds = SECONDS * plan.scale - MARGIN
    if plan.rehearsing:
        code, report = tools.run([*program, "--rehearse"], seconds, {})
        yield {"note": "there is no GPU to profile", "passed": code == 0, "report": report[-LINES:]}
        return
    tool = tools.find("ncu")
    if tool is None:
        yield {"note": "ncu is not there"}
        return
    table = plan.cache / "ncu.csv"
    table.unlink(missing_ok=True)
    code, report = tools.run([tool, *options(table), *program], seconds, {})
    lines = table.read_text(errors="replace").splitlines() if table.exists() else []
    kernels = list(counters(lines))
    yield from kernels
    if code != 0 or not kernels:
        said = [line for line in lines if not line.startswith('"')]  # ncu's own words, which are in the table's file
        yield {"exit code": code, "report": [*report[-LINES:], *said[-LINES:]]}
        raise RuntimeError(f"ncu ended with {code} and {len(kernels)} kernels")


def options(table: Path) -> list[str]:
    """Of ncu: our kernels between the profiler's marks, as a table. The clocks stay as they are."""
    sections = [argument for section in SECTIONS for argument in ("--section", section)]
    which = ["--profile-from-start", "off", "--kernel-name", f"regex:^({'|'.join(OPERATIONS)})_"]
    return ["--csv", "--page", "raw", "--log-file", str(table), "--clock-control", "none", *which, *sections]


def counters(lines: Sequence[str]) -> Iterator[Record]:
    """Name and counters of each kernel of ncu's table, which has a line of names, one of units, and one a launch."""
    rows = list(csv.reader(line for line in lines if line.startswith('"')))
    names = next((row for row in rows if row[0] == "ID"), [])
    table = [row for row in rows if len(row) == len(names)]
    for values in table[2:]:
        found = {n: f"{value} {unit}".strip() for n, unit, value in zip(names, table[1], values, strict=True) if value}
        yield {"kernel": found["Kernel Name"], "counters": {n: v for n, v in found.items() if n not in NOT_COUNTERS}}


def launch(plan: Plan, name: str) -> None:
    """A forward and backward of an operation, after one that compiles and loads what it needs."""
    size, channels = plan.profiled
    where = (plan.device, speed.dtype_of(plan), plan.batch, channels, size, plan.ratios[0])
    with operations.emulated_backends():
        case = getattr(operations, name)(*where)
    variant = {variant.name: variant for variant in case.variants}["triton"]
    work = Work(variant.function, [variant.inputs(0)], "forward+backward")
    work.run(0)
    on_gpu = plan.device == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
    work.run(0)
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("--rehearse", action="store_true", help="small shapes on the CPU")
    plan = plan_of(Path(), Path(), parser.parse_args().rehearse)
    for name in OPERATIONS:
        launch(plan, name)


if __name__ == "__main__":
    main()
