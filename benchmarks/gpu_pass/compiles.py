"""How many Triton kernels each stage compiles on an H100, and what that costs: compiled here, for sm_90, without a GPU.

    python -m scsco_fast.benchmarks.gpu_pass.compiles [STAGE...] [--jobs 2]

Triton's cache stays on the machine for the next stage, so each kernel counts in the first stage that needs it. The list
is made of the cases of the resource gate at the pass's shapes; bfloat16 and float16 count as two, compiled once.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from scsco_fast.benchmarks.gpu_pass import STAGES
from scsco_fast.benchmarks.gpu_pass.plan import Plan, plan_of
from scsco_fast.kernels import bain_attention, candidates
from scsco_fast.kernels.resources import OPERATIONS, Case, all_cases, measure, name

SM, CORES = 90, 16
PRECISIONS = {"half": 2, "tf32": 1, "ieee": 1}  # dtypes in the accuracy stage


class Compilation(NamedTuple):
    """One kernel of the list of a stage: which, and for how many dtypes of its width."""

    stage: str
    index: int
    name: str
    copies: int


@cache
def cases_of_stage(stage: str) -> list[tuple[Case, int]]:
    """Cases of the resource gate, each with the number of dtypes it stands for."""
    plan = plan_of(Path(), Path(), rehearse=False)
    if stage == "tune":
        return [(case, 1) for case in tuned_cases(plan)]
    packing = [case for case in bain_attention.compile_cases() if " D=" not in case.label]
    others = all_cases(operation for operation in OPERATIONS if operation != "bain_attention")
    others = [case for case in others if SM in case.architectures and (case.core or stage == "accuracy")]
    return [
        (case, copies)
        for kind, keys, channels, copies in lines(stage, plan)
        for case in bain_attention.cases_of(SM, kind, channels, keys)
    ] + [(case, 1) for case in [*packing, *others]]


def lines(stage: str, plan: Plan) -> Iterator[tuple[str, int, int, int]]:
    """Kind, key channels and channels of the attention in a stage, and for how many dtypes."""
    if stage == "look":
        yield "half", *plan.norm[0][1:], 1
    elif stage == "accuracy":
        shapes = {shape[1:] for shape in (*plan.attention, *plan.norm)} | set(plan.counted[1])
        for kind, copies in PRECISIONS.items():
            yield from ((kind, keys, channels, copies) for keys, channels in sorted(shapes))
    elif stage in ("speed", "cuda"):
        yield from (("half", min(64, channels), channels, 1) for channels in sorted({c for _, c in plan.maps}))
    elif stage == "train":
        yield from (("half", 64, channels, 1) for channels in (64, 128, 256, 512))


def tuned_cases(plan: Plan) -> Iterator[Case]:
    for _, keys, channels in plan.tuned:
        key = (SM, "half", channels, keys)
        for kernel, configs in candidates.timed(key, candidates.read()).items():
            for config in configs:
                with candidates.as_line(key, kernel, config):
                    yield from bain_attention.cases_of(*key, names=(kernel,))


def compilations(stages: list[str]) -> list[Compilation]:
    """What is new in each stage."""
    seen: set[tuple[object, ...]] = set()
    found = []
    for stage in stages:
        for index, (case, copies) in enumerate(cases_of_stage(stage)):
            key = (name(case), case.num_warps, case.num_stages, *map(str, case.constexprs.items()))
            if key not in seen:
                seen.add(key)
                found.append(Compilation(stage, index, name(case), copies))
    return found


def compile_one(compilation: Compilation) -> float:
    """Seconds of processor time, of this process and of ptxas."""
    case, _ = cases_of_stage(compilation.stage)[compilation.index]
    before = os.times()
    measure(case, SM)
    after = os.times()
    return sum(after[:4]) - sum(before[:4])


def main() -> int:
    import triton

    parser = argparse.ArgumentParser(prog="python -m scsco_fast.benchmarks.gpu_pass.compiles", description=__doc__)
    parser.add_argument("stages", nargs="*", metavar="STAGE", default=list(STAGES))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    options = parser.parse_args()
    wanted = compilations(options.stages)
    seconds: dict[Compilation, float] = {}
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder  # an empty one: nothing is found in it
        with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
            seconds = dict(zip(wanted, pool.imap(compile_one, wanted), strict=True))
    print(f"Triton {triton.__version__}, sm_{SM}, {options.jobs} processes here: {time.monotonic() - begun:.0f} s")
    print(f"{'stage':<9} {'kernels':>7} {'processor s':>12} {f's on {CORES} cores':>14}")
    for stage in options.stages:
        own = [compilation for compilation in wanted if compilation.stage == stage]
        count = sum(compilation.copies for compilation in own)
        total = sum(compilation.copies * seconds[compilation] for compilation in own)
        print(f"{stage:<9} {count:7} {total:12.0f} {total / CORES:14.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
