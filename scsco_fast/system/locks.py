"""One writer for each output folder: the second of two runs that would overwrite each other is refused."""

import errno
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from scsco_fast.errors import ScscoError

LOCK = ".scsco.lock"
"""Its file, there while a folder is written to, and after a kill; whoever lists a folder passes it over."""

_PATIENCE = 0.2  # seconds; a run that starts while another one ends may have to look twice
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)  # as on some clusters' file systems


@contextmanager
def writing(folder: str | os.PathLike[str], only: str | None = None) -> Iterator[None]:
    """Keep others from writing to `folder`, or to one file of it, until the block ends.

    The folder is made if it is missing, and taken away again if the block leaves it empty. The lock is the operating
    system's: it goes with the process, so that a killed run locks nobody out. Nested blocks of one thread are one
    block. Another thread of the same process is refused as another process is; a run with threads of its own takes the
    lock once, before it starts them. Processes that the block starts do not hold it. Where the file system has no
    locks, a warning says so, once, and the block runs without.

    Args:
        folder: what is written to. Those below it and above it are other folders.
        only: name of the one file that is written to, in a folder where others may write to theirs.

    Raises:
        ScscoError: another process or thread writes to the same, or it cannot be written to.

    Examples:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "run"
        >>> with writing(folder):
        ...     _ = (folder / "a.txt").write_text("mine alone")
        >>> [path.name for path in folder.iterdir()]
        ['a.txt']
    """
    folder = Path(folder)
    lock = folder / (LOCK if only is None else f".{only}{LOCK}")
    what = f"{folder}: another run is writing to this folder; wait until it ends, or name another folder"
    if only is not None:
        what = f"{folder / only}: another run is writing to this file; wait until it ends, or name another file"
    with _made(folder), _locked(lock, what):
        yield


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ScscoError(_unwritable(folder, error)) from error
    try:
        yield
    finally:
        with suppress(OSError):  # the first that is not empty ends it
            for path in missing:
                path.rmdir()


@contextmanager
def _locked(path: Path, refusal: str) -> Iterator[None]:
    from filelock import FileLock, Timeout

    # One object for each path, in which filelock counts the nested blocks of a thread.
    try:
        # filelock would otherwise fall back to a file whose mere presence locks, and a kill leaves that behind.
        lock = FileLock(path, timeout=_PATIENCE, is_singleton=True, fallback_to_soft=False)
    except TypeError:  # one older than 3.32, as images with their own packages hold; it falls back to nothing
        lock = FileLock(path, timeout=_PATIENCE, is_singleton=True)
    try:
        lock.acquire()
    except Timeout as error:
        raise ScscoError(refusal) from error
    except NotImplementedError:  # what an older one makes of ENOSYS
        _warn_once(path.parent)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise ScscoError(_unwritable(path.parent, error)) from error
        _warn_once(path.parent)
    try:
        yield
    finally:
        # Removed while it is held: whoever opened it before gets a lock on a file without a name, which filelock
        # notices and opens anew; whoever opens it after makes a new one, and this block is done.
        if lock.lock_counter <= 1:  # the outermost block
            with suppress(OSError):
                path.unlink()
        lock.release()


_warned = threading.Event()


def _warn_once(folder: Path) -> None:
    if not _warned.is_set():
        _warned.set()
        warnings.warn(
            f"{folder}: this file system has no locks; see to it that no other run writes to the folder", stacklevel=2
        )


def _unwritable(folder: Path, error: OSError) -> str:
    return f"{folder}: cannot be written ({error.strerror or error}); choose another output folder"
