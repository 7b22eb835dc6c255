"""Worker processes for decoding files that nobody vouches for: one that dies, or hangs, costs its own file only."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from scsco_fast.errors import ScscoError

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")

TIME_LIMIT = 120.0  # seconds; the largest pictures of iHarmony4, 6048x6048, take less than one


@dataclass(frozen=True)
class Lost:
    """Instead of a result: the process died, or was ended because it took too long; `reason` says which."""

    reason: str


def default_workers() -> int:
    """One process per core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


MOST_LOADERS = 8  # of one training process; each holds two batches, and all hand them over through one thread


def loader_workers(device: str, sharing: int = 1) -> int:
    """Processes that make the samples of one training process, where their number is left open.

    On a GPU one per core, shared with the other training processes of the machine, 1 to `MOST_LOADERS`. On a CPU one:
    the network has all cores, so what a second makes it takes from the network (the demo on two cores: 73 images/s
    with none, 71 with one and 68 with two).

    Args:
        device: "cpu" or another, where the network is.
        sharing: training processes on this machine.

    Examples:
        >>> loader_workers("cpu")
        1
    """
    return 1 if device == "cpu" else min(max(default_workers() // sharing, 1), MOST_LOADERS)


def run_tasks(
    function: Callable[[TaskT], ResultT], tasks: Iterable[TaskT], workers: int, time_limit: float = TIME_LIMIT
) -> Generator[tuple[TaskT, ResultT | Lost], None, None]:
    """`(task, function(task))` for each task, in the order in which they are done.

    A task whose process dies or needs more than `time_limit` seconds has a `Lost` for its result; a fresh process goes
    on with the next. The processes end when the generator is closed and when this process dies, however it does.
    Tasks are taken from the iterable as processes become free.

    Args:
        function: importable by name; it should not raise, what it raises ends its process.
        tasks: anything that can be pickled.
        workers: processes; 0 calls the function here, in order, without a time limit.
        time_limit: seconds per task.

    Examples:
        >>> list(run_tasks(abs, [-1, 2], workers=0))
        [(-1, 1), (2, 2)]
    """
    if workers == 0:
        yield from ((task, function(task)) for task in tasks)
        return
    context = _server(function.__module__)
    remaining = iter(tasks)
    busy: dict[Connection, _Worker[TaskT]] = {}
    idle: list[_Worker[TaskT]] = []
    try:
        while True:
            while len(busy) < workers:
                try:
                    task = next(remaining)
                except StopIteration:
                    break
                worker = idle.pop() if idle else _Worker[TaskT](context, function)
                worker.start(task, time_limit)
                busy[worker.connection] = worker
            if not busy:
                return
            for connection, outcome in _wait(busy, time_limit):
                worker = busy.pop(connection)
                if isinstance(outcome, Lost):
                    worker.end()
                else:
                    idle.append(worker)
                yield worker.task, outcome
    finally:
        for worker in (*busy.values(), *idle):
            worker.end()


def _server(module: str) -> Any:
    """A context whose processes come from a server that has imported the module: torch once, for all its children.

    Not fork: the parent may hold threads and locks by now. Ctrl-C reaches the whole group, and would end the server
    with a traceback while it imports; so SIGINT is blocked for it and its children, and the parent answers for all.
    """
    from multiprocessing import forkserver, resource_tracker

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, module])
    resource_tracker.ensure_running()  # the server would start it, and unblock SIGINT after that
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


@contextmanager
def interrupted_afterwards() -> Iterator[None]:
    """Ctrl-C in the block takes effect at its end: for forks, in whose handlers Python prints an error and drops it."""
    before = signal.getsignal(signal.SIGINT)
    if before is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    noted: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: noted.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if noted:
        signal.raise_signal(signal.SIGINT)


def ignore_interrupts(worker: int) -> None:
    """For a `DataLoader`'s `worker_init_fn`: Ctrl-C reaches the whole group; the parent answers for all."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Worker(Generic[TaskT]):
    """A process, our end of its pipe, and the task that it has."""

    task: TaskT

    def __init__(self, context: Any, function: Callable[[TaskT], Any]) -> None:
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(function, theirs), daemon=True)
        self.process.start()
        theirs.close()  # else the pipe would not end with the process
        try:
            self.connection.recv()  # it is ready: the seconds that imports take are not the task's
        except (EOFError, OSError) as error:
            raise ScscoError("a worker process ended before it began; try --workers 0") from error
        self.deadline = 0.0

    def start(self, task: TaskT, time_limit: float) -> None:
        self.task, self.deadline = task, time.monotonic() + time_limit
        with suppress(OSError):  # the process is gone already; the wait for its answer says so
            self.connection.send(task)

    def end(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()


def _wait(busy: dict[Connection, _Worker[TaskT]], time_limit: float) -> Iterator[tuple[Connection, Any]]:
    """Answers of the processes that are done, died, or are overdue; at least one."""
    now, first = time.monotonic(), min(worker.deadline for worker in busy.values())
    ready = wait(list(busy), max(0.0, first - now))
    for connection in ready:
        assert isinstance(connection, Connection)
        try:
            yield connection, connection.recv()
        except (EOFError, OSError):
            process = busy[connection].process
            process.join(5)
            yield connection, Lost(f"the process that decoded it died ({_how(process.exitcode)})")
    for connection in [connection for connection, worker in busy.items() if worker.deadline <= time.monotonic()]:
        yield connection, Lost(f"took longer than {time_limit:g} seconds to decode")


def _how(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return signal.Signals(-exit_code).name
    return f"exit code {exit_code}"


def _serve(function: Callable[[Any], Any], connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent answers for all
    with suppress(EOFError, OSError):  # the parent closed the pipe, or died
        connection.send("ready")
        while True:
            connection.send(function(connection.recv()))
