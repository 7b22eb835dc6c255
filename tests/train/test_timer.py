"""Where the time of the steps goes."""

from collections.abc import Iterator

import pytest
import torch

from scsco_fast.train import timer as module
from scsco_fast.train.timer import PHASES, StepTimer


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the clock shows, to be moved by hand."""
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return now


def test_phases_are_means_per_step(clock: list[float]) -> None:
    timer = StepTimer(torch.device("cpu"))
    for seconds in (0.1, 0.3):
        timer.start()
        for phase in ("forward", "backward", "optimizer"):
            clock[0] += seconds
            timer.mark(phase)
        timer.end_step()
        clock[0] += 5  # between two steps
    found = timer.read()
    assert list(found) == list(PHASES)
    assert found == pytest.approx({"data": 0, "forward": 200, "backward": 200, "optimizer": 200})
    assert timer.read() == dict.fromkeys(PHASES, 0)


def test_waiting_for_batches_is_the_time_of_the_data(clock: list[float]) -> None:
    def batches() -> Iterator[int]:
        for number in range(2):
            clock[0] += 0.25
            yield number

    timer = StepTimer(torch.device("cpu"))
    for _ in timer.waiting(batches()):
        timer.start()
        clock[0] += 7
        timer.end_step()
    assert timer.read()["data"] == pytest.approx(250)


def test_marks_of_a_capture_do_not_count(clock: list[float]) -> None:
    """Whatever it marked inside, a captured pass is one phase, up to the mark after it."""
    timer = StepTimer(torch.device("cpu"))
    timer.start()
    with timer.paused():
        clock[0] += 1
        timer.mark("backward")
    clock[0] += 1
    timer.mark("forward")
    timer.end_step()
    assert timer.read() == pytest.approx({"data": 0, "forward": 2000, "backward": 0, "optimizer": 0})
