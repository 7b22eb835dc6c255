"""Options from the command line: the fields of a dataclass, read by the standard library's argparse."""

import argparse
import ast
import dataclasses
import difflib
import inspect
import re
import shutil
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, TypeVar

from scsco_fast.errors import ScscoError

OptionsT = TypeVar("OptionsT")

_METAVARS = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}
_OWN = "options"  # argparse's name for those that are in no other group
_WANTED = {int: "a whole number", float: "a number"}


def parse(
    options: type[OptionsT],
    arguments: Sequence[str],
    program: str,
    default: OptionsT | None = None,
    description: str | None = None,
    positional: bool = False,
) -> OptionsT:
    """Read the fields of a dataclass from the command line.

    `batch_size: int = 8` is the option `--batch-size INT`, and the text below the field is its help. A field that is a
    dataclass itself stands for the fields of that one.

    - bool: `--name`. `--no-name` is taken as well, and shown where the default is True.
    - tuple: several values. Where their number is open, the option may be repeated, and all values count.
    - a type or None: the word None is None.

    Args:
        options: the dataclass. Its types are str, int, float, bool, Path and Literal, tuples of one of them, and None.
        arguments: what follows the command.
        program: the command, for help and messages.
        default: has the values of what is not given; without it those are the fields' own defaults.
        description: stands above the options in the help; if not given, the docstring of `options`.
        positional: what has no default is given without its name.

    Raises:
        ScscoError: a mistake, said in one line.
        SystemExit: --help was asked for, and is printed.

    Examples:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Options:
        ...     output: Path
        ...     sizes: tuple[int, ...] = ()
        ...     quiet: bool = False
        >>> parse(Options, ["--output", "a.png", "--sizes", "3", "4"], "paint").sizes
        (3, 4)
        >>> parse(Options, ["--quite"], "paint")
        Traceback (most recent call last):
        scsco_fast.errors.ScscoError: there is no option --quite; did you mean --quiet? (see paint --help)
    """
    found = [*_options(options, default, positional)]
    parser = _parser(program, found, description or inspect.getdoc(options) or "")
    try:
        _check_empty(arguments)
        # Intermixed takes an option between two positionals, and overlooks --, after which nothing is an option.
        read = parser.parse_known_args if "--" in arguments else parser.parse_known_intermixed_args
        given, rest = read([_with_hyphens(argument) for argument in arguments])
        unknown = [argument for argument in rest if argument != "--"]  # some versions of Python leave it there
        if unknown:
            raise _MistakeError(_unknown(unknown[0], [option.flag for option in found if not option.positional]))
        values = {
            option.name: option.value(getattr(given, option.name))
            for option in found
            if getattr(given, option.name, dataclasses.MISSING) is not dataclasses.MISSING
        }
        missing = [option for option in found if option.required and option.name not in values]
        if missing:
            named = [option.usage for option in missing if not option.positional]
            raise _MistakeError(f"missing {', '.join(named) or 'an argument: ' + missing[0].usage}")
    except _MistakeError as mistake:
        raise ScscoError(f"{mistake} (see {program} --help)") from None
    return _built(options, values, default)


class _MistakeError(Exception):
    """What is wrong with the arguments."""


class _Parser(argparse.ArgumentParser):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # What is a value though it begins with a dash: -3, -1e-3 and -120,40. Before Python 3.14 it is -3 alone.
        self._negative_number_matcher = re.compile(r"-(\.?\d|inf$)")

    def error(self, message: str) -> NoReturn:
        raise _MistakeError(message.removeprefix("argument "))


class _Help(argparse.RawDescriptionHelpFormatter):
    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        """A fixed number of values, which is "+" for argparse since None stands for all of them."""
        return str(action.metavar) if action.nargs == "+" else super()._format_args(action, default_metavar)


class _Option(NamedTuple):
    """A field: the types of one value and of a tuple's values, either of which may be empty, and what its help says."""

    name: str
    single: tuple[Any, ...]
    several: tuple[Any, ...]
    may_be_none: bool
    default: Any
    text: str
    group: str
    positional: bool

    @property
    def flag(self) -> str:
        return self.name if self.positional else f"--{self.name.replace('_', '-')}"

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING

    @property
    def metavar(self) -> str:
        kind = (*self.several, *self.single)[0]
        return f"{{{','.join(typing.get_args(kind))}}}" if typing.get_origin(kind) is Literal else _METAVARS[kind]

    @property
    def usage(self) -> str:
        return self.name.upper() if self.positional else f"{self.flag} {self.metavar}"

    def add(self, add_argument: Callable[..., argparse.Action]) -> None:
        """Add the option to a parser or to a group of one."""
        shared: dict[str, Any] = {"default": argparse.SUPPRESS, "help": self._help()}
        if self.single == (bool,) and self.default is True:
            add_argument(self.flag, action=argparse.BooleanOptionalAction, **shared)
        elif self.single == (bool,):
            add_argument(self.flag, action="store_true", **shared)
            hidden = {**shared, "help": argparse.SUPPRESS}
            add_argument(f"--no-{self.flag[2:]}", action="store_false", dest=self.name, **hidden)
        elif self.positional:
            shared["default"] = dataclasses.MISSING  # SUPPRESS would be taken for a value
            add_argument(self.flag, nargs="?", type=self._converter(), metavar=self.usage, **shared)
        else:
            nargs, action = ("*", "extend") if Ellipsis in self.several else ("+" if self.several else None, "store")
            metavar = " ".join([self.metavar] * len(self.several)) if nargs == "+" else self.metavar
            add_argument(self.flag, nargs=nargs, action=action, type=self._converter(), metavar=metavar, **shared)

    def value(self, given: Any) -> Any:
        """What argparse found as the field has it: a tuple is a list there."""
        if not isinstance(given, list):
            return given
        if given == [None] or (self.single and len(given) == 1):
            return given[0]
        if None in given:
            raise _MistakeError(f"{self.flag} has None among other values; None stands alone")
        if not self.several:  # --name=-- before Python 3.13
            raise _MistakeError(f"{self.flag}: expected one argument")
        if Ellipsis not in self.several and len(given) != len(self.several):
            raise _MistakeError(f"{self.flag}: expected {len(self.several)} arguments")
        return tuple(given)

    def _help(self) -> str:
        default = " ".join(map(str, self.default)) if isinstance(self.default, tuple) else self.default
        note = f"(default: {'on' if default is True else default})"
        if self.required:
            note = "" if self.positional else "(required)"
        elif default is None or default is False or default == "":
            note = ""
        return f"{self.text} {note}".strip().replace("%", "%%")

    def _converter(self) -> Callable[[str], Any]:
        kind = (*self.several, *self.single)[0]
        choices = typing.get_args(kind)

        def convert(text: str) -> Any:
            if self.may_be_none and text == "None":
                return None
            if choices and text not in choices:
                wanted = ", ".join(choices)
                raise _MistakeError(f"invalid choice {text!r} for argument '{self.flag}'; wanted one of {wanted}")
            try:
                return text if choices else kind(text)
            except ValueError:
                raise _MistakeError(f"{self.flag} is {text!r}; wanted {_WANTED[kind]}") from None

        return convert


