"""Processes that die or hang cost their own task only, and none is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from misbehaving import act, process_id

from scsco_fast.data import workers as workers_module
from scsco_fast.data.workers import Lost, interrupted_afterwards, run_tasks


def test_results_come_with_their_tasks() -> None:
    assert dict(run_tasks(act, "abcdefghij", workers=2)) == {letter: letter.upper() for letter in "abcdefghij"}
    assert list(run_tasks(act, "ab", workers=0)) == [("a", "A"), ("b", "B")]
    assert list(run_tasks(act, "", workers=2)) == []


def test_a_process_that_dies_or_hangs_loses_its_own_task() -> None:
    tasks = ["a", "die", "b", "hang", "exit", "c", "d"]
    results = dict(run_tasks(act, tasks, workers=2, time_limit=1.5))
    assert {task: result for task, result in results.items() if not isinstance(result, Lost)} == {
        task: task.upper() for task in "abcd"
    }
    lost = {task: result.reason for task, result in results.items() if isinstance(result, Lost)}
    assert lost == {
        "die": "the process that decoded it died (SIGKILL)",
        "exit": "the process that decoded it died (exit code 7)",
        "hang": "took longer than 1.5 seconds to decode",
    }


def is_running(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def wait_until_gone(process: int) -> bool:
    for _ in range(300):
        if not is_running(process):
            return True
        time.sleep(0.05)
    return False


def test_closing_ends_the_processes() -> None:
    outcomes = run_tasks(process_id, [0.0, 0.0, 600.0, 600.0], workers=2)
    processes = [outcome for _, outcome in (next(outcomes), next(outcomes)) if isinstance(outcome, int)]
    outcomes.close()
    assert processes
    assert all(wait_until_gone(process) for process in processes)


PARENT = """
import os, sys
sys.path.insert(0, sys.argv[1])
from misbehaving import process_id
from scsco_fast.data.workers import run_tasks
if __name__ == "__main__":
    for task, process in run_tasks(process_id, [0.0, 0.0, 2.0, 2.0, 2.0], workers=2):
        print(process, flush=True)
"""


def test_processes_end_with_a_killed_parent(tmp_path: Path) -> None:
    program = tmp_path / "parent.py"
    program.write_text(PARENT)
    command = [sys.executable, str(program), str(Path(__file__).parent.parent)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    processes = [int(parent.stdout.readline()) for _ in range(2)]
    parent.kill()
    parent.wait()
    assert all(wait_until_gone(process) for process in processes)
    assert os.getpid() not in processes


def test_ctrl_c_within_the_block_comes_at_its_end() -> None:
    passed = []
    with pytest.raises(KeyboardInterrupt), interrupted_afterwards():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        passed.append(True)
    assert passed
    with interrupted_afterwards():
        pass


INTERRUPTED_PARENT = """
import sys
sys.path.insert(0, sys.argv[1])
from misbehaving import process_id
from scsco_fast.data.workers import run_tasks
if __name__ == "__main__":
    try:
        print(list(run_tasks(process_id, [0.0], workers=2)))
    except KeyboardInterrupt:
        print("interrupted")
"""
# Python runs a module of this name first, in every process that it starts.
INTERRUPT_THE_SERVER = """
import os, signal, sys
if "multiprocessing.forkserver" in " ".join(sys.orig_argv):
    os.killpg(0, signal.SIGINT)
"""


def test_ctrl_c_while_the_server_starts_is_the_parents_alone(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(INTERRUPT_THE_SERVER)
    program = tmp_path / "parent.py"
    program.write_text(INTERRUPTED_PARENT)
    command = [sys.executable, str(program), str(Path(__file__).parent.parent)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(
        command, capture_output=True, text=True, env=environment, start_new_session=True, timeout=60, check=False
    )
    assert (result.stdout, result.stderr, result.returncode) == ("interrupted\n", "", 0)


def test_loaders_are_one_on_a_cpu_and_share_the_cores_beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "default_workers", lambda: 6)
    assert workers_module.loader_workers("cpu") == 1
    assert [workers_module.loader_workers("cuda", sharing) for sharing in (1, 2, 4, 8)] == [6, 3, 1, 1]
    monkeypatch.setattr(workers_module, "default_workers", lambda: 96)
    assert workers_module.loader_workers("cuda") == workers_module.MOST_LOADERS
