"""The process that measures items: told one by line on its standard input, it answers in lines of JSON on a pipe.

A kernel that hangs ends only with its process, and one that reads out of bounds leaves a process that can launch
nothing more. So items are measured in here, and runner.py replaces a process that hangs, dies or has lost its GPU.
"""

import gc
import json
import os
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

from scsco_fast.benchmarks.gpu_pass import tools

FRAMES, CHARACTERS = 4, 1500  # of a traceback that is saved


def main(stage: str, out: str, cache: str, rehearse: str, pipe: str) -> None:
    tools.end_with_parent()
    answers = os.fdopen(int(pipe), "w", buffering=1)

    def answer(kind: str, **fields: Any) -> None:
        answers.write(json.dumps({"kind": kind, **fields}, default=str) + "\n")

    import torch

    from scsco_fast.benchmarks.gpu_pass.items import phases_of
    from scsco_fast.benchmarks.gpu_pass.plan import plan_of

    warnings.filterwarnings("ignore", message="VGG-16 has RANDOM weights")
    plan = plan_of(Path(out), Path(cache), rehearse == "1")
    if not plan.rehearsing:
        torch.ones(1, device="cuda").sum().item()  # makes the context, which no item's deadline should pay for
    phases = phases_of(stage, plan)
    items = {item.name: item for phase in phases for item in phase.items}
    listed = [
        {"together": p.together, "items": [(i.name, i.seconds * plan.scale, len(i.warm)) for i in p.items]}
        for p in phases
    ]
    answer("ready", phases=listed)
    for line in sys.stdin:
        name, part = json.loads(line)
        start, status, failure = time.monotonic(), "done", {}
        try:
            if part is None:
                for record in items[name].measure():
                    status = "wrong" if record.get("passed") is False else status
                    answer("record", record=record)
            else:
                items[name].warm[part]()
        except Exception as error:
            status, failure = "failed", {"error": describe(error)}
        seconds = round(time.monotonic() - start, 2)
        try:
            tidy(plan.device)
        except Exception as error:
            # A kernel's error can show only here. It is this item's: the next is handed out after the answer.
            status, failure = "failed", failure or {"error": describe(error)}
        usable = status != "failed" or plan.rehearsing or device_works()
        answer("end", status=status, seconds=seconds, usable=usable, **failure)
        if not usable:
            return


def describe(error: BaseException) -> str:
    """The message and the last lines that led to it."""
    text = "".join(traceback.format_exception(error)[-FRAMES:])
    return text if len(text) <= CHARACTERS else f"{text[: CHARACTERS // 2]}\n...\n{text[-CHARACTERS // 2 :]}"


def device_works() -> bool:
    """Whether this process can still launch kernels: after an illegal access it cannot."""
    import torch

    try:
        torch.cuda.synchronize()
        return torch.ones(8, device="cuda").sum().item() == 8
    except Exception:
        return False


def tidy(device: str) -> None:
    """Wait for what an item launched, and give its memory back."""
    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main(*sys.argv[1:])