def _options(kind: type[Any], default: Any, positional: bool, group: str = _OWN) -> Iterator[_Option]:
    """The options of a dataclass, those of the dataclasses in it last."""
    hints, texts = typing.get_type_hints(kind), _texts(kind)
    fields = sorted(dataclasses.fields(kind), key=lambda field: dataclasses.is_dataclass(hints[field.name]))
    for field in fields:
        hint = hints[field.name]
        value = field.default if default is None else getattr(default, field.name)
        if dataclasses.is_dataclass(hint):
            inner = None if default is None else value
            yield from _options(typing.cast(type[Any], hint), inner, positional, field.name)
            continue
        kinds = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
        single = tuple(kind for kind in kinds if typing.get_origin(kind) is not tuple and kind is not types.NoneType)
        several = next((typing.get_args(kind) for kind in kinds if typing.get_origin(kind) is tuple), ())
        yield _Option(
            field.name,
            single,
            several,
            types.NoneType in kinds,
            value,
            texts.get(field.name, ""),
            group,
            positional and value is dataclasses.MISSING,
        )


def _texts(kind: type[Any]) -> dict[str, str]:
    """The text below each field of a dataclass, which Python keeps in its source alone; empty where there is none."""
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    except OSError:
        return {}
    return {
        field.target.id: " ".join(below.value.value.split())
        for field, below in pairwise(typing.cast(ast.ClassDef, tree).body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
    }


def _parser(program: str, options: Sequence[_Option], description: str) -> argparse.ArgumentParser:
    width = shutil.get_terminal_size().columns - 2
    paragraphs = [  # an indented one is left as it is
        text if text.startswith(" ") else textwrap.fill(" ".join(text.split()), width, break_on_hyphens=False)
        for text in description.split("\n\n")
    ]
    parser = _Parser(
        program,
        " ".join([program, *(option.usage for option in options if option.required), "[OPTIONS]"]).replace("%", "%%"),
        "\n\n".join(paragraphs).replace("%", "%%"),
        formatter_class=_Help,
        allow_abbrev=False,
    )
    adders: dict[str, Callable[..., argparse.Action]] = {_OWN: parser.add_argument}
    for option in options:
        if option.group not in adders:
            adders[option.group] = parser.add_argument_group(option.group).add_argument
        option.add(adders[option.group])
    return parser


def _built(kind: type[OptionsT], values: dict[str, Any], default: OptionsT | None) -> OptionsT:
    hints = typing.get_type_hints(kind)
    own: dict[str, Any] = {}
    for field in dataclasses.fields(typing.cast(Any, kind)):
        if dataclasses.is_dataclass(hints[field.name]):
            own[field.name] = _built(hints[field.name], values, getattr(default, field.name, None))
        elif field.name in values:
            own[field.name] = values[field.name]
    return kind(**own) if default is None else dataclasses.replace(typing.cast(Any, default), **own)


def _with_hyphens(argument: str) -> str:
    """--batch_size as --batch-size."""
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value if argument.startswith("--") else argument


def _check_empty(arguments: Sequence[str]) -> None:
    """Refuse an empty argument, such as a variable of a script that is not set: as a path it would be this folder."""
    for before, argument in pairwise(["", *arguments]):
        if argument == "" or (argument.startswith("--") and argument.endswith("=")):
            name = argument.rstrip("=") or (before if before.startswith("--") else "an argument")
            raise _MistakeError(f"{name} is empty; give it a value, or leave it out")


def _unknown(argument: str, flags: Sequence[str]) -> str:
    if not argument.startswith("-"):
        return f"{argument!r} is not expected; each value follows the name of its option"
    name = argument.partition("=")[0]
    near = difflib.get_close_matches(name, flags, n=1)
    return f"there is no option {name}" + (f"; did you mean {near[0]}?" if near else "")
