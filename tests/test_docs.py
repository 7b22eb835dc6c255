"""What the documentation shows can be done: commands are understood, Python runs, links lead somewhere."""

import ast
import contextlib
import importlib
import importlib.util
import io
import re
import runpy
import sys
import tomllib
import warnings
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints
from xml.etree import ElementTree

import pytest
from pages import PAGES, ROOT, SPAN, Block, Command, blocks, commands_of
from sources import ORDER
from torch.distributed.run import get_args_parser as torchrun_parser

from scsco_fast.cli import COMMANDS as SCSCO_COMMANDS
from scsco_fast.cli import main, parsing
from scsco_fast.errors import ScscoError
from scsco_fast.train import PRESETS, TrainConfig

TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
COMMANDS = [command for page, text in TEXTS.items() for command in commands_of(page, text)]
PYTHON = {page: found for page, text in TEXTS.items() if (found := [b for b in blocks(text) if b.is_python])}
# Why a block of Python may be compiled only, as <!-- not run: REASON --> before it.
REASONS = (
    "needs a GPU",
    "needs iHarmony4",
    "trains for long",
    "needs a running server",
    "needs an exported model",
)
# Programs whose parser is in another module.
PARSERS = {"scsco_fast.kernels.resources": "scsco_fast.kernels.gate"}
PLACEHOLDERS = {"COMMAND": "doctor", "PRESET": "demo"}
DURATION = re.compile(r"\w+ minutes|quarter of an hour")


class Read(BaseException):
    """A parser has read its options; nothing after it is run."""

    def __init__(self, options: Any) -> None:
        self.options = options


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def check(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Command], None]:
    """Checks a command without running it: parsers stop as soon as they have read their options."""
    modules = [importlib.import_module(f"scsco_fast.cli.{name.replace('-', '_')}") for name in SCSCO_COMMANDS]
    real_parse = ArgumentParser.parse_args

    def parse(*args: Any, **kwargs: Any) -> Any:
        raise Read(parsing.parse(*args, **kwargs))

    def parse_args(self: ArgumentParser, *args: Any, **kwargs: Any) -> Any:
        options = real_parse(self, *args, **kwargs)
        raise Read(options)

    def run(command: Command) -> None:
        with monkeypatch.context() as patched:
            for module in modules:
                assert module.parse is parsing.parse, f"{module.__name__} would run"
                patched.setattr(module, "parse", parse)
            patched.setattr(ArgumentParser, "parse_args", parse_args)
            check_command(command, patched)

    return run


def check_command(command: Command, patched: pytest.MonkeyPatch) -> None:
    arguments = [PLACEHOLDERS.get(word, word) for word in command.words[1:] if word not in ("...", "[OPTIONS]")]
    if command.program == "scsco":
        check_scsco(arguments, command.is_whole)
    elif command.program in ("torchrun", "accelerate"):
        check_launcher(command.program, arguments, command.is_whole)
    elif command.program in ("python", "python3"):
        check_python(arguments, command.is_whole, patched)
    elif command.program == "make":
        check_make(arguments)
    elif command.program == "pip":
        check_pip(arguments)
    elif command.program == "pytest":
        for argument in arguments:
            assert "/" not in argument or (ROOT / argument).exists(), f"there is no {argument}"
    described = (ROOT / "docs/environment-variables.md").read_text(encoding="utf-8")
    for assignment in command.assignments:
        name = assignment.partition("=")[0]
        assert not name.startswith("SCSCO_") or f"`{name}`" in described, f"{name} is not in environment-variables.md"


def check_scsco(arguments: list[str], is_whole: bool) -> None:
    """The command's own parser takes the options, and they go together. A sentence may leave out what is needed."""
    if arguments[0] == "train" and not is_whole and (len(arguments) == 1 or arguments[1].startswith("-")):
        arguments = ["train", "demo", *arguments[1:]]
    if arguments[:2] == ["train", "resume"] and len(arguments) > 2:
        keep_run(Path(arguments[2]))
    errors = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
            code = main(arguments)
    except Read as read:
        with contextlib.nullcontext() if is_whole else contextlib.suppress(ScscoError):
            check_values(arguments, read.options)
        return
    if not is_whole and re.search(r"missing|expected \w+ argument", errors.getvalue().lower()):
        return
    assert code == 0, errors.getvalue()


