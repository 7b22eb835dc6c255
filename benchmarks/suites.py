"""The suites of `scsco bench`: which cases, on which shapes, and the run that appends their rows.

python -m scsco_fast.benchmarks --suite cpu --output DIR     # the same without the command line's packages
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from scsco_fast.benchmarks import end_to_end, operations, rows
from scsco_fast.benchmarks.measure import Session, describe, measure
from scsco_fast.benchmarks.operations import Case
from scsco_fast.benchmarks.rows import Row
from scsco_fast.benchmarks.timing import measure_ceiling
from scsco_fast.errors import ScscoError
from scsco_fast.ops._transfer_color import TRANSFERS
from scsco_fast.train.memory import kept_memory

SUITES = ("smoke", "cpu", "gpu", "full")
Map = tuple[int, int]  # size, channels


@dataclass(frozen=True)
class Plan:
    """Shapes of a suite; an empty tuple leaves that part out."""

    device: str
    dtype: torch.dtype
    batch: int
    maps: Sequence[Map]  # attention and norm, with 20 % foreground
    outputs: Sequence[Map]  # of these maps: where BAIN's output is measured too
    compiled: Sequence[Map]  # of these maps: where compiled baselines run too
    pixels: tuple[int, Sequence[int]]  # channels, sizes: the attention against the number of pixels
    pixels_batch: int
    ratios: tuple[Map, Sequence[float]]  # the attention against the foreground ratio
    features: Sequence[Map]  # of VGG-16, for the style loss
    colors: int  # size of the pictures
    inference: end_to_end.Inference
    training: end_to_end.Training | None
    seconds: float  # for the turns of one mode of one case
    minutes: float  # no case starts later


FOREGROUND = 0.2
RATIOS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.5)
CPU = Plan(
    device="cpu",
    dtype=torch.float32,
    batch=1,
    maps=((32, 256), (64, 128), (128, 64), (256, 64)),
    outputs=((32, 256), (64, 128)),
    compiled=((64, 128),),
    pixels=(32, (32, 64, 128, 256)),
    pixels_batch=1,
    ratios=((64, 64), RATIOS),
    features=((128, 128), (64, 256), (32, 512)),
    colors=256,
    inference=end_to_end.Inference(base_channels=16, levels=7, batch=1, sizes=(128, 256, 384), compiled=False),
    training=end_to_end.Training(batch=1, rounds=3),
    seconds=0.6,
    minutes=15.0,
)
GPU = Plan(
    device="cuda",
    dtype=torch.bfloat16,
    batch=16,
    maps=((64, 128), (128, 64), (32, 256), (256, 64)),
    outputs=((64, 128), (128, 64), (32, 256), (256, 64)),
    compiled=((64, 128), (128, 64)),
    pixels=(64, (32, 64, 128, 256, 512)),
    pixels_batch=4,
    ratios=((128, 64), RATIOS),
    features=((256, 64), (128, 128), (64, 256), (32, 512)),
    colors=256,
    inference=end_to_end.Inference(base_channels=64, levels=8, batch=1, sizes=(256, 512, 1024), compiled=True),
    training=end_to_end.Training(batch=16, rounds=7),
    seconds=0.2,
    minutes=9.0,
)


def plan_of(suite: str) -> Plan:
    """The shapes of a suite.

    Raises:
        ScscoError: it needs a GPU and there is none.
    """
    has_gpu = torch.cuda.is_available()
    if suite == "gpu" and not has_gpu:
        raise ScscoError("the gpu suite needs a CUDA device and there is none; --suite cpu and smoke run here")
    if suite == "cpu" or (suite == "full" and not has_gpu):
        full = replace(CPU, compiled=CPU.maps[:2], seconds=3.0, minutes=60.0, training=end_to_end.Training(4, 7))
        return full if suite == "full" else CPU
    if suite == "smoke":
        return replace(
            CPU,
            maps=((8, 16),),
            outputs=((8, 16),),
            compiled=(),
            pixels=(8, (8, 16)),
            ratios=((8, 8), (0.1, 0.5)),
            features=((8, 16),),
            colors=16,
            inference=end_to_end.Inference(base_channels=4, levels=5, batch=1, sizes=(32,), compiled=False),
            training=None,
            seconds=0.02,
        )
    return GPU if suite == "gpu" else replace(GPU, compiled=GPU.maps, seconds=1.0, minutes=60.0)


def cases(plan: Plan) -> Iterator[Callable[[], Sequence[Case]]]:
    """The most important first: what runs out of time is left out."""
    where: tuple[Any, ...] = (plan.device, plan.dtype, plan.batch)

    def one(function: Callable[..., Case], *arguments: Any, **options: Any) -> Callable[[], Sequence[Case]]:
        return lambda: [function(*arguments, **options)]

    style_loss: Callable[..., Sequence[Case]] = partial(operations.style_loss, *where)
    for size, channels in plan.maps:
        is_compiled = (size, channels) in plan.compiled
        attention = partial(operations.bain_attention, libraries=True, compile=is_compiled)
        yield one(attention, *where, channels, size, FOREGROUND)
        if (size, channels) in plan.outputs:
            yield one(operations.bain_norm, *where, channels, size, FOREGROUND)
        yield one(operations.region_norm, *where, channels, size, FOREGROUND)
    for size, channels in plan.features:
        yield partial(style_loss, channels, size)
    for method in TRANSFERS:
        yield one(operations.transfer_color, plan.device, plan.batch, plan.colors, FOREGROUND, method)
    growing = partial(operations.bain_attention, both_only=True)
    (size, channels), ratios = plan.ratios
    for foreground in ratios:
        yield one(growing, *where, channels, size, foreground)
    channels, sizes = plan.pixels
    for size in sizes:
        yield one(growing, plan.device, plan.dtype, plan.pixels_batch, channels, size, FOREGROUND)


def run(suite: str, output: Path, minutes: float | None = None, say: Callable[[str], None] = print) -> list[Row]:
    """Measure a suite and append its rows to output/SUITE.csv and .jsonl, those of a case as soon as they are there.

    Args:
        minutes: cases that would start later are left out, and counted; None: the suite's own limit.

    Raises:
        ScscoError: the suite cannot run here, or the files cannot be written.
    """
    plan, path = plan_of(suite), output / f"{suite}.csv"
    begun = time.monotonic()
    dtypes = sorted({plan.dtype, torch.float32}, key=str)
    ceilings = partial(measure_ceiling, plan.device, dtypes, quick=suite == "smoke")
    ceiling = ceilings()
    rates = ", ".join(f"{rate / 1e12:.2f} TFLOP/s in {str(dtype)[6:]}" for dtype, rate in ceiling.matmul.items())
    where = {"suite": suite, **rows.machine(plan.device)}
    say(f"{where['device']}, torch {where['torch']}: copies {ceiling.copy / 1e9:.1f} GB/s, multiplies {rates}")
    session = Session(where, ceilings, plan.seconds)
    deadline = begun + 60 * (plan.minutes if minutes is None else minutes)
    done: list[Row] = []
    left_out = 0

    def keep(found: Sequence[Row]) -> None:
        rows.append(found, path)
        done.extend(found)
        for row in found:
            say(describe(row))

    parts: list[Callable[[], Sequence[Row]]] = [partial(measure_all, make, session) for make in cases(plan)]
    parts.insert(min(4, len(parts)), partial(end_to_end.inference, plan.inference, plan.device, session))
    if plan.training is not None:
        parts.append(partial(end_to_end.training, plan.training, plan.device, where))
    # Else a turn begins with the page faults for what the turn before gave back, another variant's.
    with kept_memory() if plan.device == "cpu" else nullcontext():
        for part in parts:
            if time.monotonic() > deadline:
                left_out += 1
                continue
            keep(part())
    wrong = sum(row.note.startswith(("wrong", "failed")) for row in done)
    say(f"{len(done)} rows in {path}, {wrong} without a time, {left_out} cases left out for time")
    say(f"{time.monotonic() - begun:.0f} s")
    return done


def measure_all(make: Callable[[], Sequence[Case]], session: Session) -> list[Row]:
    return [row for case in make() for row in measure(case, session)]
