"""`scsco prepare`: check a data set or a store, or pack one."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scsco_fast.cli.parsing import parse
from scsco_fast.cli.shared import printable, progress_bar, worker_count
from scsco_fast.errors import ScscoError
from scsco_fast.system.files import real_path
from scsco_fast.system.locks import writing


@dataclass(frozen=True)
class PrepareOptions:
    """Check a data set (--check), or pack it into a store that keeps a GPU fed (--output).

    `scsco prepare DIR --check` decodes every file of a data set, or compares every checksum of a packed store; it names
    whatever cannot be used, and exits with 1 then. `scsco prepare DIR --output STORE` resizes every picture once;
    train on it with `scsco train PRESET --dataset packed --root STORE`. Both go on where they were interrupted.
    """

    root: Path
    """Folder of iHarmony4, or of data kept like it (docs/data.md); `scsco prepare DIR` is short for it."""
    check: bool = False
    """Check the data set or store instead of packing it."""
    report: Path | None = None
    """Where --check writes its report; if not given, runs/check/NAME.json."""
    output: Path | None = None
    """Folder of the store to write; it gets a folder for each split."""
    size: int = 256
    """Side of the packed pictures in pixels."""
    split: Literal["train", "test"] | None = None
    """Part to pack; if not given, each that has a list."""
    workers: int | None = None
    """Processes that decode; if not given, one per core. 0 decodes in this one, which a broken decoder can end."""


def command(arguments: list[str]) -> int:
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--root", *arguments]
    options = parse(PrepareOptions, arguments, "scsco prepare")
    if options.workers is not None and options.workers < 0:
        raise ScscoError(f"--workers is {options.workers}; wanted 0 or more")
    if options.check == (options.output is not None):
        raise ScscoError("wanted either --check or --output STORE (see scsco prepare --help)")
    if options.output is not None:
        return _pack(options, options.output)
    from scsco_fast.data.packed import stores

    found = stores(options.root)
    return _check_store(found) if found else _check_dataset(options)


def _check_dataset(options: PrepareOptions) -> int:
    from scsco_fast.data.check import check_dataset

    target = options.report or Path("runs/check") / f"{real_path(options.root).name}.json"
    with writing(target.parent, target.name):
        with progress_bar("checking") as progress:
            journal = target.with_suffix(".files.jsonl")
            report = check_dataset(options.root, journal, worker_count(options.workers), progress)
        report.write(target)
    for name, dialect in report.dialects.items():
        print(f"{name}: {report.samples[name]} samples ({dialect})")
    print(f"{report.files} files, {report.decoded} decoded now, {report.unlisted} composites in no list")
    _print_problems(report.problems)
    print(f"wrote {target}")
    return 1 if report.problems else 0


def _print_problems(problems: Sequence[Any]) -> None:
    """How many there are of each kind, and the first of each; all of them are in the report."""
    shown = 3
    for kind in dict.fromkeys(problem.kind for problem in problems):
        reasons = [problem.reason for problem in problems if problem.kind == kind]
        for reason in reasons[:shown]:
            print(f"scsco: {kind}: {printable(reason)}", file=sys.stderr)
        if len(reasons) > shown:
            print(f"scsco: {kind}: {len(reasons) - shown} more in the report", file=sys.stderr)
    print(f"{len(problems)} problems" if problems else "no problem")


def _check_store(folders: Sequence[Path]) -> int:
    from scsco_fast.data.packed import verify

    changed = []
    for folder in folders:
        with progress_bar("checking") as progress:
            found = verify(folder, progress)
        print(f"{folder}: {len(found)} records have been changed" if found else f"{folder}: no problem")
        changed += found
    for problem in changed:
        print(f"scsco: {printable(problem)}", file=sys.stderr)
    return 1 if changed else 0


def _pack(options: PrepareOptions, output: Path) -> int:
    from scsco_fast.data.layouts import listed_splits
    from scsco_fast.data.packing import pack

    splits = [options.split] if options.split else listed_splits(options.root)
    if not splits:
        raise ScscoError(f"{options.root}: no list says what is for training; give --split train or --split test")
    failed = 0
    for split in splits:
        with progress_bar(f"packing {split}") as progress:
            report = pack(options.root, output, split, options.size, worker_count(options.workers), progress)
        index = report.index
        for reason in (*index.missing, *index.bad.values()):
            print(f"scsco: failed: {printable(reason)}", file=sys.stderr)
        if report.warning is not None:
            print(f"scsco: warning: {report.warning}", file=sys.stderr)
        counts = f"{len(index.names) - len(index.bad)} samples of {len(index.real_checksums)} real pictures"
        print(f"{report.folder}: {counts}, {len(index.bad)} bad, {len(index.missing)} missing")
        failed += len(index.bad) + len(index.missing)
    print(f"train on it: scsco train paper --dataset packed --root {output} --size {options.size}")
    return 1 if failed else 0
