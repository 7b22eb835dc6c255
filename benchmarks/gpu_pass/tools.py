"""Programs of the CUDA toolkit that watch another program: found, run to a deadline, and what they reported."""

import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

SEARCHED = f"{os.environ.get('PATH', '')}{os.pathsep}/usr/local/cuda/bin"
OUT_OF_TIME = "out of time"
END_SECONDS = 5.0  # that an interrupted tool may take to write what it has
DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


def find(name: str) -> str | None:
    """The program's path; the toolkit's folder need not be on PATH."""
    return shutil.which(name, path=SEARCHED)


def run(command: Sequence[str], seconds: float, variables: Mapping[str, str]) -> tuple[int | str, list[str]]:
    """Its exit code, or "out of time", and the lines that it and what it watches have printed until then.

    A tool that is out of time is interrupted, so that it reports what it has. It stays in the caller's process group,
    which runner.py ends as a whole where the stage's time is over first.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **variables}, stdout=output, stderr=output, preexec_fn=end_with_parent
        )
        try:
            code: int | str = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = OUT_OF_TIME
            started = descendants(process.pid)  # what a tool watches does not always end with it
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
            for pid in started:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        return code, output.read().splitlines()


def end_with_parent() -> None:
    """This process is killed when the one that started it ends, however that ends: nothing is left on the GPU."""
    ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """A process, and all that it or one of them has started."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended since
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found
