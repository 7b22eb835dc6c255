"""Candidates for the attention's table, and their screening: which fit is found out without a GPU.

    python -m scsco_fast.kernels.bain_attention.candidates [--sm 90] [--jobs 2]  # compiles each, rewrites column "fits"

A tuner that climbs from neighbour to neighbour spends its seconds on the GPU compiling what then spills. The list is
fixed, so all of it can be compiled before, by many processes at once.
"""

import argparse
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from scsco_fast.kernels.bain_attention.table import TABLE, Config, Key, Line

PATH = Path(__file__).with_name("candidates.txt")
COLUMNS = ("sm", "kind", "C", "D", "kernel", "config", "fits")


class Candidate(NamedTuple):
    key: Key
    kernel: str
    config: Config
    fits: str  # "yes", "no", or "-": not screened yet


def read(path: Path = PATH) -> list[Candidate]:
    """The candidates of a file, in its order."""
    header, *rows = (line.split() for line in path.read_text().splitlines() if not line.startswith("#"))
    assert tuple(header) == COLUMNS
    return [
        Candidate((int(sm), kind, int(channels), int(keys)), kernel, Config(*map(int, config.split(","))), fits)
        for sm, kind, channels, keys, kernel, config, fits in rows
    ]


def write(candidates: Sequence[Candidate], path: Path = PATH) -> None:
    """Replace a file, at once or not at all; its comments stay."""
    lines = [line for line in path.read_text().splitlines() if line.startswith("#")]
    lines.append(_text(*COLUMNS))
    for (sm, kind, channels, keys), kernel, config, fits in candidates:
        lines.append(_text(str(sm), kind, str(channels), str(keys), kernel, ",".join(map(str, config)), fits))
    part = path.with_suffix(".part")
    part.write_text("\n".join(lines) + "\n")
    os.replace(part, path)


def _text(sm: str, kind: str, channels: str, keys: str, kernel: str, config: str, fits: str) -> str:
    return f"{sm:<4}{kind:<5}{channels:<4}{keys:<4}{kernel:<7}{config:<20}{fits}"


def timed(key: Key, candidates: Sequence[Candidate]) -> dict[str, list[Config]]:
    """By kernel of a line of the table: its own configuration first, then the candidates that fit."""
    found = {kernel: [config] for kernel, config in TABLE[key].configs.items()}
    for candidate in candidates:
        if candidate.key == key and candidate.fits == "yes" and candidate.kernel in found:
            found[candidate.kernel].append(candidate.config)
    return {kernel: list(dict.fromkeys(configs)) for kernel, configs in found.items()}


@contextmanager
def as_line(key: Key, kernel: str, config: Config) -> Iterator[None]:
    """The table with one kernel's configuration changed."""
    before = TABLE[key]
    TABLE[key] = Line(before.by, {**before.configs, kernel: config})
    try:
        yield
    finally:
        TABLE[key] = before


def problems(candidate: Candidate) -> list[str]:
    """Why a candidate cannot be used, one line for each rule of the resource gate that it breaks; compiles it."""
    from scsco_fast.kernels.bain_attention import launch as bain_attention
    from scsco_fast.kernels.resources import measure

    key, kernel, config, _ = candidate
    if kernel not in TABLE[key].configs:
        return [f"the line {' '.join(map(str, key))} has no {kernel}"]
    with as_line(key, kernel, config):
        cases = list(bain_attention.cases_of(*key, names=(kernel,)))
        if not cases:
            return [f"{kernel} is not launched with these blocks"]
        return [problem for case in cases for problem in measure(case, key[0]).problems()]


def main(argv: list[str] | None = None) -> int:
    """Screen the file's candidates and rewrite it; says why what does not fit does not."""
    parser = argparse.ArgumentParser(prog="python -m scsco_fast.kernels.bain_attention.candidates", description=__doc__)
    parser.add_argument("--sm", type=int, help="architecture (default: all of the file)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    parser.add_argument("--file", type=Path, default=PATH, help="the list (default: the committed one)")
    options = parser.parse_args(argv)
    candidates = read(options.file)
    wanted = [candidate for candidate in candidates if options.sm in (None, candidate.key[0])]
    verdicts: dict[Candidate, str] = {}
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:  # not fork: Triton's compiler holds threads
        for candidate, found in zip(wanted, pool.imap(problems, wanted), strict=True):
            verdicts[candidate] = "no" if found else "yes"
            label = f"{' '.join(map(str, candidate.key))} {candidate.kernel} {','.join(map(str, candidate.config))}"
            sys.stdout.write(f"{label}: {'; '.join(found) or 'fits'}\n")
            sys.stdout.flush()
    screened = [candidate._replace(fits=verdicts.get(candidate, candidate.fits)) for candidate in candidates]
    write(screened, options.file)
    sys.stdout.write(f"{list(verdicts.values()).count('yes')} of {len(wanted)} fit, written to {options.file}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
