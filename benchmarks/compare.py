"""Two sets of benchmark rows against each other: `scsco bench --compare A B` (docs/regression-gate.md)."""

import csv
import math
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scsco_fast.benchmarks.rows import COLUMNS, Row, key, read
from scsco_fast.errors import ScscoError

RESULTS = "benchmarks/results"  # in the repository, at any revision
LEAST = 0.03  # of the time: two runs of one program differ by so much though each has a narrow band
MEMORY_SHARE, MEMORY_MIB = 0.02, 1.0  # peaks that differ by less than the larger are the same
NUMBERS = ("ms", "ms_20", "ms_80", "peak_mib", "error", "gate")
WORSE = ("slower", "larger", "wrong", "untimed", "missing")
SAME = "within noise"


@dataclass(frozen=True)
class Verdict:
    """What became of a row: a word (`WORSE`, "faster", "smaller", "right", "new", `SAME`), and a line about it."""

    word: str
    line: str


def compare(first: str, second: str, say: Callable[[str], object]) -> int:
    """Say what differs from `first` to `second`, each a file of rows, a folder of such files, or a git revision.

    Returns:
        The exit code: 1 if a row of `first` became slower, larger, wrong, or has no time or no row any more; else 0.

    Raises:
        ScscoError: one of the two has no rows, or no machine is in both.
    """
    before, after = (_by_place(load(source)) for source in (first, second))
    shared = [place for place in before if place in after]
    for source, places in ((first, before), (second, after)):
        for place, rows in places.items():
            run = next(reversed(rows.values()))
            only = "" if place in shared else "; only here, so not compared"
            say(f"{source}: {len(rows)} rows of {place}, git {run.git}, torch {run.torch}, triton {run.triton}{only}")
    if not shared:
        raise ScscoError(
            f"{first} is of {' and '.join(before)}, {second} of {' and '.join(after)}: times of different machines are "
            "not compared; run the suite again on one"
        )
    words = Counter[str]()
    for place in shared:
        for verdict in verdicts(before[place], after[place]):
            words[verdict.word] += 1
            if verdict.word not in (SAME, "new"):
                say(verdict.line)
    order = (SAME, "faster", "smaller", "right", "new", *WORSE)
    say(", ".join(f"{words[word]} {word}" for word in order if words[word]))
    return 1 if any(words[word] for word in WORSE) else 0


# --- reading ----------------------------------------------------------------------------------------------------------


def load(source: str) -> list[Row]:
    """The rows of a file, of a folder's CSV files, or of the result files committed at a revision.

    Raises:
        ScscoError: it is none of them, or has no rows; the message is one line.
    """
    path = Path(source)
    if path.is_dir():
        rows = _of_files(sorted(path.glob("*.csv")), source)
    elif path.is_file():
        rows = _of_file(path)
    elif path.suffix in (".csv", ".jsonl"):
        raise ScscoError(f"{source}: no such file; wanted one that scsco bench wrote, or a git revision")
    else:
        rows = _of_revision(source)
    if not rows:
        raise ScscoError(f"{source}: has no rows; wanted a file that scsco bench wrote")
    return rows


def _of_file(path: Path) -> list[Row]:
    if not path.stat().st_size:
        raise ScscoError(f"{path}: is empty; wanted rows that scsco bench wrote")
    if path.suffix != ".jsonl":
        _check_columns(path)
    rows = read(path)
    for number, row in enumerate(rows, 1):
        for name in NUMBERS:
            value: Any = getattr(row, name)
            if value is not None and not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
                raise ScscoError(
                    f"{path}: {name} of row {number} is {value!r}; wanted a number of at least 0, or nothing"
                )
    return rows


