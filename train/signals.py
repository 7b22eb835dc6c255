"""The signals that end a run: the step in hand is finished and a checkpoint is saved first."""

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """While open, the signals of `NUMBERS` only set `requested`; a second SIGINT is a KeyboardInterrupt."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self.requested = False
        self._say = say
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread set handlers
            self._previous = {number: signal.signal(number, self._handle) for number in NUMBERS}
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self.requested and kind is None:
            self._say("stopped by a signal after a checkpoint; continue with scsco train resume")


def ignore_signals(worker: int) -> None:
    """For a process that reads samples: a terminal and a scheduler signal it too, and the training process answers."""
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)
