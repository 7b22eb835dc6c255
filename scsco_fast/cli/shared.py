"""What several commands do: load the model, choose the device, show progress, print what a terminal can show."""

import contextlib
import functools
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scsco_fast.errors import ScscoError

if TYPE_CHECKING:
    from scsco_fast.nn.unet import HarmonizationUNet


def read_model(path: str | Path | None, device: str) -> "HarmonizationUNet":
    """The model file, or the package's own model if none is given, on `device` (see `usable_device`).

    A file that is read again, unchanged, is the same network: a process that serves many requests reads it once.
    """
    from scsco_fast.nn.weights import DEFAULT, SHIPPED_SHA256, shipped_file

    name = DEFAULT if path is None else str(path)
    in_package = path is None or (name in SHIPPED_SHA256 and not Path(name).exists())
    file = shipped_file(name) if in_package else Path(name)
    return _read_once(path, usable_device(device), *_state(file))


@functools.lru_cache(maxsize=2)
def _read_once(path: str | Path | None, device: str, *state: str | int) -> "HarmonizationUNet":
    from scsco_fast.nn.weights import load_default_model, load_model

    return load_default_model(device) if path is None else load_model(path, device)


def _state(file: Path) -> tuple[str | int, ...]:
    """The full path, size and time of change of a file; the path alone where it cannot be read."""
    try:
        found = file.stat()
    except OSError:
        return (str(file.absolute()),)
    return str(file.absolute()), found.st_size, found.st_mtime_ns


def usable_device(name: str) -> str:
    """`name`, or for "auto" the GPU where there is one; a device that cannot be used is a `ScscoError`."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ScscoError(f"device {name!r} cannot be used ({reason}); see scsco doctor") from error
    return name


def check_backend() -> None:
    """SCSCO_BACKEND is read at the first operation; a mistake in it is better said before the work starts."""
    name = os.environ.get("SCSCO_BACKEND", "auto")
    if name == "auto":
        return
    from scsco_fast.ops import backends

    known = backends()
    reason = known.get(name, f"no such backend; wanted auto or one of {', '.join(known)}")
    if reason != "yes":
        raise ScscoError(f"SCSCO_BACKEND is {name!r}: {reason}")


def worker_count(given: int | None) -> int:
    """The processes asked for; if not given, one per core."""
    from scsco_fast.data.workers import default_workers

    return default_workers() if given is None else given


@contextlib.contextmanager
def progress_bar(what: str = "evaluating") -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar on stderr, which disappears; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def print_table(table: Any) -> None:
    """A table of rich; where stdout is no terminal it is wide enough for every column."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table)


def printable(text: str) -> str:
    """One line that any terminal can show: file names may hold line ends and bytes of no encoding."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def log_to_stderr() -> None:
    """What the data sets have to say: how they lie on disk, and what is missing."""
    logger = logging.getLogger("scsco_fast.data")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, _ToStderr) for handler in logger.handlers):
        logger.addHandler(_ToStderr())


class _ToStderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        level = "warning: " if record.levelno >= logging.WARNING else ""
        print(f"scsco: {level}{printable(record.getMessage())}", file=sys.stderr)


def show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"scsco: warning: {' '.join(str(message).split())}", file=sys.stderr)
