"""A trace of a few training steps, and the operations that they spend their time in."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from scsco_fast.system.files import write_durably

WARM_UP, ACTIVE, ROWS = 3, 3, 10


class Profile:
    """Records `ACTIVE` steps after `WARM_UP` others; fewer where the run has fewer.

    Writes trace.json (for chrome://tracing or Perfetto) and operations.txt, the `ROWS` operations with the most time of
    their own: on the device where there is a GPU, else on the CPU.

    Args:
        folder: made when there is something to write.
        device: of the training.
        steps: how many steps the run has.
    """

    def __init__(self, folder: Path, device: torch.device, steps: int) -> None:
        self.folder = folder
        self.clock = "device" if device.type == "cuda" else "cpu"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        active = min(ACTIVE, steps)
        with warnings.catch_warnings(action="ignore"):  # that a run this short has no steps to warm up with
            plan = schedule(wait=0, warmup=min(WARM_UP, steps - active), active=active, repeat=1)
        self.profiler = profile(activities=activities, schedule=plan, on_trace_ready=self._write)
        self.profiler.start()

    def step(self) -> None:
        """A step of the training is done."""
        self.profiler.step()

    def close(self) -> None:
        self.profiler.stop()

    def _write(self, profiler: profile) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(self.folder / "trace.json"))
        text = operations_table(profiler.key_averages(), self.clock)
        write_durably(self.folder / "operations.txt", lambda file: file.write(text.encode()))


def operations_table(events: Iterable[Any], clock: str, rows: int = ROWS) -> str:
    """The operations with the most time of their own on the `clock`, "cpu" or "device"; one line each."""
    own = {event.key: (getattr(event, f"self_{clock}_time_total") / 1e3, event.count) for event in events}  # us -> ms
    own = {name: found for name, found in own.items() if not name.startswith("ProfilerStep")}
    total = sum(spent for spent, _ in own.values())
    lines = [f"{'share':>7} {'ms':>10} {'calls':>7}  operation, by its own time on the {clock}"]
    for name, (spent, calls) in sorted(own.items(), key=lambda item: -item[1][0])[:rows]:
        lines.append(f"{100 * spent / total if total else 0:6.1f}% {spent:10.2f} {calls:7}  {name}")
    return "\n".join(lines) + "\n"
