"""The commands and code blocks of the documentation, as a reader would copy them: what `test_docs.py` checks."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *(ROOT / "README.md", ROOT / "CONTRIBUTING.md"),
    *sorted((ROOT / "integrations").glob("*/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
PROGRAMS = ("scsco", "make", "pip", "python", "python3", "torchrun", "accelerate", "pytest")
SHELLS = ("", "sh", "bash", "shell", "console")
_FENCE = re.compile(r"( *)(`{3,}|~{3,})\s*(\w*)")
_LIST_ITEM = re.compile(r" {0,3}([-*+]|\d+[.)]) ")
_COMMENT = re.compile(r"<!--\s*(.*?)\s*-->$")
_ASSIGNMENT = re.compile(r"[A-Z_][A-Z0-9_]*=")
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_ENDS = {"&&", "||", ";", "|", "&"}


@dataclass(frozen=True)
class Block:
    """A block of code: where it begins, what a fence says of its language, and the HTML comment right before it."""

    line: int
    language: str
    lines: tuple[str, ...]
    comment: str = ""

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"

    @property
    def is_python(self) -> bool:
        first = next((line for line in self.lines if line.strip()), "")
        return self.language == "python" or (not self.language and re.match(r"(import|from) \w", first) is not None)


@dataclass(frozen=True)
class Command:
    """One command of a page; `is_whole` unless it stands in a sentence, where options may be left out."""

    page: Path
    line: int
    words: tuple[str, ...]
    assignments: tuple[str, ...] = ()
    is_whole: bool = True

    @property
    def program(self) -> str:
        return Path(self.words[0]).name

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line} {shlex.join(self.words)}"


def blocks(text: str) -> list[Block]:
    """The fenced and indented code blocks of a Markdown page."""
    found: list[Block] = []
    lines = text.splitlines()
    in_list, index = False, 0
    while index < len(lines):
        line, before = lines[index], lines[index - 1] if index else ""
        if fence := _FENCE.match(line):
            end = next((i for i in range(index + 1, len(lines)) if lines[i].strip() == fence[2]), len(lines))
            inside = tuple(inner.removeprefix(fence[1]) for inner in lines[index + 1 : end])
            found.append(Block(index + 2, fence[3], inside, _comment_before(lines, index)))
            index = end + 1
            continue
        width = 8 if in_list else 4  # four spaces continue an item of a list
        if not before.strip() and line.startswith(" " * width) and line.strip():
            end = next(
                (i for i in range(index, len(lines)) if lines[i].strip() and lines[i][:width].strip()), len(lines)
            )
            inside = tuple(inner[width:] for inner in lines[index:end])
            found.append(Block(index + 1, "", inside, _comment_before(lines, index)))
            index = end
            continue
        if _LIST_ITEM.match(line):
            in_list = True
        elif not before.strip() and line[:1].strip():
            in_list = False
        index += 1
    return found


def _comment_before(lines: list[str], index: int) -> str:
    line = next((line for line in reversed(lines[:index]) if line.strip()), "")
    comment = _COMMENT.search(line)
    return comment[1] if comment else ""


def commands_of(page: Path, text: str) -> list[Command]:
    """Every command of a page that starts a program of `PROGRAMS` or a file of the repository, in code or in a span."""
    found: list[Command] = []
    inside = text.splitlines()
    for block in blocks(text):
        inside[block.line - 1 : block.line - 1 + len(block.lines)] = [""] * len(block.lines)
        if block.language in SHELLS and not block.is_python:
            for line, shell in _shell_lines(block):
                found += [Command(page, line, *parts) for parts in _simple_commands(shell)]
    prose = "\n".join(inside)
    for span in SPAN.finditer(prose):
        if "\n\n" in span[1]:
            continue
        line = prose.count("\n", 0, span.start()) + 1
        # A cell of a table that is nothing else is there to be copied.
        is_whole = re.search(r"\|\s*$", prose[: span.start()]) and re.match(r"\s*\|", prose[span.end() :])
        for words, assignments in _simple_commands(" ".join(span[1].split())):
            if len(words) > 1:
                found.append(Command(page, line, words, assignments, bool(is_whole)))
    return found


def _shell_lines(block: Block) -> Iterator[tuple[int, str]]:
    """The lines of a block that a shell would get, continued ones joined, prompts and what is printed left out."""
    has_prompts = any(line.startswith("$ ") for line in block.lines)
    index = 0
    while index < len(block.lines):
        start, line = index, block.lines[index]
        while line.rstrip().endswith("\\") and index + 1 < len(block.lines):
            index += 1
            line = line.rstrip()[:-1] + " " + block.lines[index].strip()
        index += 1
        if not has_prompts or line.startswith("$ "):
            yield block.line + start, line.removeprefix("$ ").strip()


def _simple_commands(line: str) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Words and assignments of each command of a line that starts a program that is known here."""
    reader = shlex.shlex(line, posix=True, punctuation_chars=True)
    reader.whitespace_split = True
    try:
        tokens = list(reader)
    except ValueError:  # a quotation that does not end: prose, unless a program is started
        if Path(line.split()[0]).name in PROGRAMS:
            raise
        return []
    found = []
    for words in _split(tokens):
        assignments = [word for word in words if _ASSIGNMENT.match(word)][: _leading_assignments(words)]
        words = words[len(assignments) :]
        if words and (Path(words[0]).name in PROGRAMS or ("/" in words[0] and (ROOT / words[0]).is_file())):
            found.append((tuple(words), tuple(assignments)))
    return found


def _leading_assignments(words: list[str]) -> int:
    return next((index for index, word in enumerate(words) if not _ASSIGNMENT.match(word)), len(words))


def _split(tokens: list[str]) -> Iterator[list[str]]:
    """The commands of a line, without what they are redirected to."""
    words: list[str] = []
    skip = False
    for token in tokens:
        if token in _ENDS:
            yield words
            words = []
        elif set(token) <= {"<", ">", "&"}:
            skip = True
        elif skip:
            skip = False
        else:
            words.append(token)
    yield words
