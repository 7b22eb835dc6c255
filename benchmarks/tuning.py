"""Which of a fixed list of configurations of the attention's kernels is fastest on the GPU at hand.

`scsco bench --tune` and the stage `tune` of the GPU pass time the candidates of kernels/bain_attention/candidates.txt
that fit, each after it was held to float64, and write each kernel's winner as soon as it is known.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from scsco_fast import kernels
from scsco_fast.benchmarks import operations, rows
from scsco_fast.benchmarks.measure import error_of, reason
from scsco_fast.benchmarks.operations import Case, Variant
from scsco_fast.benchmarks.rows import Row
from scsco_fast.benchmarks.timing import Work, note_of, sets_that_fill_a_cache, take_turns
from scsco_fast.errors import ScscoError

if TYPE_CHECKING:
    from scsco_fast.kernels.bain_attention.table import Config, Key

BATCH, FOREGROUND = 16, 0.2
SIDES = {64: 128, 128: 64, 512: 32}  # pixels of a map's side by channels: where the decoder spends most of its time
TURNS = 0.05  # seconds of a candidate's turns
# Largest error of outputs, and of gradients. TF32 rounds operands to 2^-11, bfloat16 to 2^-9 of a value.
GATE = {"half": (3e-2, 6e-2), "tf32": (1e-2, 2e-2), "ieee": (1e-3, 1e-2)}


class Where(NamedTuple):
    """On which maps a line's kernels are timed."""

    device: str
    dtype: torch.dtype
    batch: int
    size: int


class Trial(NamedTuple):
    """What became of one candidate: time of the forward or of the whole backward, or the reason why it has none."""

    kernel: str
    config: "Config"
    error: float | None = None
    ms: float | None = None
    low: float | None = None  # 20 % and 80 % quantile
    high: float | None = None
    events: str = ""  # why it was timed by events, as in Timing
    reason: str = ""


def where_of(key: "Key") -> Where:
    """The maps of the decoder's level that has this line's channels."""
    return Where("cuda", torch.bfloat16 if key[1] == "half" else torch.float32, BATCH, SIDES[key[2]])


def trial(key: "Key", kernel: str, config: "Config", where: Where, seconds: float = TURNS) -> Trial:
    """Hold one kernel of a line under a configuration to float64, and time it; the others are as the table has them."""
    from scsco_fast.kernels.bain_attention.candidates import as_line

    found = Trial(kernel, config)
    case, variant = case_of(key, where)
    backward = kernel != "fwd"
    try:
        with as_line(key, kernel, config), matmul_precision(key[1]):
            wrong = error_of(case, variant, backward)
            if not wrong <= GATE[key[1]][backward]:
                return found._replace(error=wrong, reason=f"wrong: allowed {GATE[key[1]][backward]:.0e}")
            sets = [variant.inputs(seed) for seed in range(sets_that_fill_a_cache(variant.inputs(0)))]
            work = Work(variant.function, sets, "backward" if backward else "forward")
            timing = take_turns({kernel: work}, seconds)[kernel]
    except Exception as problem:  # it needs more shared memory than there is, or does not compile
        return found._replace(reason=reason(problem))
    if isinstance(timing, Exception):
        return found._replace(error=wrong, reason=reason(timing))
    return found._replace(error=wrong, ms=timing.ms, low=timing.low, high=timing.high, events=timing.events)


def compile_kernels(key: "Key", kernel: str, config: "Config", where: Where) -> None:
    """One call, so that what a trial launches is in Triton's cache."""
    from scsco_fast.kernels.bain_attention.candidates import as_line

    _, variant = case_of(key, where)
    tensors = variant.inputs(0)
    with as_line(key, kernel, config), matmul_precision(key[1]):
        outputs = variant.function(*tensors)
        if kernel != "fwd":
            torch.autograd.grad(outputs, tensors, [torch.ones_like(output) for output in outputs])


@lru_cache(maxsize=1)
def case_of(key: "Key", where: Where) -> tuple[Case, Variant]:
    """The attention on these maps; its truth is kept for the line's other candidates."""
    with operations.emulated_backends():
        case = operations.bain_attention(*where[:3], key[2], where.size, FOREGROUND, keys=key[3])
    return case, next(variant for variant in case.variants if variant.name == "triton")


