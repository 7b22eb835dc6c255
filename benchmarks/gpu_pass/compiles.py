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
from scsco_fast.kernels.bain_attention import candidates
from scsco_fast.kernels.bain_attention import launch as bain_attention
from scsco_fast.kernels.cases import Case
from scsco_fast.kernels.resources import OPERATIONS, all_cases, measure, name

SM, CORES = 90, 16
PRECISIONS = {"half": 2, "tf32": 1, "ieee": 1}  # dtypes in the accuracy stage


class Compilation(NamedTuple):
    """One kernel of the list of a stage: which, and for how many dtypes of its width."""

    stage: str
    place: int
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
    others = [case for case in others if SM in case.architectures and launched(case, stage)]
    return [
        (case, copies)
        for kind, keys, channels, copies in lines(stage, plan)
        for case in bain_attention.cases_of(SM, kind, channels, keys)
        if "bf16" not in case.label  # it is among the copies
    ] + [(case, 1) for case in [*packing, *others]]


def launched(case: Case, stage: str) -> bool:
    """Whether a stage has maps of this case's kind: all dtypes and ragged maps in `accuracy`, bfloat16 elsewhere."""
    if stage == "accuracy":
        return "channels last" not in case.label
    fits = "bf16" in case.label or (case.kernel.__name__.startswith("transfer_color") and "fp32" in case.label)
    return fits and "ragged" not in case.label and "channels last" not in case.label


def lines(stage: str, plan: Plan) -> Iterator[tuple[str, int, int, int]]:
    """Kind, key channels and channels of the attention in a stage, and for how many dtypes."""
    if stage == "look":
        yield "half", *plan.norm[0][1:], 1
    elif stage == "accuracy":
        shapes = {shape[1:] for shape in (*plan.attention, *plan.norm)} | set(plan.counted[1])
        for kind, copies in PRECISIONS.items():
            yield from ((kind, keys, channels, copies) for keys, channels in sorted(shapes))
    elif stage in ("speed", "profile", "cuda"):
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
        for place, (case, copies) in enumerate(cases_of_stage(stage)):
            key = (name(case), case.num_warps, case.num_stages, *map(str, case.constexprs.items()))
            if key not in seen:
                seen.add(key)
                found.append(Compilation(stage, place, name(case), copies))
    return found


def compile_one(compilation: Compilation) -> float:
    """Seconds of processor time, of this process and of ptxas."""
    case, _ = cases_of_stage(compilation.stage)[compilation.place]
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
    print(f"Triton {triton.__version__}, sm_{SM}, {options.jobs} processes here")
    print(f"{'stage':<9} {'kernels':>7} {'processor s':>12} {'s here':>7} {f's on {CORES} cores':>14}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder  # an empty one: nothing is found in it
        with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
            for stage in options.stages:
                begun, own = time.monotonic(), [one for one in wanted if one.stage == stage]
                seconds = pool.map(compile_one, own, chunksize=1)
                total = sum(one.copies * spent for one, spent in zip(own, seconds, strict=True))
                count, here = sum(one.copies for one in own), time.monotonic() - begun
                print(f"{stage:<9} {count:7} {total:12.0f} {here:7.0f} {total / CORES:14.0f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