def check_values(arguments: list[str], options: Any) -> None:
    """What a command refuses before it touches a file; ScscoError."""
    if arguments[0] == "evaluate" and arguments[1:2] != ["compare"]:
        from scsco_fast.cli.evaluate import _check_evaluated

        _check_evaluated(options)
        kinds = set(get_args(get_type_hints(TrainConfig)["dataset"])) - {"synthetic", "iharmony4"}
        assert options.dataset not in kinds, f"scsco evaluate reads folders of pictures, not {options.dataset!r}"
    elif arguments[0] == "harmonize":
        from scsco_fast.cli.harmonize import _check_harmonized

        _check_harmonized(options)
    elif arguments[0] == "export":
        from scsco_fast.export.formats import check

        check(options.output, options.format, options.size)
    elif arguments[0] == "prepare":
        assert options.check != (options.output is not None), "wanted either --check or --output"


def keep_run(folder: Path) -> None:
    """A run that `scsco train resume` could continue."""
    import json

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"config": PRESETS["demo"].to_dict()}))


def check_launcher(program: str, arguments: list[str], is_whole: bool) -> None:
    if program == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        assert arguments[0] == "launch"
        parser, arguments = launch_command_parser(), arguments[1:]
    else:
        parser = torchrun_parser()
    if not is_whole and "-m" not in arguments:
        arguments = [*arguments, "-m", "scsco_fast", "--version"]
    options = parsed(lambda: parser.parse_args(arguments))
    assert options.module, "wanted -m scsco_fast"
    assert options.training_script == "scsco_fast"
    check_scsco(options.training_script_args, is_whole)


def parsed(start: Callable[[], Any]) -> Any:
    """What an argparse parser reads; it must stop there."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            start()
    except Read as read:
        return read.options
    except SystemExit:
        pytest.fail(errors.getvalue())
    pytest.fail("no options were read")


def check_python(arguments: list[str], is_whole: bool, patched: pytest.MonkeyPatch) -> None:
    if arguments[0] == "-c":
        compile(arguments[1], "-c", "exec")
    elif arguments[0] != "-m":
        assert (ROOT / arguments[0]).is_file(), f"there is no {arguments[0]}"
    elif arguments[1] == "scsco_fast":
        check_scsco(arguments[2:], is_whole)
    elif arguments[1] == "pip":
        check_pip(arguments[2:])
    else:
        # In a checkout the folders are importable under their own names too.
        module = re.sub(r"^(benchmarks|train|kernels)\b", r"scsco_fast.\1", arguments[1])
        assert importlib.util.find_spec(module) is not None, f"there is no module {module}"
        if module.startswith("scsco_fast."):
            assert "parse_args(" in source_of(module), f"{module} would run: it does not read its options"
            patched.setattr(sys, "argv", [module, *arguments[2:]])
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
                parsed(lambda: runpy.run_module(module, run_name="__main__"))


def source_of(program: str) -> str:
    """What `python -m` runs, or the module that it leaves its arguments to."""
    found = importlib.util.find_spec(PARSERS.get(program, program))
    assert found is not None
    if found.submodule_search_locations is not None:
        return source_of(f"{program}.__main__")
    return Path(str(found.origin)).read_text(encoding="utf-8")


def check_make(arguments: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if equals:
            assert re.search(rf"^{name} \?=", makefile, re.MULTILINE), f"the Makefile has no variable {name}"
        else:
            assert re.search(rf"^{name}:", makefile, re.MULTILINE), f"the Makefile has no target {name}"


def check_pip(arguments: list[str]) -> None:
    assert arguments[0] in ("install", "uninstall", "wheel", "download"), f"pip has no command {arguments[0]}"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for argument in arguments[1:]:
        if named := re.fullmatch(r"(?:\.|[./]*scsco-fast)\[([\w,-]+)\]", argument):
            unknown = set(named[1].split(",")) - set(project["optional-dependencies"])
            assert not unknown, f"the package has no extra {', '.join(sorted(unknown))}"


EXAMPLE = """\
Text with `scsco doctor --json`, `scsco`, and `scsco harmonize
--layer`; make it so.

- An item.

    Make of this what you want.

        make test

Text.

    SCSCO_BACKEND=eager scsco doctor   # scsco no-command
    $ cat a > b && .venv/bin/scsco build --emulated | scsco doctor

```sh
$ scsco harmonize --image a.png \\
      --mask b.png
scsco: printed
$ git clone x; python3 -m venv y
```

<!-- not run: needs a GPU -->

```python
import scsco_fast as sf
```

    from scsco_fast import ops
    scsco = ops
