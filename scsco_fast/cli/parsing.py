"""Options from the command line, read by tyro; a mistake is one line."""

import contextlib
import io
from itertools import dropwhile, takewhile
from typing import Any, TypeVar

from scsco_fast.errors import ScscoError

OptionsT = TypeVar("OptionsT")


def parse(
    options: type[OptionsT],
    arguments: list[str],
    program: str,
    default: OptionsT | None = None,
    description: str | None = None,
    positional: bool = False,
) -> OptionsT:
    """Options from the command line; a mistake is a `ScscoError` of one line instead of tyro's box.

    With `positional` the options without a default are given without their names.
    """
    _check_empty(arguments, program)
    import tyro

    captured = io.StringIO()
    defaults: dict[str, Any] = {} if default is None else {"default": default}
    config = (tyro.conf.PositionalRequiredArgs,) if positional else ()
    try:
        with contextlib.redirect_stderr(captured):
            return tyro.cli(options, args=arguments, prog=program, description=description, config=config, **defaults)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ScscoError(f"{_box_message(captured.getvalue())} (see {program} --help)") from None


def _check_empty(arguments: list[str], program: str) -> None:
    """Refuse an empty argument, such as a variable of a script that is not set: as a path it would be this folder."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if argument == "" or (argument.startswith("--") and argument.endswith("=")):
            name = argument.rstrip("=") or (before if before.startswith("--") else "an argument")
            raise ScscoError(f"{name} is empty; give it a value, or leave it out (see {program} --help)")


def _box_message(box: str) -> str:
    """The message in tyro's error box, which is a title, the message and a hint, with rules of dashes between."""
    lines = [line.strip("│ ") for line in box.splitlines()]
    is_rule = [set(line) <= set("─╭╮╰╯-") for line in lines]
    after_title = dropwhile(lambda index: is_rule[index], range(1, len(lines)))
    message = [lines[index] for index in takewhile(lambda index: not is_rule[index], after_title)]
    if message and message[0].startswith("Missing from"):  # options, each with its explanation
        return "missing " + (", ".join(line for line in message if line.startswith("--")) or "an argument")
    return " ".join(message) or "the options cannot be read"
