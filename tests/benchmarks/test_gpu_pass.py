"""The GPU pass, rehearsed: a stage that fails, hangs, dies or is killed loses an item at most, with few packages."""

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

import numpy
import triton

from scsco_fast.benchmarks import rows
from scsco_fast.benchmarks.gpu_pass import STAGES, look
from scsco_fast.benchmarks.gpu_pass.collect import collect
from scsco_fast.benchmarks.gpu_pass.journal import LOG_BYTES, Journal, code_digest, read, trim
from scsco_fast.benchmarks.gpu_pass.plan import plan_of
from scsco_fast.cuda import build

ROOT = Path(__file__).resolve().parents[2]
PASS = ROOT / "benchmarks/gpu_pass"
# The stage `look`, but with items of this test's own.
STAND_IN = """
import dataclasses
import gc
import os
import signal
import time
from functools import partial

from scsco_fast.benchmarks.gpu_pass.items import Item, Phase
from scsco_fast.benchmarks.gpu_pass.journal import LOG_BYTES


def fine(plan):
    text = (plan.out / "look.jsonl").read_text()
    yield {"failure was in the file": "no such thing" in text}


def wrong(plan):
    yield {"passed": False}


def fails(plan):
    yield {"value": 1}
    raise ValueError("no such thing")


def hangs(plan):
    yield {"value": 1}
    time.sleep(600)


def dies(plan):
    os.kill(os.getpid(), signal.SIGSEGV)
    yield {}


def slow(plan, index):
    yield {"process": os.getpid()}
    if index == 3 and not (plan.cache / "go on").exists():
        time.sleep(600)


class Late:
    def __init__(self):
        self.itself = self  # so that only the collector frees it

    def __del__(self):
        time.sleep(0.5)  # time enough to be given the next item
        os.kill(os.getpid(), signal.SIGSEGV)


def dies_late(plan):
    Late()
    yield {}


def fails_late(plan):
    def collect():
        gc.collect = kept
        raise RuntimeError("an illegal memory access was encountered")

    kept, gc.collect = gc.collect, collect
    yield {}


def innocent(plan):
    yield {}


def prints(plan):
    log, deadline = plan.out / "log.txt", time.monotonic() + 30
    print("x" * LOG_BYTES + "end", flush=True)
    seen = largest = log.stat().st_size
    while seen > LOG_BYTES + 1000 and time.monotonic() < deadline:
        time.sleep(0.1)
        seen = log.stat().st_size
    yield {"largest": largest, "then": seen}


def phases(plan):
    if os.environ["STAND_IN"] == "broken":
        raise RuntimeError("no GPU is to be seen")
    if os.environ["STAND_IN"] == "slow":
        return [Phase([Item(f"slow {index}", 60.0, partial(slow, plan, index)) for index in range(8)])]
    if os.environ["STAND_IN"] == "late":
        functions = {"dies": dies_late, "after it": innocent, "fails": fails_late, "then": innocent, "prints": prints}
        return [Phase([Item(name, 40.0, partial(function, plan)) for name, function in functions.items()])]
    warm = [partial(time.sleep, 600)]
    odd = [fails, hangs, dies, wrong]
    items = [Item(function.__name__, 0.5, partial(function, plan)) for function in odd]
    items.append(Item("warm hangs", 0.5, partial(fine, plan), warm))
    return [Phase(items), Phase([Item(f"fine {index}", 60.0, partial(fine, plan)) for index in range(4)], True)]
"""
Start = Callable[..., "subprocess.Popen[str]"]
# In place of Python: notes where it runs, with what, and how; STAND_IN says what a stage does.
FAKE = """#!/usr/bin/env bash
[ "$1" = -m ] || exec {python} "$@"
for name in PWD PYTHONPATH SCSCO_CACHE_DIR TRITON_CACHE_DIR 0; do echo "$name=${{!name}}"; done >>{notes}
echo "arguments=$*" >>{notes}
eval "${{STAND_IN:-}}"
"""


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Starts the stage `look` of a package in which a stand-in has its place."""
    package = tmp_path / "tree/scsco_fast"
    stages = package / "benchmarks/gpu_pass"
    stages.mkdir(parents=True)
    link = [(ROOT / "scsco_fast", package), (ROOT / "benchmarks", package / "benchmarks"), (PASS, stages)]
    for source, target in link:
        for path in source.iterdir():
            if path.name not in ("gpu_pass", "look.py", "__pycache__"):
                (target / path.name).symlink_to(path)
    for room in ("kernels", "train"):
        (package / room).symlink_to(ROOT / room)
    (stages / "look.py").write_text(STAND_IN)
    options = ["--seconds", "120", "--cache", str(tmp_path / "cache"), "--rehearse"]
    command = [sys.executable, "-m", "scsco_fast.benchmarks.gpu_pass", str(tmp_path / "out"), "look", *options]

    def begin(what: str, *more: str) -> "subprocess.Popen[str]":
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "tree"), "STAND_IN": what}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen([*command, *more], env=environment, cwd=tmp_path, text=True, **pipes)

    return begin


def ends(records: list[dict[str, Any]]) -> dict[str, str]:
    """How each item ended, by the last line about it."""
    return {record["item"]: record["status"] for record in records if record["status"] not in ("record", "left out")}


@pytest.mark.slow
def test_items_that_fail_hang_or_die_are_written_and_the_others_are_measured(start: Start, tmp_path: Path) -> None:
    process = start("misbehaving")
    text = process.communicate(timeout=180)[0]
    records = read(tmp_path / "out/look.jsonl")
    wanted = {"fails": "failed", "hangs": "timeout", "dies": "died", "wrong": "wrong", "warm hangs": "done"}
    assert ends(records) == wanted | {f"fine {index}": "done" for index in range(4)}, text
    assert process.returncode == 1
    failure = next(record for record in records if record["status"] == "failed")
    assert "ValueError: no such thing" in failure["error"]
    assert "SIGSEGV" in next(record["error"] for record in records if record["status"] == "died")
    assert [record["item"] for record in records if record["status"] == "compilation timeout"] == ["warm hangs"]
    seen = [record["failure was in the file"] for record in records if "failure was in the file" in record]
    assert seen == [True] * 5
    # What is finished is not measured again, what failed is.
    again = start("misbehaving")
    assert "3 items, 6 were done before" in again.communicate(timeout=180)[0]


@pytest.mark.slow
def test_an_error_that_shows_late_is_its_own_items_and_the_log_stays_small(start: Start, tmp_path: Path) -> None:
    process = start("late")
    text = process.communicate(timeout=180)[0]
    records = read(tmp_path / "out/look.jsonl")
    wanted = {"dies": "died", "after it": "done", "fails": "failed", "then": "done", "prints": "done"}
    assert ends(records) == wanted, text
    failure = next(record for record in records if record["status"] == "failed")
    assert "illegal memory access" in failure["error"]
    sizes = next(record for record in records if "largest" in record)
    assert sizes["then"] <= LOG_BYTES + 1000 < sizes["largest"] + 1000


@pytest.mark.slow
def test_a_stage_whose_processes_do_not_start_is_a_failure(start: Start, tmp_path: Path) -> None:
    process = start("broken")
    text = process.communicate(timeout=180)[0]
    assert process.returncode == 1
    assert "RuntimeError: no GPU is to be seen" in text
    (record,) = read(tmp_path / "out/look.jsonl")
    assert record["status"] == "left out"
    assert "before they were ready" in record["reason"]
    assert record["log"][-1] == "RuntimeError: no GPU is to be seen"


@pytest.mark.slow
def test_names_that_match_nothing_are_a_failure(start: Start, tmp_path: Path) -> None:
    process = start("slow", "--only", "no such item")
    lines = process.communicate(timeout=120)[0].splitlines()
    assert process.returncode == 1
    assert len(lines) == 1
    assert "no item has a name in which --only 'no such item' is found" in lines[0]
    process = start("slow", "--only", "a(b")
    lines = process.communicate(timeout=60)[0].splitlines()
    assert process.returncode == 2
    assert len(lines) == 1
    assert "is no regular expression" in lines[0]


@pytest.mark.slow
def test_the_stages_time_begins_when_a_process_is_ready(start: Start, tmp_path: Path) -> None:
    """Importing torch takes longer than this stage has; what holds for all of it ends it."""
    process = start("slow", "--seconds", "1", "--only", "slow [01]")
    assert "2 done" in process.communicate(timeout=120)[0]
    process = start("slow", "--seconds", "60", "--within", "0.1")
    assert "no process was ready in time" in process.communicate(timeout=60)[0]
    assert process.returncode == 1


@pytest.mark.slow
def test_a_killed_stage_loses_one_item(start: Start, tmp_path: Path) -> None:
    process, path = start("slow"), tmp_path / "out/look.jsonl"
    deadline = time.monotonic() + 120
    while not any(record.get("item") == "slow 3" for record in read(path)) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = read(path)
    assert ends(before) == {f"slow {index}": "done" for index in range(3)}
    measuring = {record["process"] for record in before if record["status"] == "record"}
    deadline = time.monotonic() + 30
    while any(is_running(pid) for pid in measuring) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_running(pid) for pid in measuring)  # nothing stays on the GPU, though its item would have
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/go on").touch()
    # The folder is emptied, and the files that were taken away are put back.
    (tmp_path / "out").rename(tmp_path / "earlier")
    (tmp_path / "out").mkdir()
    shutil.copy(tmp_path / "earlier/look.jsonl", path)
    again = start("slow")
    assert "5 items, 3 were done before" in again.communicate(timeout=120)[0]
    assert again.returncode == 0
    finished = [record["item"] for record in read(path) if record["status"] == "done"]
    assert sorted(finished) == [f"slow {index}" for index in range(8)]


def is_running(pid: int) -> bool:
    """A process that nobody waited for yet has no command line any more."""
    file = Path(f"/proc/{pid}/cmdline")
    return file.exists() and bool(file.read_bytes())


def test_a_line_that_was_cut_off_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "look.jsonl"
    Journal(path, code="a").append({"item": "one", "status": "done"})
    with path.open("a") as file:
        file.write('{"item": "two", "sta')
    journal = Journal(path, code="a")
    journal.append({"item": "three", "status": "wrong"})
    assert journal.finished() == {"one", "three"}
    assert Journal(path, code="b").finished() == set()
    assert len(read(path)) == 2


def test_a_long_log_keeps_its_end(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("x" * 1000 + "end")
    trim(path, 100)
    assert path.stat().st_size < 200
    assert path.read_text().endswith("end")


def test_code_digest_is_the_sources_alone(tmp_path: Path) -> None:
    assert re.fullmatch("[0-9a-f]{12}", code_digest())
    assert code_digest() == code_digest()


def test_wrong_arguments_say_what_is_wanted() -> None:
    for arguments in ([], ["out"], ["out", "nonsense"]):
        run = subprocess.run([ROOT / "benchmarks/gpu_pass.sh", *arguments], capture_output=True, text=True, check=False)
        assert run.returncode == 2
        assert "usage: benchmarks/gpu_pass.sh" in run.stderr


class Shell:
    """Calls gpu_pass.sh in a folder of its own, with a stand-in for Python that notes how it is called."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.notes = folder, folder / "notes.txt"
        fake = folder / "fake"
        fake.write_text(FAKE.format(python=sys.executable, notes=self.notes))
        fake.chmod(0o755)
        (folder / "linked").symlink_to(fake)

    def start(self, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
        environment = {**os.environ, "PYTHON": "./linked", "SCSCO_PASS_CACHE": "cache", **variables}
        command = [str(ROOT / "benchmarks/gpu_pass.sh"), *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, env=environment, cwd=self.folder, text=True, **pipes)

    def run(self, *arguments: str, **variables: str) -> tuple[int, str]:
        process = self.start(*arguments, **variables)
        text = process.communicate(timeout=60)[0]
        return process.returncode, text

    def noted(self, name: str) -> list[str]:
        """What the stand-in saw, call by call."""
        lines = self.notes.read_text().splitlines() if self.notes.exists() else []
        return [line.partition("=")[2] for line in lines if line.startswith(f"{name}=")]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def test_relative_paths_are_of_the_callers_folder(shell: Shell, tmp_path: Path) -> None:
    code, text = shell.run("out", "look", PYTHONPATH="other triton:/absolute", SCSCO_CACHE_DIR="carried")
    assert code == 0, text
    tree, *others = shell.noted("PYTHONPATH")[0].split(":")
    assert others == [f"{tmp_path}/other triton", "/absolute"]
    assert shell.noted("SCSCO_CACHE_DIR") == [f"{tmp_path}/carried"]
    assert shell.noted("TRITON_CACHE_DIR") == [f"{tmp_path}/cache/triton"]
    # A link that is followed would lead out of a virtual environment.
    assert shell.noted("0") == [f"{tmp_path}/./linked"]
    assert shell.noted("PWD") == [tree]


def test_the_tree_of_links_outlives_the_shell(shell: Shell, tmp_path: Path) -> None:
    """The build of the CUDA library goes on in it; and what is no longer in the checkout leaves it."""
    assert shell.run("out", "look")[0] == 0
    tree = Path(shell.noted("PWD")[0])
    assert tree.parent == tmp_path / "cache"
    kernels, stale = tree / "scsco_fast/kernels", tree / "scsco_fast/stale.py"
    assert kernels.readlink() == ROOT / "kernels"
    made = kernels.lstat().st_mtime_ns
    stale.symlink_to(ROOT / "scsco_fast/stale.py")
    (tree / "scsco_fast/train").unlink()
    (tree / "scsco_fast/train").symlink_to(tmp_path)
    assert shell.run("out", "look")[0] == 0
    assert kernels.lstat().st_mtime_ns == made  # another pass may be using it
    assert not stale.is_symlink()
    assert (tree / "scsco_fast/train").readlink() == ROOT / "train"
    assert shell.run("--rehearse", "out", "look")[0] == 0
    assert not (tree / "sitecustomize.py").exists()


def test_the_library_is_built_in_a_folder_that_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[dict[str, Any]] = []
    monkeypatch.setattr(look.subprocess, "Popen", lambda command, **options: begun.append(options))
    monkeypatch.setattr("scsco_fast.cuda.library.find", lambda target: None)
    (record,) = look.start_build(plan_of(tmp_path / "out", tmp_path, rehearse=True))
    assert "has begun" in record["library"]
    assert begun[0]["cwd"] == tmp_path
    assert begun[0]["start_new_session"]


def test_what_a_call_may_take_is_kept(shell: Shell, tmp_path: Path) -> None:
    code, text = shell.run("out", "train", "tune", SCSCO_PASS_SECONDS="15")
    assert code == 1
    assert re.search("train: left out, 1[345] s are left of SCSCO_PASS_SECONDS=15", text)
    assert "tune: left out" in (tmp_path / "out/log.txt").read_text()
    assert not shell.noted("arguments")
    assert shell.run("out", "train", "look", SCSCO_PASS_SECONDS="180")[0] == 0
    train, glance = (arguments.split(" --within ")[1].split()[0] for arguments in shell.noted("arguments"))
    assert 160 <= int(train) <= 170
    assert glance == "120"
    code, text = shell.run("out", "look", SCSCO_PASS_SECONDS="ten")
    assert code == 2
    assert text.count("\n") == 1


@pytest.mark.slow
def test_a_stage_that_does_not_end_is_killed_in_the_calls_time(shell: Shell) -> None:
    begun = time.monotonic()
    hangs = "trap '' TERM; while :; do sleep 1; done"
    code, text = shell.run("out", "look", "tune", STAND_IN=hangs, SCSCO_PASS_SECONDS="22")
    assert code == 1
    assert len(shell.noted("arguments")) == 1
    assert "tune: left out" in text
    assert time.monotonic() - begun < 26


def test_wrong_arguments_of_a_stage_end_the_pass(shell: Shell) -> None:
    assert shell.run("out", "look", "tune", STAND_IN="exit 2")[0] == 2
    assert len(shell.noted("arguments")) == 1
    assert shell.run("out", "look", "tune", STAND_IN="exit 1")[0] == 1
    assert len(shell.noted("arguments")) == 3


def test_two_passes_at_once_have_two_folders(shell: Shell) -> None:
    process = shell.start("out", "look", STAND_IN="until [ -e ../../go ]; do sleep 0.1; done")
    deadline = time.monotonic() + 30
    while not shell.noted("arguments") and time.monotonic() < deadline:
        time.sleep(0.05)
    code, text = shell.run("./out", "tune")
    assert code == 2
    assert text.count("\n") == 1
    assert "another pass is writing to" in text
    assert shell.run("other", "tune")[0] == 0
    (shell.folder / "go").touch()
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert shell.run("out", "tune")[0] == 0


def test_a_python_that_is_not_there_is_named(shell: Shell) -> None:
    code, text = shell.run("out", "look", PYTHON="./none")
    assert code == 2
    assert "./none cannot run" in text


@pytest.mark.slow
def test_the_tests_are_run_from_the_tree_of_links(shell: Shell, tmp_path: Path) -> None:
    code, text = shell.run("out", "pytest", "--", "-k", "no_such_test", PYTHON=sys.executable)
    assert code == 1, text  # pytest's 5: none was chosen
    assert " deselected" in text
    assert "error" not in text.splitlines()[-1]
    assert " deselected" in (tmp_path / "out/log.txt").read_text()
    assert shell.run("out", "look", "pytest")[0] == 2


# A few items of each stage; `build` of the stage cuda takes a minute where no library is in the cache.
SHORT = (
    r"machine|doctor|^transfer_color gaussian$|^region_norm float32 9x9|^cross_gram float32 equal bits|graph.*float32$"
    r"|5%: SDPA$|^region_norm 8x8 C=16: triton|half 64 64 fwd|^ours$|^ncu$|^memcheck triton"
)


@pytest.mark.slow
@pytest.mark.skipif(
    triton.__version__.startswith("3.6.") and numpy.lib.NumpyVersion(numpy.__version__) >= "2.4.0",
    reason="the interpreter of Triton 3.6 needs numpy older than 2.4",
)
def test_rehearsal(tmp_path: Path) -> None:
    """Every stage, some of its items, without the packages that the pass must not need."""
    out = tmp_path / "out"
    environment = {**os.environ, "PYTHON": sys.executable, "SCSCO_PASS_CACHE": str(tmp_path / "cache")}
    environment |= {"SCSCO_CACHE_DIR": str(build.cache_folder())}
    command = [ROOT / "benchmarks/gpu_pass.sh", "--rehearse", out, *STAGES, "--", "--only", SHORT]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    log = (out / "log.txt").read_text()
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:] + log[-2000:]
    files = sorted(path.name for path in out.iterdir())
    assert files == sorted([*(f"{stage}.jsonl" for stage in STAGES), "bain_attention_table.txt", "log.txt"])
    for stage in STAGES:
        found = ends(read(out / f"{stage}.jsonl"))
        assert found, stage
        assert set(found.values()) == {"done"}, found
    measured = [record["row"] for record in read(out / "speed.jsonl") if "row" in record]
    assert {row["backend"] for row in measured} == {"SDPA", "triton"}
    assert all(row["ms"] for row in measured)
    table = (out / "bain_attention_table.txt").read_text().splitlines()
    assert [line.split()[:5] for line in table if " timed " in line] == [["80", "half", "64", "64", "timed"]]


