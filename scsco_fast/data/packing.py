"""Writes a packed store: every picture resized once, in worker processes, whole files or none, resumable.

While it is written, STORE/train/.work holds the shards in hand and what is known of the finished ones. A shard takes
its place when its last record is there; index.json comes last, and without it there is no store.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from scsco_fast.data.check import suspected_polarity
from scsco_fast.data.iharmony4 import check_mask, check_real_size, read_composite, resize_part
from scsco_fast.data.images import read_picture
from scsco_fast.data.layouts import Layout, Member, find_layout
from scsco_fast.data.packed import (
    FILTER,
    FORMAT,
    INDEX,
    KINDS,
    WORK,
    Index,
    read_index,
    record_bytes,
    record_checksums,
    shards,
)
from scsco_fast.data.workers import TIME_LIMIT, Lost, run_tasks
from scsco_fast.errors import ScscoError
from scsco_fast.system.files import sync_folder, write_durably
from scsco_fast.system.locks import LOCK, writing

RECORDS_PER_SHARD = 512  # 105 MB at 256x256; a kill costs the work on one or two of them

_PLAN = "plan.json"


@dataclass(frozen=True)
class PackReport:
    """What `pack` wrote, or found written: the split's folder, its index, and a warning about inverted masks."""

    folder: Path
    index: Index
    warning: str | None


class Task(NamedTuple):
    """One record to make."""

    kind: str
    number: int
    member: Member
    size: int


class Made(NamedTuple):
    """A record, or the reason why there is none; width and height are the picture's own."""

    data: bytes | None
    checksum: int
    width: int
    height: int
    coverage: float
    error: str | None


class Known(NamedTuple):
    """What is kept of a record when its bytes are written."""

    checksum: int
    width: int
    height: int
    coverage: float
    error: str | None


@dataclass(frozen=True)
class _Plan:
    """What goes where: the members in order, and the real pictures, each once, in the order of their first use."""

    layout: Layout
    members: list[Member]
    reals: list[Path]
    size: int
    records_per_shard: int
    source: str

    def count(self, kind: str) -> int:
        return len(self.members if kind == "composite" else self.reals)

    def task(self, kind: str, number: int, member_of_real: dict[Path, Member]) -> Task:
        member = self.members[number] if kind == "composite" else member_of_real[self.reals[number]]
        return Task(kind, number, member, self.size)


def pack(
    root: str | os.PathLike[str],
    store: str | os.PathLike[str],
    split: str,
    size: int = 256,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
    records_per_shard: int = RECORDS_PER_SHARD,
    time_limit: float = TIME_LIMIT,
) -> PackReport:
    """Pack one split of a dataset into STORE/SPLIT for `PackedDataset`.

    The bytes depend on the pictures, the size and the number of records per shard alone. A call that was stopped, by
    whatever, is taken up by the same call again. Samples that cannot be used keep their place, so that every order of
    samples is that of `IHarmony4`; their reasons are in the index.

    Args:
        root: a dataset in any of the dialects of `scsco_fast.data.layouts`.
        store: folder of the store, which may hold the other split already.
        split: "train" or "test".
        size: side in pixels.
        workers: processes that decode and resize; 0 does it here.
        progress: called with the number of records done and in all.
        records_per_shard: records in each file.
        time_limit: seconds for one picture.

    Raises:
        ScscoError: no dataset, no complete entry, malformed lists, a store of other pictures at this place, too little
            room, a file that cannot be written, a process that died or hung, or another call at work on this store.
    """
    if size < 1 or records_per_shard < 1:
        raise ScscoError(f"size {size}, {records_per_shard} records per shard; both must be at least 1")
    folder = Path(store) / split
    plan = _make_plan(root, split, size, records_per_shard)
    if (folder / INDEX).is_file():
        index = read_index(folder)
        _check_source(folder, index.source, plan.source)
        with suppress(ScscoError), writing(folder):  # a kill may have come between the index and this
            shutil.rmtree(folder / WORK, ignore_errors=True)
        return PackReport(folder, index, None)
    with writing(folder):
        work = _work_folder(folder, plan)
        _check_room(folder, plan)
        known = {kind: _finished_shards(folder, work, plan, kind) for kind in KINDS}
        _write_shards(folder, work, plan, known, workers, time_limit, progress)
        index = _make_index(plan, known)
        _write_text(work / INDEX, index.to_json())
        # The index makes the store: every shard's name must be on the disk before it.
        sync_folder(folder)
        os.replace(work / INDEX, folder / INDEX)
        sync_folder(folder)
        shutil.rmtree(folder / WORK, ignore_errors=True)
    coverages = [fact.coverage for shard in known["composite"].values() for fact in shard if fact.coverage > 0]
    warning = suspected_polarity(float(np.mean(coverages))) if coverages else None
    return PackReport(folder, index, warning)