"""


def test_commands_and_python_are_found() -> None:
    found = [(command.line, *command.words) for command in commands_of(ROOT / "docs/a.md", EXAMPLE)]
    assert sorted(found) == [
        (1, "scsco", "doctor", "--json"),
        (1, "scsco", "harmonize", "--layer"),
        (8, "make", "test"),
        (13, ".venv/bin/scsco", "build", "--emulated"),
        (13, "scsco", "doctor"),
        (16, "scsco", "harmonize", "--image", "a.png", "--mask", "b.png"),
        (19, "python3", "-m", "venv", "y"),
    ]
    assert [(b.line, b.comment) for b in blocks(EXAMPLE) if b.is_python] == [(25, "not run: needs a GPU"), (28, "")]


def test_commands_outside_of_consoles_are_found() -> None:
    (command,) = commands_of(ROOT / "docs/a.md", "    SCSCO_BACKEND=eager scsco doctor --json > a  # or build\n")
    assert (command.words, command.assignments) == (("scsco", "doctor", "--json"), ("SCSCO_BACKEND=eager",))
    with pytest.raises(ValueError, match="No closing quotation"):
        commands_of(ROOT / "docs/a.md", "    make test ARGS='-k\n")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("scsco harmonise --image a.png", "'harmonise' is no command"),
        ("scsco harmonize --image a.png --mask b.png --output c.png --blur 3", "--blur"),
        ("scsco harmonize --image a.png --mask b.png", "--output"),
        ("scsco harmonize --image a.png --output b.png", "no mask"),
        ("scsco harmonize --image a.png --mask b.png --output c.png --keep hue", "hue"),
        ("scsco evaluate --dataset packed", "not 'packed'"),
        ("scsco evaluate --dataset a --root b", "--root belongs to"),
        ("scsco evaluate --resolution full", "no full resolution"),
        ("scsco evaluate compare a.csv", "missing"),
        ("scsco train papers", "is no preset"),
        ("scsco train demo --steps many", "many"),
        ("scsco train demo --accumulate 3", "divisor"),
        ("scsco export --format onnx --output a.pt2", "suffix"),
        ("scsco prepare a", "--check"),
        ("torchrun --nproc-per-node 2 -m scsco_fast train demo --blur", "--blur"),
        ("torchrun --processes 2 -m scsco_fast train demo", "--processes"),
        ("python -m scsco_fast.benchmark", "no module"),
        ("python -m scsco_fast.benchmarks --suite tpu", "invalid choice: 'tpu'"),
        ("python tests/no_such_file.py", "there is no"),
        ("pytest tests/no_such_folder", "there is no"),
        ("make tests", "no target tests"),
        ("make demo PYTON=python3", "no variable PYTON"),
        ('pip install -e ".[gpu]"', "no extra gpu"),
        ("SCSCO_BAKEND=eager scsco doctor", "SCSCO_BAKEND is not in"),
    ],
)
def test_wrong_commands_are_refused(line: str, reason: str, check: Callable[[Command], None]) -> None:
    (command,) = commands_of(ROOT / "docs/a.md", f"    {line}\n")
    with pytest.raises((AssertionError, ScscoError, pytest.fail.Exception), match=re.escape(reason)):
        check(command)


@pytest.mark.parametrize("name", ["sf.nn.BAIN", "sf.Regions(mask).levels", "loss.SCSCoLoss", "sf"])
def test_names_of_the_package_are_known(name: str) -> None:
    check_names(Block(1, "python", ("import scsco_fast as sf", "from scsco_fast.style import loss", name)))


@pytest.mark.parametrize("line", ["sf.nn.BAEN", "from scsco_fast.nn import BAEN", "import scsco_fast.gone"])
def test_names_that_do_not_exist_are_refused(line: str) -> None:
    with pytest.raises(AssertionError, match="there is no scsco_fast"):
        check_names(Block(1, "python", ("import scsco_fast as sf", line)))


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_commands_are_understood(command: Command, check: Callable[[Command], None]) -> None:
    check(command)


@pytest.mark.parametrize("page", PYTHON, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_runs(page: Path, empty_folder: Path) -> None:
    run_blocks(PYTHON[page], str(page))


def run_blocks(python: list[Block], name: str) -> None:
    """Run a page's blocks of Python in one namespace; a printed value that a comment shows must come out."""
    output = io.StringIO()
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in python:
        code = compile("\n" * (block.line - 1) + block.text, name, "exec")
        if block.comment.startswith("not run: "):
            assert block.comment.removeprefix("not run: ") in REASONS
            check_names(block)
            continue
        with contextlib.redirect_stdout(output), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*RANDOM", UserWarning)  # the pages say weights="random"
            exec(code, namespace)
        for shown in re.findall(r"^print\(.*\)  # ([(\[{'\d].*)$", block.text, re.MULTILINE):
            assert shown in output.getvalue().splitlines()