def test_rehearsal_blocks_packages(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").symlink_to(PASS / "blocker.py")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "SCSCO_UNIMPORTABLE": "rich json"}
    for name, code in (("json", 1), ("csv", 0)):
        run = subprocess.run(
            [sys.executable, "-c", f"import {name}"], env=environment, capture_output=True, check=False
        )
        assert run.returncode == code, run.stderr


def test_rows_of_a_gpu_are_collected_the_last_of_each_case(tmp_path: Path) -> None:
    where = {**rows.machine("cpu"), "suite": "gpu_pass"}
    shape = {"mode": "forward", "dtype": "bfloat16", "batch": 16, "channels": 64, "size": 32, "foreground": 0.2}
    row = rows.Row(**where, **shape, op="bain_attention", backend="triton", ms=1.0)
    for stage, device, ms in (("speed", "cuda", 1.0), ("speed", "cuda", 2.0), ("cuda", "cpu", 3.0)):
        journal = Journal(tmp_path / f"{stage}.jsonl", device=device)
        journal.append({"item": "one", "status": "record", "row": dataclasses.asdict(row) | {"ms": ms}})
        journal.append({"item": "one", "status": "done"})
    assert collect(tmp_path) == [dataclasses.replace(row, ms=2.0)]


def test_items_that_need_a_library_fail_at_once_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that failed is not tried again by each of them; Triton's items need none."""
    from scsco_fast.benchmarks.gpu_pass import cuda as stage
    from scsco_fast.cuda import library

    plan = plan_of(tmp_path, tmp_path, rehearse=True)
    monkeypatch.setattr(library, "load", lambda _: (_ for _ in ()).throw(RuntimeError("nvcc is not there")))
    monkeypatch.setattr(library, "find", lambda _: None)
    (build, *_), *others = (phase.items for phase in stage.phases(plan))
    with pytest.raises(RuntimeError, match="nvcc is not there"):
        list(build.measure())
    named = {item.name: item for items in others for item in items}
    first = next(name for name in named if name.endswith(": cuda"))
    needed = (first, "memcheck cuda", "racecheck cuda", "initcheck cuda", "synccheck cuda")
    for name in needed:
        with pytest.raises(RuntimeError, match="no CUDA library: nvcc is not there"):
            list(named[name].measure())
    stage.missing_library(plan).unlink()
    for name in needed:  # the build is written down as done, by another machine
        with pytest.raises(RuntimeError, match="no CUDA library: none was built on this machine, take another OUT"):
            list(named[name].measure())
    assert list(named["memcheck triton"].measure())
    monkeypatch.setattr(library, "load", lambda _: tmp_path)
    monkeypatch.setattr(library, "describe", lambda: "")
    assert list(build.measure())
    monkeypatch.setattr(library, "find", lambda _: tmp_path)
    assert list(named["memcheck cuda"].measure()), "there is no GPU to check"
    assert not stage.missing_library(plan).exists()
