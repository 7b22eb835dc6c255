"""The command line as a process: signals at any moment, streams that cannot be written, faults of the program."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCSCO = [sys.executable, "-m", "scsco_fast"]
# `scsco`, with another command behind it.
INSTEAD = "import os, signal, sys, time\nfrom scsco_fast import cli\n{}\ncli._dispatch = command\ncli.run()\n"


def run(command: list[str], stdout: object = subprocess.PIPE, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, timeout=120,
        env={**os.environ, "SCSCO_DEBUG": "0", **environment},
    )  # fmt: skip


def instead(body: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """`scsco` with a command of its own: the body of a function of the arguments."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return run([sys.executable, "-c", INSTEAD.format(f"def command(arguments):\n{lines}")], **environment)


# Signals. A process sends them to itself, so that the moment is no matter of luck.

INTERRUPT = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"


@pytest.mark.parametrize("body", [INTERRUPT, f"try:\n    {INTERRUPT}\nexcept BaseException:\n    print('went on')"])
@pytest.mark.parametrize(
    "arguments",
    [["doctor"], ["evaluate", "--identity"], ["harmonize", "--image", "a", "--mask", "b", "--output", "c.png"]],
)
def test_ctrl_c_in_an_import_is_one_line(arguments: list[str], body: str, tmp_path: Path) -> None:
    """Whether the module that is being imported lets it through or swallows it."""
    for name in ("torch", "numpy"):
        (tmp_path / f"{name}.py").write_text(body)
    result = run([*SCSCO, *arguments], PYTHONPATH=str(tmp_path))
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "scsco: interrupted\n")


@pytest.mark.parametrize(
    ("number", "line", "code"),
    [("SIGINT", "interrupted", 130), ("SIGTERM", "terminated", 143), ("SIGHUP", "hung up", 129)],
)
def test_a_signal_at_work_is_one_line_and_what_is_open_is_tidied_up(number: str, line: str, code: int) -> None:
    body = f"""
try:
    os.kill(os.getpid(), signal.{number})
    time.sleep(60)
finally:
    print("tidied up")
"""
    result = instead(body)
    assert (result.returncode, result.stdout, result.stderr) == (code, "tidied up\n", f"scsco: {line}\n")


def test_a_signal_that_an_error_hides_still_counts() -> None:
    body = (
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException:\n    raise ImportError('half') from None"
    )
    result = instead(body)
    assert (result.returncode, result.stderr) == (130, "scsco: interrupted\n")


