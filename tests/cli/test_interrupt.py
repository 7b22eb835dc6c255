"""Ctrl-C, which a terminal sends to every process of a command: one line, exit code 130, nobody and nothing left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_dataset import write_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("interrupt") / "data", 400)


def running(session: int) -> list[str]:
    """The processes of a session that are not merely waiting to be collected."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().rpartition(")")
        except OSError:
            continue
        state, _, _, belongs_to = rest.split()[:4]
        if int(belongs_to) == session and state != "Z":
            found.append(name)
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("whole_group", [True, False])
@pytest.mark.parametrize(
    ("arguments", "begun"),
    [
        (["prepare", "DATA", "--check", "--report", "out/report.json"], "out/report.files.jsonl"),
        (["evaluate", "--identity", "--dataset", "DATA", "--split", "train", "--csv", "out/rows.csv"], "out/.rows.*"),
    ],
    ids=["check", "evaluate"],
)
def test_ctrl_c_leaves_one_line_and_nothing_else(
    data: Path, tmp_path: Path, arguments: list[str], begun: str, whole_group: bool
) -> None:
    command = [sys.executable, "-m", "scsco_fast", *(str(data) if word == "DATA" else word for word in arguments)]
    process = subprocess.Popen(
        [*command, "--workers", "2"], stderr=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True
    )
    for _ in range(1200):
        if any(tmp_path.glob(begun)):
            break
        time.sleep(0.05)
    (os.killpg if whole_group else os.kill)(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "scsco: interrupted"
    assert "Traceback" not in errors
    for _ in range(100):
        if not running(process.pid):
            break
        time.sleep(0.05)
    assert running(process.pid) == []
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".jsonl"] == []
