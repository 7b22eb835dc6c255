"""A trace of a few training steps, and the operations that they spend their time in."""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from scsco_fast.train.checkpoint import write_durably

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
        self.order = f"self_{device.type}_time_total"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        active = min(ACTIVE, steps)
        self.profiler = profile(
            activities=activities,
            schedule=schedule(wait=0, warmup=min(WARM_UP, steps - active), active=active, repeat=1),
            on_trace_ready=self._write,
        )
        self.profiler.start()

    def step(self) -> None:
        """A step of the training is done."""
        self.profiler.step()

    def close(self) -> None:
        self.profiler.stop()

    def _write(self, profiler: profile) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(self.folder / "trace.json"))
        table = profiler.key_averages().table(sort_by=self.order, row_limit=ROWS, max_name_column_width=60)
        write_durably(self.folder / "operations.txt", lambda file: file.write(f"{table}\n".encode()))
