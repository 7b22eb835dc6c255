"""What a stage consists of: items that are measured one by one or several at once, and what they compile before."""

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from scsco_fast.benchmarks.gpu_pass.plan import Plan

Record = dict[str, Any]  # one line of a stage's file


@dataclass(frozen=True)
class Item:
    """One thing to find out.

    Attributes:
        name: unique within its stage; what is in the file under this name is not measured again.
        seconds: its process is killed if it takes longer.
        measure: yields records, each of which is saved at once; one with "passed": False makes the item wrong.
        warm: what compiles kernels. All of a phase are run before its first item, by many processes at once.
    """

    name: str
    seconds: float
    measure: Callable[[], Iterable[Record]]
    warm: Sequence[Callable[[], object]] = ()


@dataclass(frozen=True)
class Phase:
    """Items that are measured after those of the phase before; with `together`, by many processes at once."""

    items: Sequence[Item]
    together: bool = False


def phases_of(stage: str, plan: Plan) -> list[Phase]:
    """The phases of a stage, whose module has its name."""
    module = importlib.import_module(f"scsco_fast.benchmarks.gpu_pass.{stage}")
    found: list[Phase] = module.phases(plan)
    names = [item.name for phase in found for item in phase.items]
    assert len(names) == len(set(names)), "two items of one name"
    return found
