"""From a case to its rows: the gate, the turns, the ceilings' shares. What is wrong gets no time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch

from scsco_fast.benchmarks.operations import Case, Count, Variant
from scsco_fast.benchmarks.rows import Row
from scsco_fast.benchmarks.timing import (
    Ceiling,
    Timing,
    Work,
    gradients_of,
    note_of,
    peak_mib,
    sets_that_fill_a_cache,
    take_turns,
)
from scsco_fast.benchmarks.truth import error, outputs_and_gradients

# Largest error of outputs relative to the largest value, and of gradients in the norm. A rounding to bfloat16 is
# 2^-9 = 2e-3 of a value, and a product of rounded operands errs by some of these; float32 is summed over up to 2^18
# pixels. One of 512 x 512 signs in gram_distances that rounding turns around moves a gradient by 2e-3.
GATE = {torch.float32: (1e-3, 1e-2), torch.bfloat16: (3e-2, 6e-2), torch.float16: (1e-2, 2e-2)}


@dataclass(frozen=True)
class Session:
    """What all rows of one run share: `where` are the row's fields of that group but the ceilings."""

    where: dict[str, Any]
    ceilings: Callable[[], Ceiling]  # measured anew before each case
    seconds: float  # for the turns of one mode of one case


def measure(case: Case, session: Session) -> list[Row]:
    """A row for each variant and mode."""
    return [row for rows in by_mode(case, session) for row in rows]


def by_mode(case: Case, session: Session) -> Iterator[list[Row]]:
    """The rows of one mode after the other, each as soon as it is measured."""
    ceiling = session.ceilings()
    shared = first_fields(case, session.where, ceiling)
    find_error = cache(partial(error_of, case))
    for mode, count in case.counts().items():
        works: dict[str, Work] = {}
        found: dict[str, Row] = {}
        for variant in case.variants:
            if variant.forward_only and mode != "forward":
                continue
            row = Row(**shared, backend=variant.name, mode=mode, note=variant.note)
            row = replace(row, flop=count.flop, nbytes=count.nbytes, gate=GATE[case.dtype][mode != "forward"])
            row = gated(row, partial(find_error, variant, mode != "forward"))
            if not row.note.startswith(("wrong", "failed")):
                row = filled(row, works, variant, mode)
            found[variant.name] = row
        for name, timing in take_turns(works, session.seconds).items():
            found[name] = timed(found[name], timing, count, ceiling)
        yield list(found.values())


def first_fields(case: Case, where: dict[str, Any], ceiling: Ceiling) -> dict[str, Any]:
    names = ("op", "batch", "channels", "size", "foreground", "detail")
    ceilings = {"copy_gbs": ceiling.copy / 1e9, "matmul_tflops": ceiling.matmul[case.dtype] / 1e12}
    return where | ceilings | {name: getattr(case, name) for name in names} | {"dtype": str(case.dtype)[6:]}


def error_of(case: Case, variant: Variant, backward: bool) -> float:
    """Against float64: of the outputs, and with `backward` of the gradients too."""
    outputs, gradients = variant.truth()
    if not backward:
        gradients = []
    seeds = gradients_of(outputs, case.dtype) if gradients else ()
    return error(outputs_and_gradients(variant.function, variant.inputs(0), seeds), (outputs, gradients))


def gated(row: Row, find_error: Callable[[], float]) -> Row:
    """The row with its error; a note that begins with "wrong" or "failed" where it must not be timed."""
    assert row.gate is not None
    try:
        wrong = find_error()
    except Exception as problem:
        return replace(row, note=reason(problem))
    if not wrong <= row.gate:
        wrong_or_none = None if wrong != wrong else wrong
        return replace(row, error=wrong_or_none, note=f"wrong: error {wrong:.1e}, allowed {row.gate:.0e}: not timed")
    return replace(row, error=wrong)


def filled(row: Row, works: dict[str, Work], variant: Variant, mode: str) -> Row:
    """The row with its peak memory; its work is added to those that take turns."""
    try:
        sets = [variant.inputs(seed) for seed in range(sets_that_fill_a_cache(variant.inputs(0)))]
        work = Work(variant.function, sets, mode)
        row = replace(row, peak_mib=peak_mib(work))
        works[variant.name] = work
    except Exception as problem:
        return replace(row, note=reason(problem))
    return row


def timed(row: Row, timing: Timing | Exception, count: Count, ceiling: Ceiling) -> Row:
    """The row with its times, rates, and share of the ceiling that the formula meets first."""
    if isinstance(timing, Exception):
        return replace(row, note=reason(timing))
    seconds = timing.ms / 1e3
    row = replace(row, ms=timing.ms, ms_20=timing.low, ms_80=timing.high, gbs=count.nbytes / seconds / 1e9)
    row = replace(row, note="; ".join(filter(None, (row.note, note_of(timing.events)))))
    least = {"memory": count.nbytes / ceiling.copy}
    if count.flop is not None:
        row = replace(row, tflops=count.flop / seconds / 1e12)
        least["compute"] = count.flop / ceiling.matmul[getattr(torch, row.dtype)]
    bound = max(least, key=lambda name: least[name])
    return replace(row, bound=bound, share=least[bound] / seconds)


def reason(problem: Exception) -> str:
    """In one line, for a row's note: out of memory, an unsupported shape, a library's refusal."""
    return f"failed: {type(problem).__name__}: {' '.join(str(problem).split())[:160]}"


def describe(row: Row) -> str:
    """The row in one line."""
    label = f"{row.op} {row.batch}x{row.channels}x{row.size}x{row.size} {row.detail}".strip()
    label = f"{label} fg={row.foreground:.0%} {row.backend} {row.mode}"
    if row.ms is None:
        return f"{label}: {row.note}"
    share = "" if row.share is None else f", {row.share:.1%} of the {row.bound} ceiling"
    note = f"; {row.note}" if row.note else ""
    return f"{label}: {row.ms:.3f} ms ({row.ms_20:.3f} to {row.ms_80:.3f}){share}{note}"
