"""The GPU pass, rehearsed: a stage that fails, hangs, dies or is killed loses an item at most, with few packages."""

import dataclasses
import os
import re
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
from scsco_fast.benchmarks.gpu_pass import STAGES
from scsco_fast.benchmarks.gpu_pass.collect import collect
from scsco_fast.benchmarks.gpu_pass.journal import Journal, code_digest, read, trim
from scsco_fast.cuda import build

ROOT = Path(__file__).resolve().parents[2]
PASS = ROOT / "benchmarks/gpu_pass"
# The stage `look`, but with items of this test's own.
STAND_IN = """
import dataclasses
import os
import signal
import time
from functools import partial

from scsco_fast.benchmarks.gpu_pass.items import Item, Phase


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


def phases(plan):
    if os.environ["STAND_IN"] == "slow":
        return [Phase([Item(f"slow {index}", 60.0, partial(slow, plan, index)) for index in range(8)])]
    warm = [partial(time.sleep, 600)]
    odd = [fails, hangs, dies, wrong]
    items = [Item(function.__name__, 0.5, partial(function, plan)) for function in odd]
    items.append(Item("warm hangs", 0.5, partial(fine, plan), warm))
    return [Phase(items), Phase([Item(f"fine {index}", 60.0, partial(fine, plan)) for index in range(4)], True)]
"""
Start = Callable[[str], "subprocess.Popen[str]"]


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

    def begin(what: str) -> "subprocess.Popen[str]":
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "tree"), "STAND_IN": what}
        return subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True)

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


# A few items of each stage; `build` of the stage cuda takes a minute where no library is in the cache.
SHORT = (
    r"machine|doctor|^transfer_color gaussian$|^region_norm float32 9x9|^cross_gram float32 equal bits|graph.*float32$"
    r"|5%: SDPA$|^region_norm 8x8 C=16: triton|half 64 64 fwd|^ours$|^memcheck triton"
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
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "SCSCO_UNIMPORTABLE": "tyro json"}
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
