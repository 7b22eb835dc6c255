"""One measurement, the machine it was taken on, and the files that keep it: CSV and JSON Lines, appended, never edited.

Every program of this folder that times an operation or a network writes these rows. The fields are three groups:
`WHERE` says when, of which revision and on which machine; `KEY` says what was measured, so that rows of two runs with
the same key (and device) can be compared; `MEASURED` is what came out.
"""

import csv
import json
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch

from scsco_fast.errors import ScscoError
from scsco_fast.system.environment import cpu_name, git_revision

RESULTS = Path(__file__).parent / "results"
MODES = ("forward", "backward", "forward+backward", "step")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One variant of one case. What was not measured is None, and `note` says why.

    Attributes:
        suite: the suite or program that asked for it.
        time: local time, ISO 8601. git: revision, with a + where the working tree was changed.
        device: name of the GPU or CPU. threads: of torch on the CPU. driver, triton, cuda: version or "none".
        copy_gbs: bytes read and written per second by a copy, in GB/s, measured in the same run.
        matmul_tflops: rate of a matmul in the row's dtype, in TFLOP/s, measured in the same run.
        op: an operation of `scsco_fast.ops`, or "inference", or "training_step".
        backend: of `scsco_fast.ops.backends()`, or a baseline: "reference compiled", "SDPA", ...
        mode: one of `MODES`.
        dtype: of the inputs: "float32", "bfloat16", ...
        batch, channels, size: of a (batch, channels, size, size) map; channels of a network are its base width.
        foreground: share of the pixels that are foreground, in [0, 1].
        detail: what else tells two cases apart: "reinhard", "5 others".
        ms, ms_20, ms_80: median and 20 % and 80 % quantiles in milliseconds.
        flop, nbytes: operations that the formula counts, and bytes that have to be moved at least; None: no formula.
        gbs, tflops: nbytes and flop per second of the median.
        bound: "memory" or "compute": the ceiling that the formula meets first.
        share: of that ceiling, 1 = reached.
        peak_mib: memory in use at most, above what was in use before.
        error: largest error against float64, relative to the largest value; worst of outputs and gradients.
        gate: the error that is allowed; a row with more has no time.
        note: why something is missing, or what was done outside the timed part.
    """

    suite: str
    time: str
    git: str
    device: str
    threads: int
    driver: str
    torch: str
    triton: str
    cuda: str
    copy_gbs: float | None = None
    matmul_tflops: float | None = None
    op: str
    backend: str
    mode: str
    dtype: str
    batch: int
    channels: int
    size: int
    foreground: float
    detail: str = ""
    ms: float | None = None
    ms_20: float | None = None
    ms_80: float | None = None
    flop: float | None = None
    nbytes: float | None = None
    gbs: float | None = None
    tflops: float | None = None
    bound: str = ""
    share: float | None = None
    peak_mib: float | None = None
    error: float | None = None
    gate: float | None = None
    note: str = ""


COLUMNS = tuple(field.name for field in fields(Row))
WHERE = COLUMNS[: COLUMNS.index("op")]
KEY = COLUMNS[COLUMNS.index("op") : COLUMNS.index("ms")]
MEASURED = COLUMNS[COLUMNS.index("ms") :]


def key(row: Row) -> tuple[Any, ...]:
    """What was measured: equal for the same case in two runs."""
    return tuple(getattr(row, name) for name in KEY)


def without_backend(row: Row) -> tuple[Any, ...]:
    """The case: equal for the backends and baselines that compete."""
    return tuple(getattr(row, name) for name in KEY if name != "backend")


def latest(rows: Iterable[Row]) -> list[Row]:
    """Of rows with the same key and device the one that stands last."""
    return list({(row.device, *key(row)): row for row in rows}.values())


def machine(device: str) -> dict[str, Any]:
    """The `WHERE` fields but `suite` and the ceilings, for "cpu" or "cuda".

    Examples:
        >>> from scsco_fast.benchmarks.rows import WHERE, machine
        >>> set(WHERE) - set(machine("cpu"))
        {'suite', 'copy_gbs', 'matmul_tflops'}
    """
    on_gpu = device == "cuda"
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "git": git_revision(short=True),
        "device": torch.cuda.get_device_name() if on_gpu else cpu_name(),
        "threads": torch.get_num_threads(),
        "driver": driver() if on_gpu else "none",
        "torch": torch.__version__,
        "triton": triton_version(),
        "cuda": torch.version.cuda or "none",
    }


@cache
def driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return (done.stdout.splitlines() or ["unknown"])[0].strip()


@cache
def triton_version() -> str:
    try:
        import triton
    except ImportError:
        return "none"
    return triton.__version__


def append(rows: Sequence[Row], path: Path) -> None:
    """Add rows to `path` (.csv) and to its neighbour of suffix .jsonl; the files and their folder are made if missing.

    Raises:
        ScscoError: `path` has other columns, or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        if not new:
            _check_columns(path)
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerows(asdict(row) for row in rows)
        with path.with_suffix(".jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(row), allow_nan=False) + "\n" for row in rows)
    except OSError as error:
        raise ScscoError(f"{path}: cannot be written ({error.strerror or error})") from error


def read(path: Path) -> list[Row]:
    """The rows of a file of `append`, by its suffix CSV or JSON Lines.

    Raises:
        ScscoError: it cannot be read, has other columns, or a line is no row; the message names it.
    """
    try:
        if path.suffix == ".jsonl":
            return [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        _check_columns(path)
        with path.open(newline="", encoding="utf-8") as file:
            return [_from_texts(record) for record in csv.DictReader(file)]
    except OSError as error:
        raise ScscoError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ScscoError(f"{path}: a line is no row of a benchmark ({error}); delete what was cut off") from error


def _from_texts(record: dict[str, str]) -> Row:
    values: dict[str, Any] = {}
    for field in fields(Row):
        kind: Any = field.type
        text = record[field.name]
        values[field.name] = kind(text) if kind in (str, int, float) else float(text) if text else None
    return Row(**values)


def _check_columns(path: Path) -> None:
    with path.open(newline="", encoding="utf-8") as file:
        found = next(csv.reader(file), [])
    if tuple(found) != COLUMNS:
        odd = sorted(set(found) ^ set(COLUMNS)) or ["their order"]
        raise ScscoError(f"{path}: columns differ from this version's in {', '.join(odd)}; write to another file")