def make_record(task: Task) -> Made:
    """Decode and resize one picture; whatever is wrong with it is in `error`, never an exception."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _make_composite(task) if task.kind == "composite" else _make_real(task)
    except ScscoError as error:
        reason = str(error)
    except Exception as error:  # a decoder can raise anything on a file made to break it
        path = task.member.composite if task.kind == "composite" else task.member.real
        reason = f"{path}: cannot be decoded ({type(error).__name__}: {' '.join(str(error).split())})"
    return Made(None, zlib.crc32(bytes(record_bytes(task.kind, task.size))), 0, 0, 0.0, reason)


def _make_composite(task: Task) -> Made:
    composite, mask = read_composite(task.member)
    height, width = mask.shape
    whole = (0, 0, width, height)
    picture, cut = (resize_part(array, whole, False, task.size) for array in (composite, mask))
    check_mask(task.member.mask, cut)
    data = picture.tobytes() + np.packbits(cut).tobytes()
    return Made(data, zlib.crc32(data), width, height, float(mask.mean(dtype=np.float64)), None)


def _make_real(task: Task) -> Made:
    assert task.member.real is not None  # find_layout asks for it
    real = read_picture(task.member.real).rgb
    height, width = real.shape[:2]
    data = resize_part(real, (0, 0, width, height), False, task.size).tobytes()
    return Made(data, zlib.crc32(data), width, height, 0.0, None)


def _make_plan(root: str | os.PathLike[str], split: str, size: int, records_per_shard: int) -> _Plan:
    layout = find_layout(root, split)
    if layout.malformed:
        raise ScscoError(layout.malformed[0])
    layout.log()
    if not layout.members:
        raise ScscoError(layout.no_sample())
    reals = list(dict.fromkeys(member.real for member in layout.members if member.real is not None))
    files = [[_file_facts(layout.root, path) for path in member[1:] if path] for member in layout.members]
    facts = [FORMAT, FILTER, size, records_per_shard, layout.missing, files]
    source = hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()
    return _Plan(layout, layout.members, reals, size, records_per_shard, source)


def _file_facts(root: Path, path: Path) -> tuple[str, int, int]:
    """Name, size and time of change: what tells a later call that the pictures are still the same."""
    try:
        status = path.stat()
    except OSError:
        return os.path.relpath(path, root), -1, -1
    return os.path.relpath(path, root), status.st_size, status.st_mtime_ns


def _check_source(folder: Path, found: object, wanted: str) -> None:
    if found != wanted:
        raise ScscoError(
            f"{folder}: holds a store of other pictures or another size, or the pictures have changed since; "
            "name another folder, or remove this one"
        )


def _work_folder(folder: Path, plan: _Plan) -> Path:
    """The folder of unfinished work, made or taken up."""
    work = folder / WORK
    if not work.is_dir() and any(path.name != LOCK for path in folder.iterdir()):
        raise ScscoError(f"{folder}: is not empty and no store; name another folder")
    try:
        work.mkdir(exist_ok=True)
    except OSError as error:
        raise ScscoError(f"{work}: cannot be made ({error.strerror}); name another folder") from error
    try:
        source = json.loads((work / _PLAN).read_text(encoding="utf-8"))["source"]
    except FileNotFoundError:
        _write_text(work / _PLAN, json.dumps({"source": plan.source}))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ScscoError(f"{work / _PLAN}: cannot be read ({error}); remove {folder} and start again") from error
    else:
        _check_source(folder, source, plan.source)
    return work


def _check_room(folder: Path, plan: _Plan) -> None:
    needed = sum(plan.count(kind) * record_bytes(kind, plan.size) for kind in KINDS)
    there = sum(path.stat().st_size for path in folder.glob("*.bin"))
    free = shutil.disk_usage(folder).free
    if needed - there > free:
        raise ScscoError(
            f"{folder}: the store needs {(needed - there) / 1e9:.1f} GB more, {free / 1e9:.1f} GB are free; make room"
        )


def _finished_shards(folder: Path, work: Path, plan: _Plan, kind: str) -> dict[str, list[Known]]:
    """What is known of the shards that are complete, checked against their bytes."""
    finished: dict[str, list[Known]] = {}
    for name, records in shards(kind, plan.count(kind), plan.records_per_shard):
        try:
            facts = [Known(*values) for values in json.loads((work / f"{name}.json").read_text(encoding="utf-8"))]
            length = (folder / name).stat().st_size
        except (OSError, ValueError, TypeError):
            continue
        if length != len(records) * record_bytes(kind, plan.size):
            continue
        if [fact.checksum for fact in facts] == list(record_checksums(folder / name, kind, plan.size)):
            finished[name] = facts
    return finished


class _Shard:
    """A file that is being filled, record by record, in any order."""

    def __init__(self, folder: Path, work: Path, name: str, records: range, length: int) -> None:
        self.target, self.sidecar, self.records, self.length = folder / name, work / f"{name}.json", records, length
        self.temporary = work / name
        self.facts: dict[int, Known] = {}
        self.file = open(self.temporary, "wb")  # noqa: SIM115
        self.file.truncate(len(records) * length)  # records that cannot be made stay zeros

    def add(self, number: int, made: Made) -> bool:
        """Write a record; True if it was the last one, and the file has taken its place."""
        if made.data is not None:
            self.file.seek((number - self.records.start) * self.length)
            self.file.write(made.data)
        self.facts[number] = Known(*made[1:])
        if len(self.facts) < len(self.records):
            return False
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        os.replace(self.temporary, self.target)
        _write_text(self.sidecar, json.dumps(self.known()))
        return True

    def known(self) -> list[Known]:
        return [self.facts[number] for number in self.records]


def _write_shards(
    folder: Path,
    work: Path,
    plan: _Plan,
    known: dict[str, dict[str, list[Known]]],
    workers: int,
    time_limit: float,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Make every record that no finished shard holds; `known` is completed."""
    member_of_real = {member.real: member for member in reversed(plan.members) if member.real is not None}
    total = sum(plan.count(kind) for kind in KINDS)
    todo = [
        (kind, name, records)
        for kind in KINDS
        for name, records in shards(kind, plan.count(kind), plan.records_per_shard)
        if name not in known[kind]
    ]
    done = total - sum(len(records) for _, _, records in todo)
    shard_of = {(kind, number): name for kind, name, records in todo for number in records}
    open_shards: dict[str, _Shard] = {}

    def tasks() -> Iterator[Task]:
        for kind, name, records in todo:
            open_shards[name] = _Shard(folder, work, name, records, record_bytes(kind, plan.size))
            for number in records:
                yield plan.task(kind, number, member_of_real)

    try:
        with closing(run_tasks(make_record, tasks(), workers, time_limit)) as outcomes:
            for task, made in outcomes:
                if isinstance(made, Lost):
                    path = task.member.composite if task.kind == "composite" else task.member.real
                    raise ScscoError(f"{path}: {made.reason}; look at it with scsco prepare --check, then go on")
                name = shard_of[task.kind, task.number]
                if open_shards[name].add(task.number, made):
                    known[task.kind][name] = open_shards.pop(name).known()
                done += 1
                if progress is not None:
                    progress(done, total)
    except OSError as error:
        raise ScscoError(f"{folder}: cannot be written ({error.strerror or error}); make room, then go on") from error
    finally:
        for shard in open_shards.values():
            with suppress(OSError):  # on a full disk, once more
                shard.file.close()


