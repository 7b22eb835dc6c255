"""One writer for each folder: other processes, threads, kills, and file systems without locks."""

import errno
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scsco_fast.errors import ScscoError
from scsco_fast.system import locks
from scsco_fast.system.locks import LOCK, writing

HOLDER = """
import sys
from multiprocessing import get_context
from scsco_fast.system.locks import writing
with writing(sys.argv[1]):
    if "fork" in sys.argv:
        get_context("fork").Process(target=sys.stdin.read).start()
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the folder until its input is closed."""
    command = [sys.executable, "-c", HOLDER, str(folder), *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def refused(folder: Path) -> str:
    with pytest.raises(ScscoError) as caught, writing(folder):
        pass
    return str(caught.value)


def test_a_second_process_is_refused_until_the_first_is_done(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "run"
    with holder(folder):
        told = refused(folder)
        assert told == f"{folder}: another run is writing to this folder; wait until it ends, or name another folder"
        assert refused(tmp_path / "a" / ".." / "a" / "run").endswith(told.partition(": ")[2])  # by any other name
        with writing(folder.parent), writing(folder / "below"):
            pass
    with writing(folder):
        pass
    assert not list(tmp_path.iterdir()), "a folder that was made and left empty is taken away, its parents too"


@pytest.mark.parametrize("arguments", [(), ("fork",)])
def test_a_killed_process_holds_nothing_even_where_its_children_live_on(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    with holder(tmp_path, *arguments) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / LOCK).exists()
        with writing(tmp_path):
            pass
    assert not list(tmp_path.iterdir())


def test_blocks_of_one_thread_are_one_and_another_thread_is_refused(tmp_path: Path) -> None:
    told: list[str] = []
    with writing(tmp_path):
        with writing(str(tmp_path)):
            assert (tmp_path / LOCK).exists()
        thread = threading.Thread(target=lambda: told.append(refused(tmp_path)))
        thread.start()
        thread.join()
        assert (tmp_path / LOCK).exists(), "the inner block does not end the outer one"
    assert len(told) == 1
    assert "another run is writing" in told[0]
    assert not list(tmp_path.iterdir())


def test_one_file_of_a_folder_alone(tmp_path: Path) -> None:
    with writing(tmp_path, "a.txt"):
        with writing(tmp_path, "b.txt"), writing(tmp_path):
            pass
        command = [sys.executable, "-c", HOLDER.replace("sys.argv[1]", "sys.argv[1], 'a.txt'"), str(tmp_path)]
        result = subprocess.run(command, input="", capture_output=True, text=True, check=False)
    told = f"{tmp_path / 'a.txt'}: another run is writing to this file; wait until it ends, or name another file"
    assert result.stderr.strip().endswith(told)
    assert not list(tmp_path.iterdir())


def test_an_error_in_the_block_is_its_own_and_ends_the_lock(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="mine"), writing(tmp_path):
        raise OSError("mine")
    with writing(tmp_path):
        pass


def test_a_file_that_another_run_removes_before_it_is_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    lock, removed = fcntl.flock, []

    def late(descriptor: int, operation: int) -> None:
        if not removed:
            removed.append((tmp_path / LOCK).unlink())
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with writing(tmp_path):
        command = [sys.executable, "-c", HOLDER, str(tmp_path)]
        result = subprocess.run(command, input="", capture_output=True, text=True, check=False)
    assert removed
    assert "another run is writing" in result.stderr


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_the_file_system_has_no_locks_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def none(descriptor: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", none)
    monkeypatch.setattr(locks, "_warned", threading.Event())
    with pytest.warns(UserWarning, match="no locks; see to it that no other run"), writing(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with writing(tmp_path):
            pass


def test_a_folder_that_cannot_be_made_or_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(tmp_path / "file")
    assert "cannot be written" in refused(tmp_path / "file" / "below")
    (tmp_path / LOCK).symlink_to(tmp_path / "elsewhere")
    assert "cannot be written" in refused(tmp_path)
    assert not (tmp_path / "elsewhere").exists()
