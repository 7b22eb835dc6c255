"""Fields of a dataclass from the command line: every type, what is refused and how, and what the help says."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from scsco_fast.cli.parsing import parse
from scsco_fast.errors import ScscoError

Colour = Literal["red", "green"]


@dataclass(frozen=True)
class Brush:
    width: int = 3
    """Pixels; 100 % is all."""
    hairs: str | tuple[str, ...] = "soft"
    """One kind, or several."""
    wet: bool = True
    """Dip it in water."""


@dataclass(frozen=True)
class Options:
    """Paint a wall.

    It takes as long as
    it takes.

      paint --output wall.png
    """

    output: Path
    """File to write."""
    brush: Brush
    colour: Colour | None = None
    """One of two."""
    size: tuple[float, float] | None = None
    """Two numbers."""
    walls: tuple[Literal["north", "south"], ...] = ()
    """Which of them."""
    coats: int | None = 2
    """How often."""
    thin_paint: bool = False
    """Save paint."""


@dataclass(frozen=True)
class Pair:
    first: Path
    second: int


@dataclass(frozen=True)
class Hole:
    first: Path
    second: int
    deep: bool = False


GIVEN = ["--output", "a.png"]


def read(*arguments: str, default: Options | None = None) -> Options:
    return parse(Options, arguments, "paint", default)


def test_what_is_not_given_has_the_fields_own_value() -> None:
    assert read(*GIVEN) == Options(Path("a.png"), Brush())


def test_every_type() -> None:
    text = "--output=a.png --colour red --size 3 0.5 --walls north south --coats 4 --thin-paint --width 9 --no-wet"
    wanted = Options(Path("a.png"), Brush(9, wet=False), "red", (3.0, 0.5), ("north", "south"), 4, True)
    assert read(*text.split()) == wanted


def test_a_default_has_the_values_of_what_is_not_given() -> None:
    default = Options(Path("b.png"), Brush(7, wet=False), "green", (1.0, 2.0), ("north",), 5, True)
    assert read(default=default) == default
    changed = Options(Path("b.png"), Brush(7, wet=True), "green", (1.0, 2.0), ("south",), 5, False)
    assert read("--wet", "--walls", "south", "--no-thin-paint", default=default) == changed


def test_none_is_a_value_where_the_type_has_it() -> None:
    default = Options(Path("b.png"), Brush(), "red", (1.0, 2.0))
    found = read("--coats", "None", "--colour", "None", default=default)
    assert (found.coats, found.colour) == (None, None)
    with pytest.raises(ScscoError, match="--width is 'None'; wanted a whole number"):
        read("--width", "None", default=default)


@pytest.mark.parametrize("text", ["--walls north south", "--walls north --walls south", "--walls=north --walls south"])
def test_values_of_a_repeated_option_all_count(text: str) -> None:
    assert read(*GIVEN, *text.split()).walls == ("north", "south")


def test_one_value_or_several() -> None:
    assert read(*GIVEN, "--hairs", "hard").brush.hairs == "hard"
    assert read(*GIVEN, "--hairs", "hard", "soft").brush.hairs == ("hard", "soft")
    assert read(*GIVEN, "--walls").walls == ()


def test_underscores_and_negative_numbers() -> None:
    assert read(*GIVEN, "--thin_paint", "--coats", "-2", "--size", "-1", "-.5").size == (-1, -0.5)


@pytest.mark.parametrize("value", ["-120,40", "-1e-3", "-inf"])
def test_what_begins_like_a_negative_number_is_a_value(value: str) -> None:
    assert read("--output", value).output == Path(value)


@pytest.mark.parametrize("arguments", [["--size", "None"], ["--size=None"], ["--size", "1", "2", "--size", "None"]])
def test_none_stands_for_all_values_of_a_fixed_number(arguments: list[str]) -> None:
    assert read(*arguments, default=Options(Path("b.png"), Brush(), size=(1.0, 2.0))).size is None


@pytest.mark.parametrize(
    "arguments", [["a", "3", "--deep"], ["a", "--deep", "3"], ["--deep", "a", "3"], ["--deep", "--", "a", "3"]]
)
def test_an_option_stands_anywhere_between_values_without_names(arguments: list[str]) -> None:
    assert parse(Hole, arguments, "hole", positional=True) == Hole(Path("a"), 3, True)


def test_after_two_hyphens_nothing_is_an_option() -> None:
    assert parse(Pair, ["--", "-a", "3"], "pair", positional=True) == Pair(Path("-a"), 3)
    assert read(*GIVEN, "--").output == Path("a.png")


def test_without_names() -> None:
    assert parse(Pair, ["a_b", "3"], "pair", positional=True) == Pair(Path("a_b"), 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "missing --output PATH (see paint --help)"),
        (["--output"], "--output: expected one argument (see paint --help)"),
        ([*GIVEN, "--coats", "two"], "--coats is 'two'; wanted a whole number (see paint --help)"),
        ([*GIVEN, "--size", "1", "x"], "--size is 'x'; wanted"),
        ([*GIVEN, "--size", "1"], "--size: expected 2 arguments (see paint --help)"),
        ([*GIVEN, "--size", "None", "1"], "--size has None among other values; None stands alone (see paint --help)"),
        (["--output=--"], "--output: expected one argument (see paint --help)"),
        ([*GIVEN, "--colour", "blue"], "invalid choice 'blue' for argument '--colour'; wanted one of red, green ("),
        ([*GIVEN, "--thin-pain"], "there is no option --thin-pain; did you mean --thin-paint? (see paint --help)"),
        ([*GIVEN, "--xyz=3"], "there is no option --xyz (see paint --help)"),
        ([*GIVEN, "--out", "b"], "there is no option --out"),
        ([*GIVEN, "wall"], "'wall' is not expected; each value follows the name of its option (see paint --help)"),
        ([*GIVEN, "--colour", ""], "--colour is empty; give it a value, or leave it out (see paint --help)"),
        (["--output="], "--output is empty"),
        ([""], "an argument is empty"),
        ([*GIVEN, "--wet=yes"], "--wet/--no-wet: ignored explicit argument 'yes'"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(ScscoError) as caught:
        read(*arguments)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "missing an argument: FIRST (see pair --help)"),
        (["a"], "missing an argument: SECOND (see pair --help)"),
        (["a", "b"], "second is 'b'; wanted a whole number (see pair --help)"),
        (["a", "3", "c"], "'c' is not expected"),
    ],
)
def test_a_mistake_without_names_is_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(ScscoError) as caught:
        parse(Pair, arguments, "pair", positional=True)
    assert str(caught.value).startswith(message)


def test_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stop:
        read("--help")
    assert not stop.value.code
    assert (
        capsys.readouterr().out
        == """\
