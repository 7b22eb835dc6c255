"""Writing files so that a reader never meets half of one."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from scsco_fast.errors import ScscoError

_LONG = 200  # bytes of a name, of which file systems allow 255; a temporary's has up to 20 more
_TEMPORARY = re.compile(r"\..*\.(\d+)\.tmp(?:\.[^.]*)?", re.DOTALL)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes `path`'s place only if the block ends without an error.

    The folder is made if it is missing. The temporary name keeps the suffix, for writers that choose a format by it.

    Raises:
        ScscoError: the folder or the file cannot be written.

    Examples:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with replacing(target) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> target.read_text()
        'whole'
    """
    path = Path(path)
    _check_name(path)
    stem = path.stem
    if len(os.fsencode(path.name)) > _LONG:
        stem = hashlib.sha256(os.fsencode(stem)).hexdigest()[:32]
    temporary = path.with_name(f".{stem}.{os.getpid()}.tmp{path.suffix}")  # known to `sweep`
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise ScscoError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):  # it is gone when all went well, and cannot be there when its folder is none
            temporary.unlink()


def sweep(folder: Path) -> None:
    """Remove what killed processes left behind in `folder`: temporaries of `replacing` whose process lives no more."""
    for path in folder.iterdir() if folder.is_dir() else ():
        found = _TEMPORARY.fullmatch(path.name)
        if found and not _is_alive(int(found[1])):
            with suppress(OSError):
                path.unlink()


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written to, before any work is done for it; nothing is made.

    Raises:
        ScscoError: it, or the nearest folder above it that is there, is no folder or not writable.
    """
    _check_name(folder)
    above = next((path for path in (folder, *folder.absolute().parents) if os.path.lexists(path)), folder)
    if not above.is_dir():
        raise ScscoError(f"{folder}: cannot be written ({above} is not a folder); name another folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ScscoError(f"{folder}: cannot be written ({above} is read-only); name another folder")


def _check_name(path: Path) -> None:
    if "\0" in str(path):
        raise ScscoError(f"{path}: cannot be written (a NUL byte is in the name); give another name")


def is_same_path(one: str | Path, other: str | Path) -> bool:
    """Whether two paths lead to the same place, whatever is there; a loop of links leads to itself."""
    if "\0" in f"{one}{other}":  # no path: opening it says so
        return False
    return real_path(one) == real_path(other)


def real_path(path: str | os.PathLike[str]) -> Path:
    """A path without links; unlike `Path.resolve` before Python 3.13 it stands a loop of them."""
    return Path(os.path.realpath(path))


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return True


def write_durably(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call `write(file)` on a temporary file beside `path`, flush it to the disk and rename it to `path`.

    Whatever stops this, a kill or a power cut included, `path` is either the old file or the complete new one.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the system lets a folder be opened."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
