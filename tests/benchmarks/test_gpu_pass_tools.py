"""Programs that watch a stage's kernels: Nsight Compute's table is read, and nothing they start outlives its time."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from scsco_fast.benchmarks import operations
from scsco_fast.benchmarks.gpu_pass import cuda, profile, tools
from scsco_fast.benchmarks.gpu_pass.plan import Plan, plan_of
from scsco_fast.benchmarks.operations import Case, Count

# What Nsight Compute 2025.3 writes of two launches, with three of some hundred counters.
TABLE = """==PROF== Connected to process 31 (/usr/bin/python3.12)
==PROF== Profiling "bain_attention_fwd_kernel" - 0: 0%....50%....100% - 41 passes
==PROF== Disconnected from process 31
"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size","Device","CC",\
"gpu__time_duration.sum","launch__registers_per_thread","sm__throughput.avg.pct_of_peak_sustained_elapsed"
"","","","","","","","","","","","us","register/thread","%"
"0","31","python3.12","127.0.0.1","bain_attention_fwd_kernel","1","7","(128, 1, 1)","(208, 16, 1)","0","9.0",\
"1,234.5","168","61.25"
"a line","of another kind"
"1","31","python3.12","127.0.0.1","bain_attention_bwd_dq_kernel","1","7","(128, 1, 1)","(104, 16, 1)","0","9.0",\
"2,000.0","","40.5"
"""
PLACEHOLDER = "TABLE"
OPTIONS = [
    "--csv",
    "--page",
    "raw",
    "--log-file",
    PLACEHOLDER,
    "--clock-control",
    "none",
    "--profile-from-start",
    "off",
]
OPTIONS += ["--kernel-name", "regex:^(bain_attention|region_norm)_", "--section", "SpeedOfLight"]
OPTIONS += ["--section", "ComputeWorkloadAnalysis", "--section", "MemoryWorkloadAnalysis"]
OPTIONS += ["--section", "WarpStateStats", "--section", "SchedulerStats", "--section", "LaunchStats"]
OPTIONS += ["--section", "Occupancy"]


class Profiler:
    """The item `ncu` of a plan for a GPU, and a shell script in ncu's place: its arguments are kept."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.table, self.records = folder, folder / "ncu.csv", list[dict[str, Any]]()
        self.fake = folder / "ncu"
        monkeypatch.setattr(tools, "SEARCHED", str(folder))
        (phase,) = profile.phases(Plan("cuda", folder, folder))
        (self.item,) = phase.items
        assert not phase.together

    def run(self, text: str, then: str) -> None:
        (self.folder / "text").write_text(text)
        self.fake.write_text(
            f'#!/bin/sh\nprintf "%s\\n" "$@" >"{self.folder}/given"\n[ -s "{self.folder}/text" ] && '
            f'cp "{self.folder}/text" "{self.table}"\necho of the program\n{then}\n'
        )
        self.fake.chmod(0o755)
        self.records.clear()
        for record in self.item.measure():
            self.records.append(record)


@pytest.fixture
def profiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profiler:
    return Profiler(tmp_path, monkeypatch)


def test_counters_are_those_of_each_kernel(profiler: Profiler, tmp_path: Path) -> None:
    profiler.run(TABLE, "exit 0")
    first, second = profiler.records
    assert first == {
        "kernel": "bain_attention_fwd_kernel",
        "counters": {
            "Block Size": "(128, 1, 1)",
            "Grid Size": "(208, 16, 1)",
            "gpu__time_duration.sum": "1,234.5 us",
            "launch__registers_per_thread": "168 register/thread",
            "sm__throughput.avg.pct_of_peak_sustained_elapsed": "61.25 %",
        },
    }
    assert second["kernel"] == "bain_attention_bwd_dq_kernel"
    assert "launch__registers_per_thread" not in second["counters"]
    options = [str(profiler.table) if option == PLACEHOLDER else option for option in OPTIONS]
    program = [sys.executable, "-m", profile.MODULE]
    assert (tmp_path / "given").read_text().split("\n") == [*options, *program, ""]


