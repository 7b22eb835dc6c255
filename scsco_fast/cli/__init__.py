"""The command line: `scsco COMMAND`; `usage.py` lists the commands, and each has its own file here.

Exit codes: 0 all done, 1 some of the work failed (each failure is named) or what is printed cannot be written, 2 wrong
use or unusable input (one line on stderr), 70 a fault of this program (one line, which names the file with the
traceback), 130 interrupted, 143 terminated. With SCSCO_DEBUG=1 an error shows its traceback. A command's file is
imported when it runs, and imports what it needs itself.
"""

import os
import sys
from collections.abc import Sequence

from scsco_fast.cli.usage import COMMANDS, TRAIN_USAGE, USAGE
from scsco_fast.errors import ScscoError, is_out_of_memory

__all__ = ["COMMANDS", "TRAIN_USAGE", "USAGE", "main", "run"]

FAULT = 70  # EX_SOFTWARE of sysexits.h


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. A fault of this program is raised; `run` says it in one line.

    Examples:
        >>> main(["--version"])
        0.1.0
        0
    """
    try:
        return _attempt(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        print("scsco: interrupted", file=sys.stderr)
        return 130


def run() -> None:
    """The console script: a command, with its end in order whatever comes (`scsco_fast.cli.process`)."""
    try:
        from scsco_fast.cli.process import Signals, repair_streams

        signals = Signals()
    except KeyboardInterrupt:  # in the first milliseconds
        print("scsco: interrupted", file=sys.stderr)
        sys.exit(130)
    try:
        repair_streams()
        try:
            code = _attempt(sys.argv[1:])
        except Exception as error:
            if _debugs():
                raise
            code = _fault(error) if signals.stopped is None else signals.say_stopped()
        signals.leave()
    except KeyboardInterrupt:
        code = signals.say_stopped()
        signals.leave()
    sys.exit(code)


def _attempt(arguments: list[str]) -> int:
    """Run one command; what can be said of its errors is said, in one line."""
    import warnings

    from scsco_fast.cli.process import OutputError
    from scsco_fast.cli.shared import log_to_stderr, show_warning

    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            log_to_stderr()
            code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except OutputError as error:
        return 1 if error.is_unread else _say(str(error), 1)
    except (ScscoError, OSError, MemoryError, RuntimeError) as error:
        text = _reason(error)
        if text is None or _debugs():
            raise
        return _say(text, 2)


def _reason(error: Exception) -> str | None:
    """What an error says that is no fault of this program; None for one that is."""
    if isinstance(error, ScscoError):
        return str(error)
    if isinstance(error, OSError):
        reason = error.strerror or str(error) or type(error).__name__
        return reason if error.filename is None else f"{os.fsdecode(error.filename)}: cannot be used ({reason})"
    if is_out_of_memory(error):
        return "there is not enough memory for this; make the pictures smaller, or use fewer processes"
    return None


def _say(text: str, code: int) -> int:
    from scsco_fast.cli.shared import printable

    print(f"scsco: error: {printable(' '.join(text.split()))}", file=sys.stderr)
    return code


def _fault(error: Exception) -> int:
    """One line for what should not happen; its traceback, which may not come again, is kept in a file."""
    import tempfile
    import traceback

    text = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", errors="backslashreplace", prefix="scsco-fault-", suffix=".txt", delete=False
        ) as file:
            file.write(f"scsco {' '.join(map(ascii, sys.argv[1:]))}\n{text}")
        where = f"the traceback is in {file.name}"
    except OSError:
        where = "run it with SCSCO_DEBUG=1 to see the traceback"
    kind = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return _say(f"this is a fault of scsco, not of what you gave ({kind}); please report it: {where}", FAULT)


def _debugs() -> bool:
    return os.environ.get("SCSCO_DEBUG", "0") not in ("", "0")


def _dispatch(arguments: list[str]) -> int:
    import importlib

    if not arguments:
        print(USAGE, end="", file=sys.stderr)
        return 2
    if arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if arguments[0] == "--version":
        from scsco_fast import __version__

        print(__version__)
        return 0
    if arguments[0] not in COMMANDS:
        raise ScscoError(f"{arguments[0]!r} is no command; wanted one of {', '.join(COMMANDS)} (see scsco --help)")
    _check_folder()
    try:
        return int(importlib.import_module(_module(arguments[0])).command(arguments[1:]))
    except SystemExit as stop:  # --help
        return int(stop.code or 0)


def _check_folder() -> None:
    """Refuse a current folder that was deleted. Paths lead nowhere there, and torch's MKL ends the process."""
    try:
        os.getcwd()
    except OSError as error:
        raise ScscoError(
            f"the current folder cannot be used ({error.strerror}); it was deleted or moved: go to another one (cd ~)"
        ) from error


def _module(command: str) -> str:
    return f"{__name__}.{command.replace('-', '_')}"
