"""Runs the items of a stage in processes of their own, with a deadline for each, and saves what they answer at once."""

import json
import math
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from scsco_fast.benchmarks.gpu_pass.journal import Journal, trim

START_SECONDS = 90.0  # torch is imported and a context is made; gpu_pass.sh's start_limit
END_SECONDS = 5.0  # a killed process may take
STARTS = 4  # processes that may end before they are ready
LOOK_SECONDS = 1.0  # between looks at the log's size
LINES = 20  # of the log, where no process was ready
UNMATCHED = "unmatched"  # the status of a stage of which no item is wanted
Say = Callable[[str], None]


class Job(NamedTuple):
    """One item to be measured (part None), or one of what it compiles."""

    item: str
    part: int | None
    seconds: float


@dataclass
class Worker:
    """A process, the job it has, and until when it may take."""

    process: "subprocess.Popen[str]"
    answers: int
    until: float
    job: Job | None = None
    ready: bool = False
    unread: bytes = b""
    lines: deque[dict[str, Any]] = field(default_factory=deque)


@dataclass
class Settings:
    """What the processes of a stage are started with."""

    stage: str
    out: Path
    cache: Path
    rehearse: bool
    log: Path
    processes: int  # at most, where many measure or compile at once


class Runner:
    """One stage.

    Its `seconds` begin when the first process is ready: importing torch is not the items' fault. `within` is for all.
    """

    def __init__(
        self, settings: Settings, journal: Journal, seconds: float, say: Say, within: float = math.inf
    ) -> None:
        self.settings, self.journal, self.say, self.seconds = settings, journal, say, seconds
        self.last = time.monotonic() + within
        self.end = min(self.last, time.monotonic() + START_SECONDS + LOOK_SECONDS)
        self.workers: list[Worker] = []
        self.selector = selectors.DefaultSelector()
        self.statuses: Counter[str] = Counter()
        self.ended: set[str] = set()
        self.failed_starts = 0
        self.phases: list[dict[str, Any]] = []

    def run(self, wanted: Callable[[str], bool]) -> Counter[str]:
        """Measure the items whose name is wanted; how many ended how."""
        try:
            self._list()
            names = [name for phase in self.phases for name, _, _ in phase["items"] if wanted(name)]
            if not self.phases:
                self._never_ready()
            elif not names:
                self.statuses[UNMATCHED] += 1
            else:
                self._measure(names)
        finally:
            for worker in list(self.workers):
                self._end(worker)
        return self.statuses

    def _measure(self, names: Sequence[str]) -> None:
        """The items of these names that are not finished."""
        done = self.journal.finished()
        left = [name for name in names if name not in done]
        self.say(f"{self.settings.stage}: {len(left)} items, {len(names) - len(left)} were done before")
        for phase in self.phases:
            self._phase(phase, set(left))
        missing = [name for name in left if name not in self.ended]
        if missing:
            self.statuses["left out"] += len(missing)
            self.journal.append({"status": "left out", "items": missing, "reason": self._why_left_out()})

    def _why_left_out(self) -> str:
        if self.failed_starts >= STARTS:
            return f"{STARTS} processes ended before they were ready; log.txt says why"
        return "the stage's time was over"

    def _never_ready(self) -> None:
        """Nobody could name the items: without a GPU, for example. That is a failure; the log has its reason."""
        reason = self._why_left_out() if self.failed_starts >= STARTS else "no process was ready in time"
        lines = self.settings.log.read_text(errors="replace").splitlines()[-LINES:]
        self.statuses["left out"] += 1
        self.journal.append({"status": "left out", "items": "all", "reason": reason, "log": lines})
        self.say(f"{self.settings.stage}: left out, {reason}: " + (lines[-1][:200] if lines else "the log is empty"))

    # --- phases -------------------------------------------------------------------------------------------------------

    def _list(self) -> None:
        """Start all processes: each knows the items, and the first that is ready names them."""
        while not self.phases and self._may_go_on():
            while len(self.workers) < self.settings.processes:
                self._start()
            self._wait()
            for worker in list(self.workers):
                self._look_at(worker)
        self.end = min(self.last, time.monotonic() + self.seconds)

    def _phase(self, phase: dict[str, Any], left: Collection[str]) -> None:
        items = [item for item in phase["items"] if item[0] in left]
        warm = [Job(name, part, seconds) for name, seconds, parts in items for part in range(parts)]
        if warm:
            start = time.monotonic()
            self._work(warm, min(len(warm), self.settings.processes))
            self.say(f"{len(warm)} compilations in {time.monotonic() - start:.0f} s")
        jobs = [Job(name, None, seconds) for name, seconds, _ in items]
        self._work(jobs, min(len(jobs), self.settings.processes) if phase["together"] else 1)

    def _work(self, jobs: Sequence[Job], processes: int) -> None:
        """All jobs, by this many processes; each takes the next job when it is free."""
        waiting = deque(jobs)
        for worker in self.workers[max(1, processes) :]:
            self._end(worker)
        while (waiting or any(worker.job for worker in self.workers)) and self._may_go_on():
            idle = sum(worker.job is None for worker in self.workers)
            if len(self.workers) < processes and idle < len(waiting):
                self._start()
                continue
            for worker in self.workers:
                if worker.ready and worker.job is None and waiting and self._give(worker, waiting[0]):
                    waiting.popleft()
            self._wait()
            for worker in list(self.workers):
                self._look_at(worker)

    def _may_go_on(self) -> bool:
        return time.monotonic() < self.end and self.failed_starts < STARTS

    # --- processes ----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        s = self.settings
        reading, writing = os.pipe()
        module = "scsco_fast.benchmarks.gpu_pass.worker"
        arguments = [s.stage, str(s.out), str(s.cache), str(int(s.rehearse)), str(writing)]
        with s.log.open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-u", "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                text=True,
                pass_fds=[writing],
                start_new_session=True,  # its compilers are killed with it
            )
        os.close(writing)
        worker = Worker(process, reading, time.monotonic() + START_SECONDS)
        self.workers.append(worker)
        self.selector.register(reading, selectors.EVENT_READ, worker)

    def _give(self, worker: Worker, job: Job) -> bool:
        """Whether the process took it."""
        assert worker.process.stdin is not None
        try:
            worker.process.stdin.write(json.dumps([job.item, job.part]) + "\n")
            worker.process.stdin.flush()
        except OSError:  # it has died since; its pipe says so next
            return False
        worker.job, worker.until = job, time.monotonic() + job.seconds
        return True

    def _wait(self) -> None:
        """For an answer, the next deadline, the stage's end, or until the log may have grown too large."""
        trim(self.settings.log)
        soon = time.monotonic() + LOOK_SECONDS
        until = min([self.end, soon, *(worker.until for worker in self.workers if worker.job or not worker.ready)])
        for key, _ in self.selector.select(max(0.0, until - time.monotonic())):
            worker: Worker = key.data
            found = os.read(worker.answers, 2**20)
            if not found:
                self.selector.unregister(worker.answers)
                worker.lines.append({"kind": "gone"})
            *lines, worker.unread = (worker.unread + found).split(b"\n")
            worker.lines.extend(json.loads(line) for line in lines)

    def _look_at(self, worker: Worker) -> None:
        """Save what it has answered; end it where it hangs or cannot go on."""
        while worker.lines:
            line = worker.lines.popleft()
            if line["kind"] == "ready":
                worker.ready, self.phases = True, self.phases or line["phases"]
            elif line["kind"] == "record":
                assert worker.job is not None
                self.journal.append({"item": worker.job.item, "status": "record", **line["record"]})
            elif line["kind"] == "end":
                self._ended(worker, {key: value for key, value in line.items() if key not in ("kind", "usable")})
                if not line["usable"]:
                    self._end(worker)
                    return
            else:
                self._died(worker)
                return
        if (worker.job or not worker.ready) and time.monotonic() >= worker.until:
            if worker.job is None:
                self.failed_starts += 1
            else:
                seconds = worker.job.seconds
                self._ended(worker, {"status": "timeout", "error": f"killed after its {seconds:.0f} s"})
            self._end(worker)

    def _died(self, worker: Worker) -> None:
        code = exit_code(worker.process)
        if worker.job is None:
            self.failed_starts += not worker.ready
        else:
            name = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
            self._ended(worker, {"status": "died", "error": f"its process ended with {name}; log.txt may say why"})
        self._end(worker)

    def _ended(self, worker: Worker, fields: dict[str, Any]) -> None:
        job, worker.job = worker.job, None
        assert job is not None
        if job.part is not None:
            if fields["status"] == "done":
                return
            fields = {**fields, "status": f"compilation {fields['status']}", "part": job.part}
        else:
            self.ended.add(job.item)
            self.statuses[fields["status"]] += 1
        self.journal.append({"item": job.item, **fields})
        reason = fields.get("error", "").strip().splitlines()
        self.say(f"{fields['status']:<9} {job.item}" + (f": {reason[-1][:200]}" if reason else ""))

    def _end(self, worker: Worker) -> None:
        if worker in self.workers:
            self.workers.remove(worker)
        if worker.answers in self.selector.get_map():
            self.selector.unregister(worker.answers)
        with suppress(ProcessLookupError):
            os.killpg(worker.process.pid, signal.SIGKILL)
        exit_code(worker.process)
        os.close(worker.answers)
        if worker.process.stdin is not None:
            worker.process.stdin.close()


def exit_code(process: "subprocess.Popen[str]") -> int | None:
    """Of a process that ends; None if it does not: a driver can hold a killed one while its kernel hangs."""
    try:
        return process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        return None