@pytest.mark.parametrize(
    ("text", "then", "kernels", "said"),
    [
        ("==ERROR== ERR_NVGPUCTRPERM\n", "exit 1", 0, "==ERROR== ERR_NVGPUCTRPERM"),
        (TABLE, "echo Traceback; exit 1", 2, "Traceback"),
        ("", "exit 0", 0, "of the program"),
        (TABLE.partition('"","","')[0], "exit 0", 0, "==PROF== Disconnected from process 31"),
        (TABLE.partition('"0"')[0], "exit 0", 0, "==PROF== Disconnected from process 31"),
        ('"a lonely line"\n', "exit 0", 0, "of the program"),
    ],
)
def test_a_profiler_that_fails_or_sees_no_kernel_is_a_failure(
    profiler: Profiler, text: str, then: str, kernels: int, said: str
) -> None:
    profiler.table.write_text(TABLE)  # of an earlier call
    with pytest.raises(RuntimeError, match=rf"ncu ended with {then[-1]} and {kernels} kernels"):
        profiler.run(text, then)
    assert len(profiler.records) == kernels + 1
    assert said in profiler.records[-1]["report"]


def test_a_profiler_that_hangs_says_what_it_has(profiler: Profiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "SECONDS", profile.MARGIN + 1)
    late = profiler.folder / "late"
    late.write_text(TABLE)
    with pytest.raises(RuntimeError, match="ncu ended with out of time and 2 kernels"):
        profiler.run("", f"trap 'cp {late} {profiler.table}; exit 0' INT\nsleep 600 & wait")
    assert len(profiler.records) == 3


def test_without_a_profiler_a_note_says_so(profiler: Profiler) -> None:
    assert list(profiler.item.measure()) == [{"note": "ncu is not there"}]


def test_one_backward_is_between_the_marks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And what comes before it has run everything once."""
    seen: list[str] = []

    def function(x: torch.Tensor) -> torch.Tensor:
        seen.append("forward")
        y = x * 2
        if y.requires_grad:
            y.register_hook(lambda _: seen.append("backward"))
        return y

    variant = operations.Variant("triton", function, lambda _: [torch.ones(2, requires_grad=True)], lambda: ([], []))
    case = Case("region_norm", torch.float32, 1, 16, 8, 0.2, [variant], Count(None, 1.0), Count(None, 1.0))
    monkeypatch.setattr(operations, "region_norm", lambda *_: case)
    for name in ("start", "stop"):
        monkeypatch.setattr(torch.cuda.profiler, name, lambda named=name: seen.append(named))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: seen.append("wait"))
    profile.launch(dataclasses.replace(plan_of(tmp_path, tmp_path, rehearse=True), device="cuda"), "region_norm")
    once = ["forward", "backward"]
    assert seen == ["forward", *once, "wait", "start", *once, "wait", "stop"]
    monkeypatch.setattr(operations, "region_norm", lambda *_: dataclasses.replace(case, variants=[]))
    with pytest.raises(KeyError, match="triton"):
        profile.launch(plan_of(tmp_path, tmp_path, rehearse=True), "region_norm")


def test_a_check_that_is_out_of_time_is_not_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure is tried again by the next call; what is wrong stays wrong."""
    monkeypatch.setattr(tools, "find", lambda name: name)
    monkeypatch.setattr(tools, "run", lambda *_: (tools.OUT_OF_TIME, ["a line"]))
    check = cuda.sanitized(Plan("cuda", tmp_path, tmp_path), "triton", "memcheck")
    assert next(check) == {"report": ["a line"]}
    with pytest.raises(TimeoutError, match="memcheck was not done in time"):
        next(check)


def test_what_a_tool_has_started_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checker starts the program through another one; the program that is left would keep the GPU busy."""
    monkeypatch.setattr(tools, "END_SECONDS", 1.0)
    watched = "trap : INT; sleep 600 & echo $!; wait; wait"
    command = f"trap : INT; echo $NAMED; sh -c '{watched}' & wait; wait"
    code, lines = tools.run(["sh", "-c", command], 2.0, {"NAMED": "passed on"})
    assert code == tools.OUT_OF_TIME
    assert lines[0] == "passed on"
    assert ends(int(lines[1]))


def test_a_tool_ends_with_its_caller(tmp_path: Path) -> None:
    """However that ends: a stage that is killed can kill nothing itself."""
    code = "from scsco_fast.benchmarks.gpu_pass import tools\n"
    code += f"tools.run(['sh', '-c', 'echo $$ >{tmp_path}/pid; kill -9 $PPID; exec sleep 600'], 600.0, {{}})"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert ends(int((tmp_path / "pid").read_text()))


def ends(pid: int) -> bool:
    """Whether a process has ended or soon will; one whose end nobody has asked for yet has."""
    state, deadline = Path(f"/proc/{pid}/stat"), time.monotonic() + 30
    while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z":
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_what_a_tool_prints_and_returns_is_kept() -> None:
    assert tools.run(["sh", "-c", "echo out; echo err >&2; exit 9"], 60.0, {}) == (9, ["out", "err"])
    assert os.getpid() in tools.descendants(os.getppid())
