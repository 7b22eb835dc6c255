"""Checks a whole dataset: decodes every file in worker processes and reports whatever cannot be used, by name."""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, TextIO

import numpy as np
from PIL import Image

from scsco_fast.data.images import PICTURE_SUFFIXES, read_picture
from scsco_fast.data.layouts import (
    EQUAL_NAMES,
    OFFICIAL,
    ONE_FOLDER,
    SPLITS,
    Layout,
    Member,
    find_layout,
    listed_splits,
)
from scsco_fast.data.masks import binary_mask, one_sided, read_mask
from scsco_fast.data.workers import TIME_LIMIT, Lost, run_tasks
from scsco_fast.errors import ScscoError
from scsco_fast.system.files import replacing

Kind = Literal["list", "name", "missing", "repeated", "shared", "unreadable", "size", "mask", "polarity"]

# Foregrounds take 4.7 % of iHarmony4's pictures in the median; a mean above this is a set of inverted masks.
LARGEST_COVERAGE = 0.8

_FORMAT = 2  # a journal of an older one is not read: its masks of 0 and 1 count as empty
_FLUSH_EVERY = 50


class Problem(NamedTuple):
    """One thing that is wrong: its kind, the file (or list, or folder) that has it, and a line that says what."""

    kind: Kind
    file: str
    reason: str


@dataclass(frozen=True)
class Facts:
    """What decoding one file has shown; `error` is None where it went well, `coverage` is a mask's share above 127."""

    width: int = 0
    height: int = 0
    coverage: float | None = None
    error: str | None = None


@dataclass
class CheckReport:
    """What `check_dataset` found.

    Attributes:
        root: the folder.
        dialects: how each split lies on disk, in words.
        samples: number of complete samples of each split.
        files: number of files that were looked at.
        decoded: number of files decoded by this call; the others were known from the call that was interrupted.
        unlisted: composites that no list names; they are decoded, and otherwise no problem.
        coverage: mean share of foreground over the masks that can be read; None where there are none.
        problems: everything that is wrong.
    """

    root: str
    dialects: dict[str, str] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)
    files: int = 0
    decoded: int = 0
    unlisted: int = 0
    coverage: float | None = None
    problems: list[Problem] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Number of problems of each kind that occurs."""
        return dict(Counter(problem.kind for problem in self.problems))

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the report as JSON, whole or not at all."""
        content = {
            **{name: value for name, value in asdict(self).items() if name != "problems"},
            "counts": self.counts(),
            "problems": [problem._asdict() for problem in self.problems],
        }
        with replacing(os.fspath(path)) as temporary:
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")


class _Probe(NamedTuple):
    path: str
    is_mask: bool


def check_dataset(
    root: str | os.PathLike[str],
    journal: str | os.PathLike[str],
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
    time_limit: float = TIME_LIMIT,
) -> CheckReport:
    """Decode every file of a dataset and find whatever cannot be used.

    Looked at are the files that the lists name and whatever else lies in the folders of composites, masks and real
    pictures. What is learnt of a file is added to `journal` at once, keyed by its path, size and time of change, so an
    interrupted check goes on where it stopped, and a second one decodes only what changed.

    Args:
        root: a dataset in any of the dialects of `scsco_fast.data.layouts`; real pictures may be absent altogether.
        journal: file of one line per decoded file.
        workers: processes that decode; 0 decodes in this one, without a time limit and without surviving a crash of a
            decoder.
        progress: called with the number of files done and in all.
        time_limit: seconds for one file.

    Raises:
        ScscoError: `root` is no folder, holds no dataset, or the journal cannot be written.

    Examples:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> for folder, mode in (("composite", "RGB"), ("mask", "L")):
        ...     (root / folder).mkdir()
        ...     Image.new(mode, (8, 8), "black").save(root / folder / "a.png")
        >>> report = check_dataset(root, root / "journal.jsonl")
        >>> [(problem.kind, Path(problem.file).name) for problem in report.problems]
        [('mask', 'a.png')]
    """
    root = Path(root)
    if not root.is_dir():
        raise ScscoError(f"{root}: no such folder; give the folder of a dataset")
    report = CheckReport(str(root))
    layouts = list(_layouts(root, report))
    members = {member.composite: member for layout in layouts for member in layout.members}
    probes = _probes(root, layouts, members, report)
    if not probes:
        raise ScscoError(f"{root}: holds no dataset; composite_images/ and masks/, or composite/ and mask/, are wanted")
    facts = _probe_all(root, probes, Path(journal), workers, time_limit, report, progress)
    report.files = len(probes)
    report.problems += [Problem("unreadable", path, fact.error) for path, fact in facts.items() if fact.error]
    for member in members.values():
        report.problems += _member_problems(member, facts)
    report.problems += _polarity(root, facts, report)
    report.problems = list(dict.fromkeys(report.problems))  # composites share masks and real pictures
    return report