@contextmanager
def matmul_precision(kind: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def winner(trials: Iterable[Trial]) -> "Config | None":
    """The fastest, or the first, the table's own, where none is faster by more than noise; None: none has a time.

    More than noise: a trial's 80 % quantile is below the 20 % quantile of the table's own. A share of the time would
    not do, because a gradient's kernel is timed within the whole backward. Only trials that were timed like the first
    are compared: events include launching, CUDA graphs do not.
    """
    found = [trial for trial in trials if trial.ms is not None]
    found = [trial for trial in found if bool(trial.events) == bool(found[0].events)]
    if not found:
        return None
    own, *rivals = found
    faster = [trial for trial in rivals if (trial.high or 0.0) < (own.low or 0.0)]
    return min([own, *faster], key=lambda trial: trial.ms or 0.0).config


def set_winner(key: "Key", kernel: str, config: "Config", path: Path, base: Path | None = None) -> None:
    """Rewrite a table with one kernel's configuration; `base` is the table where `path` is not there yet.

    Raises:
        ScscoError: it cannot be written.
    """
    from scsco_fast.kernels.bain_attention.table import Line, read, write

    table = read(path if path.exists() or base is None else base)
    table[key] = Line("timed", {**table[key].configs, kernel: config})
    try:
        write(table, path)
    except OSError as error:
        where = f"the table {path} cannot be written ({error.strerror or error})"
        raise ScscoError(f"{where}: tune an editable install") from error


def tune(minutes: float, output: Path, say: Callable[[str], None]) -> None:
    """Time candidates on this GPU, rewrite the table and append a row for each candidate to output/tune.csv.

    Raises:
        ScscoError: the kernels cannot run here, there are no candidates for this GPU, or a file cannot be written.
    """
    unavailable = kernels.unavailable()
    if unavailable is not None:
        raise ScscoError(f"--tune times the Triton kernels on a GPU: {unavailable}")
    from scsco_fast.kernels.bain_attention import candidates
    from scsco_fast.kernels.bain_attention import launch as bain_attention
    from scsco_fast.kernels.bain_attention.table import PATH

    listed = candidates.read()
    sm = bain_attention.architecture(torch.device("cuda", torch.cuda.current_device()))
    keys = list(dict.fromkeys(candidate.key for candidate in listed if candidate.key[0] == sm))
    if not keys:
        raise ScscoError(f"no candidates for sm_{sm}: add lines to {candidates.PATH}")
    deadline, where = time.monotonic() + 60 * minutes, {"suite": "tune", **rows.machine("cuda")}
    todo = [(key, *entry) for key in keys for entry in candidates.timed(key, listed).items()]
    done = 0
    for key, kernel, configs in todo:
        if time.monotonic() > deadline:
            break
        trials = [trial(key, kernel, config, where_of(key)) for config in configs]
        rows.append([row_of(key, found, where) for found in trials], output / "tune.csv")
        chosen = winner(trials)
        if chosen is not None:
            set_winner(key, kernel, chosen, PATH)
        done += 1
        say(f"{' '.join(map(str, key))} {kernel}: {'none can be used' if chosen is None else _text(chosen)}")
    say(f"{done} of {len(todo)} kernels of sm_{sm} timed, written to {PATH}")


def row_of(key: "Key", trial: Trial, where: dict[str, Any]) -> Row:
    """`detail` is the line's key, the kernel and the configuration."""
    maps = where_of(key)
    return Row(
        **where,
        op="bain_attention",
        backend="triton",
        mode="forward" if trial.kernel == "fwd" else "backward",
        dtype=str(maps.dtype)[6:],
        batch=maps.batch,
        channels=key[2],
        size=maps.size,
        foreground=FOREGROUND,
        detail=f"{' '.join(map(str, key))} {trial.kernel} {_text(trial.config)}",
        ms=trial.ms,
        ms_20=trial.low,
        ms_80=trial.high,
        error=None if trial.error is None or trial.error != trial.error else trial.error,
        gate=GATE[key[1]][trial.kernel != "fwd"],
        note=trial.reason or note_of(trial.events),
    )


def _text(config: "Config") -> str:
    return ",".join(map(str, config))