@pytest.mark.parametrize(
    ("comment", "line", "error"),
    [
        ("", "unknown", NameError),
        ("", "print(first + 1)  # 3", AssertionError),
        ("not run: it is long", "first", AssertionError),
        ("not run: needs a GPU", "first +", SyntaxError),
        ("not run: needs a GPU", "import scsco_fast.gone", AssertionError),
    ],
)
def test_wrong_python_is_refused(comment: str, line: str, error: type[Exception]) -> None:
    first = Block(1, "python", ("first = 1", "print(first)  # 1"))
    run_blocks([first, Block(3, "python", ("print(first + 1)  # 2",))], "a page")
    with pytest.raises(error):
        run_blocks([first, Block(3, "python", (line,), comment)], "a page")


def check_names(block: Block) -> None:
    for name in package_names(ast.parse(block.text)):
        assert exists(name), f"there is no {name}"


def package_names(tree: ast.AST) -> Iterator[str]:
    """What a block imports from this package, and the attributes that it takes of that: scsco_fast.nn.BAIN."""
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            ours = [alias for alias in node.names if alias.name.split(".")[0] == "scsco_fast"]
            yield from (alias.name for alias in ours)
            known |= {alias.asname or "scsco_fast": alias.name if alias.asname else "scsco_fast" for alias in ours}
        elif isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "scsco_fast":
            known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    yield from known.values()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            first, _, rest = ast.unparse(node).partition(".")
            if first in known and re.fullmatch(r"[\w.]+", rest):
                yield f"{known[first]}.{rest}"


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute in one; attributes of values that are made are not known."""
    first, *rest = name.split(".")
    found: Any = importlib.import_module(first)
    for part in rest:
        if hasattr(found, part):
            found = getattr(found, part)
            continue
        try:
            found = importlib.import_module(f"{found.__name__}.{part}")
        except (ImportError, AttributeError):
            return False
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", TEXTS[page], flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)#]+)\)", prose):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_durations_agree() -> None:
    """What the Makefile's help says of how long a target takes is what the pages and `scsco bench --help` say."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target, alias in (("demo", "make demo"), ("bench", "--suite cpu")):
        (wanted,) = [line for line in makefile.splitlines() if line.startswith(f"\t@echo 'make {target} ")]
        mentions = [text for page in PAGES for text in surroundings(page, f"make {target}", alias)]
        stated = {found[0] for text in mentions if (found := DURATION.search(text))}
        assert stated == set(DURATION.findall(wanted))
    assert f"cpu: a {stated.pop()};" in (ROOT / "scsco_fast/cli/bench.py").read_text(encoding="utf-8")


def surroundings(page: Path, *names: str) -> Iterator[str]:
    """Each line with one of the names; the line after it, which may end the sentence; and the comment before it."""
    lines = ["", *TEXTS[page].splitlines(), ""]
    for before, line, after in zip(lines, lines[1:], lines[2:], strict=False):
        if any(name in line for name in names):
            yield line if line.startswith("|") else "\n".join([before if before.startswith("# ") else "", line, after])


def test_the_formula_of_bain_stands_in_one_page() -> None:
    found = [
        page.relative_to(ROOT).as_posix()
        for page, text in TEXTS.items()
        for line in text.splitlines()
        if "softmax" in line and "sqrt" in line
    ]
    assert found == ["docs/method.md"]


ARCHITECTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
PACKAGES = [name for name in ORDER if name not in ("scsco_fast", "__main__")]


@pytest.mark.parametrize("name", sorted({span.strip() for span in SPAN.findall(ARCHITECTURE)}))
def test_names_of_the_architecture_exist(name: str) -> None:
    if re.fullmatch(r"[\w.-]+(/[\w.-]*)+", name):
        assert (ROOT / name).exists()
    elif re.fullmatch(r"[a-z_]\w*(\.\w+)+", name) and not name.endswith(".csv"):
        if name.startswith("kernels."):
            pytest.importorskip("triton")
        name = name.removeprefix("sf.")
        assert exists(name if name.startswith(("torch.", "scsco_fast.")) else f"scsco_fast.{name}")


def test_the_architecture_shows_every_package_in_the_order_of_imports() -> None:
    assert re.findall(r"^\| `(\w+)` \|", ARCHITECTURE, re.MULTILINE) == PACKAGES
    drawing = ElementTree.parse(ROOT / "docs/images/architecture.svg")
    bold = [text.text for text in drawing.iter("{http://www.w3.org/2000/svg}text") if "bold" in text.attrib.values()]
    boxes = [name for texts in bold for name in str(texts).split(", ") if name in PACKAGES]
    assert boxes[::-1] == PACKAGES