def probe(task: _Probe) -> Facts:
    """Decode one file; whatever is wrong with it is in `error`, never an exception."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if not task.is_mask:
                height, width = read_picture(task.path).rgb.shape[:2]
                return Facts(width, height)
            mask = read_mask(task.path)
            return Facts(mask.shape[1], mask.shape[0], float(binary_mask(mask).mean(dtype=np.float64)))
    except ScscoError as error:
        return Facts(error=str(error))
    except Exception as error:  # a decoder can raise anything on a file made to break it
        return Facts(error=f"{task.path}: cannot be decoded ({type(error).__name__}: {' '.join(str(error).split())})")


def _layouts(root: Path, report: CheckReport) -> Iterator[Layout]:
    """The layout of each split that there is, with what is wrong with its list noted."""
    try:
        splits = listed_splits(root) or SPLITS[:1]
    except ScscoError as error:
        report.problems.append(Problem("list", str(root), str(error)))
        splits = list(SPLITS)
    for split in splits:
        try:
            layout = find_layout(root, split)
            if not layout.members:
                layout = find_layout(root, split, real_required=False)
        except ScscoError as error:
            report.problems.append(Problem("list", str(root), str(error)))
            continue
        name = split if layout.listed else "all"
        report.dialects[name], report.samples[name] = layout.dialect, len(layout.members)
        if not (layout.members or layout.malformed or layout.missing):
            report.problems.append(Problem("list", str(root), layout.no_sample()))
        report.problems += [Problem("name", *_split_off(line)) for line in layout.malformed]
        report.problems += [Problem("missing", *_split_off(line)) for line in layout.missing]
        report.problems += [
            Problem("repeated", path, f"{path}: listed more than once in {split}") for path in layout.repeated
        ]
        if split == SPLITS[0]:
            report.problems += [
                Problem("shared", path, f"{path}: in the list of train and of test") for path in layout.shared
            ]
        yield layout


def _split_off(line: str) -> tuple[str, str]:
    return line.partition(": ")[0], line


def _probes(
    root: Path, layouts: Iterable[Layout], members: Mapping[Path, Member], report: CheckReport
) -> dict[str, _Probe]:
    """Every file to decode, by path: the members' and what else lies in their folders; wrong names are noted."""
    masks = {member.mask for member in members.values()}
    used = {path for member in members.values() for path in member[1:] if path is not None}
    probes = {str(path): _Probe(str(path), path in masks) for path in sorted(used)}
    for folder, part, parts in _part_folders(root, layouts):
        try:
            found = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            report.problems.append(Problem("unreadable", str(folder), f"{folder}: cannot be listed ({error.strerror})"))
            continue
        for entry in found:
            if Path(entry.path) in used or (parts == ONE_FOLDER and not entry.name.lower().endswith(PICTURE_SUFFIXES)):
                continue
            probes[entry.path] = _Probe(entry.path, part == parts[1])
            wanted = _wanted_name(entry.name, part, parts)
            if wanted is not None:
                reason = f"{entry.path}: the name is not one of the layout; {wanted} is wanted"
                report.problems.append(Problem("name", entry.path, reason))
            elif part == parts[0]:
                report.unlisted += 1
    return probes


def _part_folders(root: Path, layouts: Iterable[Layout]) -> Iterator[tuple[Path, str, tuple[str, str, str]]]:
    """The folders of composites, masks and real pictures at `root` and one folder below it."""
    try:
        below = sorted(path for path in root.iterdir() if path.is_dir())
    except OSError as error:
        raise ScscoError(f"{root}: cannot be listed ({error.strerror}); check its permissions") from error
    for folder in (root, *below):
        for parts in (OFFICIAL, EQUAL_NAMES):
            # "mask" alone may be anything; beside composites it is theirs.
            if (folder / parts[0]).is_dir():
                yield from ((folder / part, part, parts) for part in parts if os.path.lexists(folder / part))
    if any(layout.members and layout.members[0].composite.parent == root for layout in layouts):
        yield root, ".", ONE_FOLDER


def _wanted_name(name: str, part: str, parts: tuple[str, str, str]) -> str | None:
    """The form that a file's name should have; None where it has it."""
    stem, _, suffix = name.rpartition(".")
    underscores = {OFFICIAL[0]: 2, OFFICIAL[1]: 1}.get(part, 0)
    if f".{suffix.lower()}" in PICTURE_SUFFIXES and stem and stem.count("_") >= underscores:
        return None
    if parts == ONE_FOLDER:
        return None
    form = {2: "ID_M_K", 1: "ID_M", 0: "ID" if parts == OFFICIAL else "NAME"}[underscores]
    return f"{form} with one of the suffixes {', '.join(PICTURE_SUFFIXES)}"


