"""Programs that watch a stage's kernels: Nsight Compute's table is read, and nothing they start outlives its time."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from scsco_fast.benchmarks.gpu_pass import profile, tools
from scsco_fast.benchmarks.gpu_pass.plan import Plan

# What Nsight Compute 2025.3 prints of two launches, with three of some hundred counters.
TABLE = """==PROF== Connected to process 31 (/usr/bin/python3.12)
==PROF== Profiling "bain_attention_fwd_kernel" - 0: 0%....50%....100% - 41 passes
==PROF== Disconnected from process 31
"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size","Device","CC",\
"gpu__time_duration.sum","launch__registers_per_thread","sm__throughput.avg.pct_of_peak_sustained_elapsed"
"","","","","","","","","","","","us","register/thread","%"
"0","31","python3.12","127.0.0.1","bain_attention_fwd_kernel","1","7","(128, 1, 1)","(208, 16, 1)","0","9.0",\
"1,234.5","168","61.25"
"1","31","python3.12","127.0.0.1","bain_attention_bwd_dq_kernel","1","7","(128, 1, 1)","(104, 16, 1)","0","9.0",\
"2,000.0","","40.5"
"""


def stand_in(folder: Path, text: str, code: int = 0) -> Path:
    """A program in ncu's place that writes its arguments down."""
    (folder / "report").write_text(text)
    fake = folder / "ncu"
    fake.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >"{folder}/arguments"\ncat "{folder}/report"\nexit {code}\n')
    fake.chmod(0o755)
    return fake


def records(folder: Path, monkeypatch: pytest.MonkeyPatch, fake: Path | None) -> list[dict[str, Any]]:
    monkeypatch.setattr(tools, "find", lambda name: fake and str(fake))
    (phase,) = profile.phases(Plan("cuda", folder, folder))
    assert not phase.together
    return list(phase.items[0].measure())


def test_counters_are_those_of_each_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = records(tmp_path, monkeypatch, stand_in(tmp_path, TABLE))
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
    given = (tmp_path / "arguments").read_text().split("\n")
    assert given[given.index("--clock-control") + 1] == "none"
    assert given[given.index("--kernel-name") + 1] == "regex:^bain_attention_"
    assert given[given.index("-m") :][1:5] == [profile.MODULE, str(tmp_path), str(tmp_path), "bain_attention"]


@pytest.mark.parametrize(("text", "code"), [("==ERROR== ERR_NVGPUCTRPERM\n", 0), (TABLE, 1), ("", 0)])
def test_a_profiler_that_fails_or_sees_no_kernel_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, code: int
) -> None:
    *_, last = records(tmp_path, monkeypatch, stand_in(tmp_path, text, code))
    assert last == {"exit code": code, "report": text.splitlines()[-profile.LINES :], "passed": False}


def test_without_a_profiler_a_note_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert records(tmp_path, monkeypatch, None) == [{"note": "ncu is not there"}]


def test_what_a_tool_has_started_ends_with_it(tmp_path: Path) -> None:
    """A checker starts the program through another one; the program that is left would keep the GPU busy."""
    watched = "sleep 600 & echo $!; wait"
    code, lines = tools.run(["sh", "-c", f"echo $NAMED; sh -c '{watched}' & wait"], 2.0, {"NAMED": "passed on"})
    assert code == "out of time"
    assert lines[0] == "passed on"
    deadline = time.monotonic() + 30
    while runs(int(lines[1])) and time.monotonic() < deadline:  # a killed process may take a moment to end
        time.sleep(0.05)
    assert not runs(int(lines[1]))


def runs(pid: int) -> bool:
    """Whether a process has not ended; one whose end nobody has asked for yet has."""
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


def test_what_a_tool_prints_and_returns_is_kept() -> None:
    assert tools.run(["sh", "-c", "echo out; echo err >&2; exit 9"], 60.0, {}) == (9, ["out", "err"])
    assert os.getpid() in tools.descendants(os.getppid())
