"""What a process owes to whoever started it: one line and an exit code at any signal, and streams that can be written.

Only `scsco` and `python -m scsco_fast` use this; a program that calls `main` keeps its signals and streams. It is
imported before Ctrl-C can be answered, so it imports little.
"""

import atexit
import io
import os
import signal
import sys
from itertools import dropwhile
from types import FrameType

_COMMAND_LINE = "scsco_fast.cli"
_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
if hasattr(signal, "SIGHUP"):  # of a terminal that is closed; Windows has none
    _WORDS[signal.SIGHUP] = "hung up"


class Stopped(KeyboardInterrupt):
    """A signal asks the process to end. What cleans up after Ctrl-C does so after the others as well."""


class OutputError(Exception):
    """What is printed cannot be written. No `except OSError` for some other file takes it for its own.

    Attributes:
        reason: what the system says.
        is_unread: a pipe whose reader, such as `head`, has seen enough.
    """

    def __init__(self, error: OSError) -> None:
        self.reason, self.is_unread = error.strerror or str(error), isinstance(error, BrokenPipeError)
        super().__init__(f"what is printed cannot be written ({self.reason})")


class Signals:
    """From now on signals end the process with one line and 128 + the signal's number, as a shell would say it.

    While the command line itself imports something, nothing is there to be cleaned up, and the process ends at once: an
    exception could be swallowed by a module that is half imported, or shown by the part of it that is written in C.
    Everywhere else, and in child processes too, it is a `Stopped`.

    Attributes:
        stopped: the signal that came, if one did.
    """

    def __init__(self) -> None:
        self.stopped: int | None = None
        self._process, self._said, self._leaving = os.getpid(), False, False
        for number in _WORDS:
            # One that is ignored, as by nohup or in the background of a script, stays so.
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(number, self._handle)
        atexit.register(self._let_end)  # the last of all that is registered later

    def leave(self) -> None:
        """The command is done: from now on a signal ends the process at once, whatever it is still tidying up."""
        self._leaving = True

    def say_stopped(self) -> int:
        """Say on stderr, once, what ended the process; the exit code for it."""
        number = signal.SIGINT if self.stopped is None else signal.Signals(self.stopped)
        if not self._said:
            self._said = True
            print(f"scsco: {_WORDS[number]}", file=sys.stderr, flush=True)
        return 128 + number

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process and number != signal.SIGINT:  # a child's own end, which is for its parent
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif self._leaving or _is_importing(frame):
            self._end(number)
        elif not self._said:
            self.stopped = number
            raise Stopped

    def _let_end(self) -> None:
        """All is tidied up. Python takes its handlers away now, so Ctrl-C would kill what has its exit code already."""
        if os.getpid() == self._process:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _end(self, number: int) -> None:
        self.stopped = self.stopped or number
        try:
            self.say_stopped()
            sys.stdout.flush()
        except (OutputError, RuntimeError):  # full, closed, or being written to at this moment
            pass
        finally:
            os._exit(128 + self.stopped)


def _is_importing(frame: FrameType | None) -> bool:
    """Whether the command line itself has begun an import, and nothing else, that is not done yet."""
    names = []
    while frame is not None:
        names.append(str(frame.f_globals.get("__name__")))
        frame = frame.f_back
    begun = dropwhile(lambda name: not name.startswith(_COMMAND_LINE), reversed(names))
    called = next(dropwhile(lambda name: name.startswith(_COMMAND_LINE), begun), "")
    return called.startswith(("importlib", "_frozen_importlib"))


def repair_streams() -> None:
    """Streams to which everything can be written, and that are open.

    - What the encoding of stdout cannot hold is written as an escape, \\xe9, as on stderr.
    - A closed stdin, stdout or stderr becomes /dev/null. Else the next file that is opened would take its number, and
      whatever a library writes there would be in it.
    - What cannot be written to stderr, because it is full say, is left out: a message that nobody reads stops no work.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            _open_null(number)
            setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))  # noqa: SIM115
    for name, kind in (("stdout", _Output), ("stderr", _Messages)):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            encoding, by_line, at_once = stream.encoding, stream.line_buffering, stream.write_through
            stream = kind(stream.detach(), encoding, "backslashreplace", None, by_line, at_once)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)  # of which others ask the width of the terminal


class _Output(io.TextIOWrapper):
    """stdout, of which it is told when it cannot be written."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            _open_null(self.fileno())  # what is left of it must not fail again at the end
            raise OutputError(error) from error

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            _open_null(self.fileno())
            raise OutputError(error) from error


class _Messages(io.TextIOWrapper):
    """stderr, which drops what it cannot write."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            _open_null(self.fileno())
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            _open_null(self.fileno())


def _open_null(number: int) -> None:
    """Have a file descriptor lead to nowhere."""
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)
