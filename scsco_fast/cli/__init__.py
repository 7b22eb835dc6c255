"""The command line: `scsco COMMAND`; `USAGE` lists the commands, and each has its own file here.

Exit codes: 0 all done, 1 some of the work failed (each failure is named), 2 wrong use or unusable input (one line on
stderr), 130 interrupted. With SCSCO_DEBUG=1 an error shows its traceback. A command's file is imported when it runs,
and imports what it needs itself.
"""

import importlib
import os
import sys
import warnings
from collections.abc import Sequence

from scsco_fast.cli.shared import log_to_stderr, show_warning
from scsco_fast.cli.usage import TRAIN_USAGE, USAGE
from scsco_fast.errors import ScscoError

__all__ = ["TRAIN_USAGE", "USAGE", "main", "run"]

COMMANDS = (
    *("train", "evaluate", "prepare", "synthesize", "harmonize", "import-rainnet", "export", "demo"),
    *("serve", "bench", "build", "doctor"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Examples:
        >>> main(["--version"])
        0.1.0
        0
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            log_to_stderr()
            return _dispatch(arguments)
    except ScscoError as error:
        if os.environ.get("SCSCO_DEBUG", "0") not in ("", "0"):
            raise
        print(f"scsco: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("scsco: interrupted", file=sys.stderr)
        return 130


def run() -> None:
    """The console script."""
    sys.exit(main())


def _dispatch(arguments: list[str]) -> int:
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
    try:
        return int(importlib.import_module(_module(arguments[0])).command(arguments[1:]))
    except SystemExit as stop:  # --help
        return int(stop.code or 0)


def _module(command: str) -> str:
    return f"{__name__}.{command.replace('-', '_')}"