@pytest.mark.parametrize(
    "register",
    [
        "import atexit\natexit.register(os.kill, os.getpid(), signal.SIGINT)",
        "import threading\nthreading.Thread(target=lambda: (time.sleep(0.3), os.kill(os.getpid(), signal.SIGINT), "
        "time.sleep(60))).start()",
    ],
)
def test_ctrl_c_while_the_process_ends_is_one_line(register: str) -> None:
    result = instead(f"{register}\nprint('done')\nreturn 0")
    assert (result.returncode, result.stdout, result.stderr) == (130, "done\n", "scsco: interrupted\n")


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    code = INSTEAD.format("def command(arguments):\n    os.kill(os.getpid(), signal.SIGINT)\n    return 0")
    ignored = run([sys.executable, "-c", f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n{code}"])
    assert (ignored.returncode, ignored.stderr) == (0, "")


@pytest.mark.parametrize("seconds", [0.15, 0.6, 1.5])
def test_ctrl_c_at_some_moments_of_a_real_start(seconds: float, tmp_path: Path) -> None:
    """To the whole group, as a terminal sends it."""
    command = [*SCSCO, "train", "demo", "--output", str(tmp_path / "run")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert "Traceback" not in errors
    assert (process.returncode, errors.splitlines()[-1:]) == (130, ["scsco: interrupted"])


# Streams.


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["harmonize", "--help"], ["train", "--help"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_stdout_is_one_line(arguments: list[str], unbuffered: str) -> None:
    with open("/dev/full", "w") as full:
        result = run([*SCSCO, *arguments], full, PYTHONUNBUFFERED=unbuffered)
    assert result.returncode == 1
    assert result.stderr == "scsco: error: what is printed cannot be written (No space left on device)\n"


@pytest.mark.parametrize(
    ("shell", "code"),
    [
        ("{} --help >&-", 0),
        ("{} --help <&- >&- 2>&-", 0),
        ("{} no-command 2>/dev/full", 2),
        ("{} no-command 2>&-", 2),
        ("{} no-command >&- 2>&-", 2),
        ("(sleep 0.5; exec {} harmonize --help) | head -c 0; exit ${{PIPESTATUS[0]}}", 1),
    ],
)
def test_closed_and_full_streams_leave_the_exit_code(shell: str, code: int) -> None:
    result = run(["bash", "-c", shell.format(" ".join(SCSCO))])
    assert (result.returncode, result.stderr) == (code, "")


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    body = f"file = open({str(tmp_path / 'a')!r}, 'w')\nos.write(1, b'lost')\nreturn file.fileno()"
    code = INSTEAD.format("def command(arguments):\n" + "\n".join(f"    {line}" for line in body.splitlines()))
    result = run(["bash", "-c", f"{sys.executable} -c '{code.replace(chr(39), chr(34))}' >&- <&-"])
    assert result.returncode > 2, result.stderr
    assert (tmp_path / "a").read_text() == ""


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"TERM": "dumb", "COLUMNS": "0"},
        {"COLUMNS": "99999999"},
    ],
    ids=str,
)
def test_poor_terminals_get_what_they_can_show(environment: dict[str, str], tmp_path: Path) -> None:
    for arguments in (["--help"], ["harmonize", "--help"], ["train", "demo", "--help"]):
        result = run([*SCSCO, *arguments], **environment)
        assert (result.returncode, result.stderr) == (0, "")
        assert "usage: scsco" in result.stdout
    folder = tmp_path / "\u00e9\u6f22"
    folder.mkdir()
    mask = np.zeros((30, 40), np.uint8)
    mask[5:15, 5:15] = 255
    Image.new("RGB", (40, 30), "gray").save(folder / "a.png")
    Image.fromarray(mask).save(folder / "m.png")
    output = folder / os.fsdecode(b"\xff.png")
    paths = ["--image", str(folder / "a.png"), "--mask", str(folder / "m.png"), "--output", str(output)]
    result = run([*SCSCO, "harmonize", *paths], **environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("wrote ")
    assert output.is_file()
    result = run([*SCSCO, "harmonize", *paths, "--model", str(folder / os.fsdecode(b"\xff"))], **environment)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)


# What should not happen.


def test_a_fault_is_one_line_that_names_the_traceback() -> None:
    result = instead("return 1 // 0")
    assert result.returncode == 70
    assert result.stderr.startswith("scsco: error: this is a fault of scsco, not of what you gave (ZeroDivisionError: ")
    assert result.stderr.count("\n") == 1
    named = re.search(r"the traceback is in (\S+)", result.stderr)
    assert named
    text = Path(named[1]).read_text()
    Path(named[1]).unlink()
    assert "return 1 // 0" in text or "in command" in text
    assert text.endswith("ZeroDivisionError: integer division or modulo by zero\n")


def test_a_fault_can_be_shown() -> None:
    result = instead("return 1 // 0", SCSCO_DEBUG="1")
    assert result.stderr.startswith("Traceback")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("raise MemoryError", "there is not enough memory for this"),
        ("raise RuntimeError('[enforce fail] can\\'t allocate memory: you tried')", "there is not enough memory"),
        ("open('/nowhere/a')", "/nowhere/a: cannot be used (No such file or directory)"),
        ("open('x' * 5000)", "x: cannot be used (File name too long)"),
        ("os.getcwd()", "No such file or directory"),
    ],
)
def test_what_the_system_refuses_is_no_fault(body: str, text: str, tmp_path: Path) -> None:
    if "getcwd" in body:
        body = f"os.chdir({str(tmp_path)!r})\nos.rmdir({str(tmp_path)!r})\n{body}"
    result = instead(body)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert text in result.stderr


@pytest.mark.parametrize("arguments", [["--model", ""], ["--model="], ["--images", "", "--output", "o"]])
def test_empty_arguments_are_refused(arguments: list[str]) -> None:
    result = run([*SCSCO, "harmonize", *arguments])
    name = arguments[0].rstrip("=")
    wanted = f"scsco: error: {name} is empty; give it a value, or leave it out (see scsco harmonize --help)\n"
    assert (result.returncode, result.stderr) == (2, wanted)


@pytest.mark.parametrize(
    "arguments", [["doctor"], ["harmonize", "--image", "/a", "--mask", "/b", "--output", "/c.png"]]
)
def test_a_folder_that_was_deleted_is_named(arguments: list[str], tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    code = f"import os; os.chdir({str(gone)!r}); os.rmdir({str(gone)!r}); from scsco_fast.cli import run; run()"
    result = run([sys.executable, "-c", code, *arguments])
    wanted = "the current folder cannot be used (No such file or directory); it was deleted or moved: go to another one"
    assert (result.returncode, result.stderr) == (2, f"scsco: error: {wanted} (cd ~)\n")