def _probe_all(
    root: Path,
    probes: Mapping[str, _Probe],
    journal: Path,
    workers: int,
    time_limit: float,
    report: CheckReport,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Facts]:
    """The facts of every file, in the order of `probes`; those that the journal knows are not decoded again."""
    keys = {path: _key(root, task) for path, task in probes.items()}
    known = _read_journal(journal)
    facts = {path: known[key] for path, key in keys.items() if key is not None and key in known}
    todo = [task for path, task in probes.items() if path not in facts]
    try:
        with _append_to(journal, known) as file, closing(run_tasks(probe, todo, workers, time_limit)) as outcomes:
            for task, outcome in outcomes:
                fact = Facts(error=f"{task.path}: {outcome.reason}") if isinstance(outcome, Lost) else outcome
                facts[task.path] = fact
                report.decoded += 1
                key = keys[task.path]
                # A process may be lost to a busy or full machine as well as to its file: that one is tried again.
                if key is not None and not isinstance(outcome, Lost):
                    file.write(_journal_line(key, fact))
                if report.decoded % _FLUSH_EVERY == 0:
                    file.flush()
                if progress is not None:
                    progress(len(facts), len(probes))
    except OSError as error:
        raise ScscoError(f"{journal}: cannot be written ({error.strerror or error}); make room") from error
    return {path: facts[path] for path in probes}


Key = tuple[str, int, int, bool]


def _key(root: Path, task: _Probe) -> Key | None:
    """Path below the dataset, size, time of change, and whether it was read as a mask; None where there is no file."""
    try:
        status = os.stat(task.path)
    except (OSError, ValueError):
        return None
    return os.path.relpath(task.path, root), status.st_size, status.st_mtime_ns, task.is_mask


def _journal_line(key: Key, fact: Facts) -> str:
    return json.dumps([_FORMAT, list(key), fact.width, fact.height, fact.coverage, fact.error]) + "\n"


def _read_journal(path: Path) -> dict[Key, Facts]:
    """What the lines that are whole say; a line that a kill cut short is left out."""
    known: dict[Key, Facts] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return known
    for line in lines:
        try:
            version, (name, size, changed, is_mask), width, height, coverage, error = json.loads(line)
            if version == _FORMAT:
                known[name, size, changed, is_mask] = Facts(width, height, coverage, error)
        except (ValueError, TypeError):
            continue
    return known


def _append_to(journal: Path, known: Mapping[Key, Facts]) -> TextIO:
    """The journal, rewritten with its whole lines and open for more."""
    with replacing(journal) as temporary:
        temporary.write_text("".join(_journal_line(key, fact) for key, fact in known.items()), encoding="utf-8")
    return journal.open("a", encoding="utf-8")


def _member_problems(member: Member, facts: Mapping[str, Facts]) -> Iterator[Problem]:
    """What is wrong between the files of a sample that can be read one by one."""
    composite, mask = facts[str(member.composite)], facts[str(member.mask)]
    if composite.error is None:
        for name, path in (("mask", member.mask), ("real picture", member.real)):
            other = facts.get(str(path))
            if other is None or other.error is not None:
                continue
            if (other.width, other.height) != (composite.width, composite.height):
                yield Problem(
                    "size",
                    str(path),
                    f"{path}: the {name} is {other.width}x{other.height} but {member.composite.name} is "
                    f"{composite.width}x{composite.height}",
                )
    reason = None if mask.coverage is None else one_sided(mask.coverage)
    if reason is not None:
        yield Problem("mask", str(member.mask), f"{member.mask}: {reason}")


def _polarity(root: Path, facts: Mapping[str, Facts], report: CheckReport) -> Iterator[Problem]:
    coverages = [fact.coverage for fact in facts.values() if fact.coverage is not None]
    if not coverages:
        return
    report.coverage = float(np.mean(coverages))
    warning = suspected_polarity(report.coverage)
    if warning is not None:
        yield Problem("polarity", str(root), f"{root}: {warning}")


def suspected_polarity(coverage: float) -> str | None:
    """A warning where masks cover more of their pictures, on average, than foregrounds do; None where they do not."""
    if coverage <= LARGEST_COVERAGE:
        return None
    return (
        f"the masks cover {100 * coverage:.0f} % of their pictures on average: they are probably inverted "
        "(white is foreground)"
    )