def _make_index(plan: _Plan, known: dict[str, dict[str, list[Known]]]) -> Index:
    """The index, a pure function of what was packed; a sample is bad if its composite, mask or real picture is."""
    composites, reals = (
        [fact for name, _ in shards(kind, plan.count(kind), plan.records_per_shard) for fact in known[kind][name]]
        for kind in KINDS
    )
    number_of = {path: number for number, path in enumerate(plan.reals)}
    real = [number_of[member.real] for member in plan.members if member.real is not None]
    bad: dict[int, str] = {}
    for number, member in enumerate(plan.members):
        reason = composites[number].error or reals[real[number]].error
        if reason is None:
            reason = _size_error(member, composites[number], reals[real[number]])
        if reason is not None:
            bad[number] = reason
    return Index(
        size=plan.size,
        records_per_shard=plan.records_per_shard,
        source=plan.source,
        dialect=plan.layout.dialect,
        names=[member.composite.name for member in plan.members],
        subsets=[member.subset for member in plan.members],
        real=real,
        widths=[fact.width for fact in composites],
        heights=[fact.height for fact in composites],
        composite_checksums=[fact.checksum for fact in composites],
        real_checksums=[fact.checksum for fact in reals],
        bad=bad,
        missing=plan.layout.missing,
    )


def _size_error(member: Member, composite: Known, real: Known) -> str | None:
    try:
        assert member.real is not None  # find_layout asks for it
        check_real_size(member.real, (real.height, real.width), (composite.height, composite.width))
    except ScscoError as error:
        return str(error)
    return None


def _write_text(path: Path, text: str) -> None:
    write_durably(path, lambda file: file.write(text.encode()))