def _check_columns(path: Path) -> None:
    """`read` refuses the same, naming every column; of another program's table that is all of them."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            found = next(csv.reader(file), [])
    except (ValueError, csv.Error) as error:
        raise ScscoError(f"{path}: is no CSV file ({error}); wanted rows that scsco bench wrote") from error
    groups = {
        "unknown": [name for name in found if name not in COLUMNS],
        "missing": [name for name in COLUMNS if name not in found],
    }
    odd = [f"{kind} {', '.join(names[:3])}{', ...' * (len(names) > 3)}" for kind, names in groups.items() if names]
    if odd:
        raise ScscoError(f"{path}: columns {' and '.join(odd)}; wanted rows that scsco bench wrote")


def _of_files(paths: Sequence[Path], source: str) -> list[Row]:
    """The rows of all that have any: a folder of results may hold tables of other programs."""
    rows: list[Row] = []
    reasons: list[str] = []
    for path in paths:
        try:
            rows += _of_file(path)
        except ScscoError as error:
            reasons.append(str(error).replace(f"{path}: ", f"{path.name}: "))
    if not rows:
        because = f" ({'; '.join(reasons)})" if reasons else ""
        raise ScscoError(f"{source}: no file of benchmark rows is there{because}")
    return rows


def _of_revision(revision: str) -> list[Row]:
    folder = Path(__file__).parent
    commit = "" if revision.startswith("-") else _git(folder, "rev-parse", "--verify", "-q", f"{revision}^{{commit}}")
    if not commit:
        raise ScscoError(f"{revision}: neither a file, nor a folder, nor a git revision of this checkout")
    commit = commit.strip()
    names = _git(folder, "ls-tree", "--full-tree", "--name-only", commit, f"{RESULTS}/").splitlines()
    with tempfile.TemporaryDirectory() as temporary:
        paths = [Path(temporary) / Path(name).name for name in names if name.endswith(".csv")]
        for path in paths:
            path.write_text(_git(folder, "show", f"{commit}:{RESULTS}/{path.name}"), encoding="utf-8")
        return _of_files(paths, f"revision {revision}, {RESULTS}")


def _git(folder: Path, *arguments: str) -> str:
    """What git prints, or "" where it fails or is not there."""
    try:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout if done.returncode == 0 else ""


def _by_place(rows: Sequence[Row]) -> dict[str, dict[tuple[Any, ...], Row]]:
    """The last row of each key, by the machine that it was taken on."""
    places: dict[str, dict[tuple[Any, ...], Row]] = {}
    for row in rows:
        on_cpu = row.driver == "none"
        place = f"{row.device}, {row.threads} threads" if on_cpu else row.device
        places.setdefault(place, {})[key(row)] = row
    return places


# --- the verdict ------------------------------------------------------------------------------------------------------


def verdicts(before: dict[tuple[Any, ...], Row], after: dict[tuple[Any, ...], Row]) -> list[Verdict]:
    """One for each row of one machine, by key; two where both time and memory changed."""
    found: list[Verdict] = []
    for name, row in before.items():
        if name in after:
            changed = [
                verdict for verdict in (time(row, after[name]), memory(row, after[name])) if verdict.word != SAME
            ]
            found += changed or [Verdict(SAME, "")]
        else:
            found.append(Verdict("missing", f"missing: {title(row)}"))
    return found + [Verdict("new", f"new: {title(row)}") for name, row in after.items() if name not in before]


def time(before: Row, after: Row) -> Verdict:
    """Faster or slower only where the bands from 20 % to 80 % do not meet and the medians are further apart than the
    wider band is wide, and than `LEAST` of the first; else, and where a row has no band, within noise.
    """
    if is_wrong(after):
        word = SAME if is_wrong(before) else "wrong"
        return Verdict(word, f"{word}: {title(after)}: error {after.error:.1e}, allowed {after.gate:.1e}")
    if is_wrong(before):
        return Verdict("right", f"right: {title(after)}: error {after.error or 0:.1e}")
    if before.ms is None or after.ms is None:
        if before.ms is None:
            return Verdict(SAME, "")
        return Verdict(
            "untimed", f"untimed: {title(after)}: had {before.ms:.4g} ms; {after.note or 'no reason is noted'}"
        )
    if None in (before.ms_20, before.ms_80, after.ms_20, after.ms_80):
        return Verdict(SAME, "")
    (low, high), (new_low, new_high) = _band(before), _band(after)
    apart = abs(after.ms - before.ms)
    if max(low, new_low) <= min(high, new_high) or apart <= max(high - low, new_high - new_low, LEAST * before.ms):
        return Verdict(SAME, "")
    word = "faster" if after.ms < before.ms else "slower"
    times = f"{before.ms:.4g} ms ({low:.4g} to {high:.4g}) -> {after.ms:.4g} ({new_low:.4g} to {new_high:.4g})"
    return Verdict(word, f"{word} by {apart / before.ms:.1%}: {title(after)}: {times}")


def memory(before: Row, after: Row) -> Verdict:
    """Larger or smaller where the peaks differ by more than `MEMORY_SHARE` of the first and `MEMORY_MIB`."""
    if before.peak_mib is None or after.peak_mib is None:
        return Verdict(SAME, "")
    apart = after.peak_mib - before.peak_mib
    if abs(apart) <= max(MEMORY_SHARE * before.peak_mib, MEMORY_MIB):
        return Verdict(SAME, "")
    word = "larger" if apart > 0 else "smaller"
    return Verdict(word, f"{word}: {title(after)}: peak {before.peak_mib:.1f} MiB -> {after.peak_mib:.1f}")


def is_wrong(row: Row) -> bool:
    return row.error is not None and row.gate is not None and row.error > row.gate


def _band(row: Row) -> tuple[float, float]:
    return row.ms_20 or 0.0, row.ms_80 or 0.0


def title(row: Row) -> str:
    """The key for a reader: "region_norm triton forward float32 (4, 64, 128, 128) 0.2 foreground"."""
    shape = f"({row.batch}, {row.channels}, {row.size}, {row.size})"
    words = (row.op, row.backend, row.mode, row.dtype, shape, f"{row.foreground:.3g} foreground", row.detail)
    return " ".join(word for word in words if word)
