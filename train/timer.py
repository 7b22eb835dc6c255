"""Where the time of the steps goes."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

T = TypeVar("T")
PHASES = ("data", "forward", "backward", "optimizer")


class StepTimer:
    """Adds up the time of each of `PHASES`. On a GPU it records CUDA events, which only `read` waits for.

    Examples:
        >>> timer = StepTimer(torch.device("cpu"))
        >>> timer.start()
        >>> timer.mark("forward")
        >>> timer.end_step()
        >>> sorted(timer.read())
        ['backward', 'data', 'forward', 'optimizer']
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: list[tuple[str, Any]] = []
        self._waited = 0.0
        self._steps = 0
        self._paused = False

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches; how long the host waits for each is the time of "data"."""
        since = time.perf_counter()
        for batch in batches:
            self._waited += time.perf_counter() - since
            yield batch
            since = time.perf_counter()

    def start(self) -> None:
        """A step begins on the device."""
        self.mark("")

    def mark(self, phase: str) -> None:
        """What was given to the device since the last mark belongs to `phase`."""
        if not self._paused:
            self._marks.append((phase, self._now()))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Marks within the block are ignored: an event recorded while a CUDA graph is captured would be the graph's."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def end_step(self) -> None:
        self._steps += 1

    def read(self) -> dict[str, float]:
        """Milliseconds per step of each phase since the last read; this waits for the device."""
        totals = dict.fromkeys(PHASES, 0.0)
        if self.device.type == "cuda" and self._marks:
            self._marks[-1][1].synchronize()
        for (_, before), (phase, after) in zip(self._marks, self._marks[1:], strict=False):
            if phase:
                totals[phase] += before.elapsed_time(after) if self.device.type == "cuda" else 1e3 * (after - before)
        totals["data"] = 1e3 * self._waited
        steps = max(self._steps, 1)
        self._marks, self._waited, self._steps = [], 0.0, 0
        return {phase: total / steps for phase, total in totals.items()}

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event