usage: paint --output PATH [OPTIONS]

Paint a wall.

It takes as long as it takes.

  paint --output wall.png

options:
  -h, --help            show this help message and exit
  --output PATH         File to write. (required)
  --colour {red,green}  One of two.
  --size FLOAT FLOAT    Two numbers.
  --walls [{north,south} ...]
                        Which of them.
  --coats INT           How often. (default: 2)
  --thin-paint          Save paint.

brush:
  --width INT           Pixels; 100 % is all. (default: 3)
  --hairs [TEXT ...]    One kind, or several. (default: soft)
  --wet, --no-wet       Dip it in water. (default: on)
"""
    )


def test_help_breaks_no_word_at_a_hyphen(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "44")
    default = Options(Path("ground/half-statistics"), Brush())
    with pytest.raises(SystemExit):
        parse(Options, ["--help"], "paint", default, "Paint the whole wall with half-statistics.")
    assert capsys.readouterr().out.count("half-statistics") == 2


def test_without_its_source_the_help_has_no_texts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(kind: object) -> str:
        raise OSError("could not get source code")

    monkeypatch.setattr("inspect.getsource", fail)
    assert read(*GIVEN, "--coats", "1").coats == 1
    with pytest.raises(SystemExit):
        read("--help")
    assert "--coats INT" in capsys.readouterr().out
