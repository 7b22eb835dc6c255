"""A dataset in iHarmony4's layout from any folder of photographs: regions are recoloured, the photograph is the answer.

::

    OUTPUT/IHD_train.txt  IHD_test.txt
    OUTPUT/SUBSET/composite_images/s00001_4_2.jpg   photograph 1, its region 4, second composite of the photograph
    OUTPUT/SUBSET/masks/s00001_4.png                OUTPUT/SUBSET/real_images/s00001.jpg
    OUTPUT/SUBSET/SUBSET_train.txt  SUBSET_test.txt
    OUTPUT/SUBSET/synthesis.csv                     how each composite was made, and its measures
    OUTPUT/SUBSET/synthesis.json                    settings, rules, counts, sources, unusable photographs

Each composite is drawn from (seed, the photograph's name, its number) alone, so neither the number of processes nor an
interruption changes a byte. `synthesis.json` is written last; until then `OUTPUT/SUBSET/.synthesis` holds what is
needed to continue.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from scsco_fast.data.images import read_picture
from scsco_fast.data.photos import LONGEST_SIDE, shrink
from scsco_fast.data.workers import Lost, run_tasks
from scsco_fast.errors import ScscoError
from scsco_fast.synthesis.journal import (
    REPORT,
    STATE,
    TABLE,
    add_to_log,
    check_output,
    check_same,
    keep_plan,
    make_state,
    read_json,
    read_log,
    remove_leftovers,
)
from scsco_fast.synthesis.photographs import (
    LEAST_SIDE,
    Progress,
    Source,
    find_photographs,
    inspect_all,
    load_inspected,
    one_thread,
    sort_out,
    splits_of,
)
from scsco_fast.synthesis.realism import RULES
from scsco_fast.synthesis.recipes import MEAN_DISTANCES, REFERENCES, TRIES, Run, make_composite
from scsco_fast.synthesis.report import Synthesis, summary, write_lists, write_report, write_table
from scsco_fast.system.extras import require
from scsco_fast.system.locks import writing

SUBSET = "Synthetic"
PER_PHOTOGRAPH = 4  # composites, where no count is given
QUALITY = 95

_UNIT = 8  # composites of one photograph that a process makes at a time
_UNIT_SECONDS = 3600.0


def synthesize(
    photos: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    masks: str | os.PathLike[str] | None = None,
    count: int | None = None,
    seed: int = 0,
    subset: str = SUBSET,
    suffix: Literal[".jpg", ".png"] = ".jpg",
    quality: int = QUALITY,
    longest: int = LONGEST_SIDE,
    workers: int = 0,
    progress: Progress | None = None,
) -> Synthesis:
    """Make composites out of photographs and write them in iHarmony4's layout.

    For each composite a family of `recipes.FAMILIES` is drawn; then a region of the photograph and a reference, until
    the recoloured region breaks none of `realism.RULES`, at most `recipes.TRIES` times. The reference is a region of
    another photograph, or what lies around one: of `recipes.REFERENCES` that are drawn, the one whose colours have the
    nearest deviations and a mean nearest to a drawn distance. (By chance alone most recolour beyond belief.) Outside
    the mask the composite is the real picture, bit for bit before JPEG. A fifth of the photographs, by a hash of their
    names, is for testing; a test composite may have borrowed colours, never pixels, from a photograph of the other
    list.

    Args:
        photos: a folder, searched with its subfolders, or "builtin".
        output: folder of the dataset. An interrupted run with the same arguments is continued, a finished one is left.
        masks: folder of masks, `MASKS/a/b.png` for `PHOTOS/a/b.jpg`, in any picture format (white is foreground, the
            photograph's size); None: `PHOTOS/masks`. Photographs without a mask are segmented.
        count: of composites, spread evenly over the photographs; None: four of each.
        seed: not negative.
        subset: name of the dataset's one subset.
        suffix: of composites and real pictures.
        quality: of JPEG, 1 to 100; chroma is not subsampled.
        longest: larger photographs are reduced to this many pixels on their long side.
        workers: processes; 0: this one.
        progress: called with done and total: photographs looked at, then composites.

    Raises:
        ScscoError: no such folder, fewer than two usable photographs, an argument out of range, an output folder that
            holds something else or was begun with other arguments or photographs, a file that cannot be written, or a
            photograph without a mask where scikit-image is missing.

    Examples:
        >>> import tempfile
        >>> made = synthesize("builtin", tempfile.mkdtemp(), count=2, longest=128)
        >>> made.made + made.given_up
        2
    """
    _check(count, seed, subset, suffix, quality, longest, workers)
    sources = find_photographs(photos, masks, Path(output))
    if any(each.mask is None for each in sources):
        require("finding the regions of photographs without masks", "train", "scikit-image")
    folder = Path(output) / subset
    settings = {
        "count": count,
        "seed": seed,
        "subset": subset,
        "format": suffix[1:],
        "quality": quality if suffix == ".jpg" else None,
        "longest_side": longest,
        "files": {each.identity: each.name for each in sources},
        "rules": [list(rule) for rule in RULES],
        "drawing": [TRIES, REFERENCES, *MEAN_DISTANCES],
    }
    check_output(Path(output), folder)
    if (folder / REPORT).exists():
        return _finished(Path(output), folder, settings)
    with writing(output):
        if (folder / REPORT).exists():  # another run has come and gone in between
            return _finished(Path(output), folder, settings)
        make_state(folder / STATE)
        remove_leftovers(Path(output), folder)
        inspected = inspect_all(sources, folder / STATE, longest, workers, progress)
        usable, unusable = sort_out(sources, inspected)
        digests = {each.identity: inspected[each.identity].digest for each in usable}
        keep_plan(folder, settings, digests)
        run = Run(folder, digests, seed, suffix, quality, longest)
        splits = splits_of(usable)
        units = _units(usable, len(usable) * PER_PHOTOGRAPH if count is None else count)
        records = _make_all(run, units, workers, progress)
        result = summary(folder, records, unusable)
        write_lists(Path(output), folder, records, splits)
        write_table(folder / TABLE, records, splits)
        write_report(folder / REPORT, result, settings, usable, inspected, splits)
        shutil.rmtree(folder / STATE, ignore_errors=True)
    return result


def _check(count: int | None, seed: int, subset: str, suffix: str, quality: int, longest: int, workers: int) -> None:
    least = {"count": (count, 1), "seed": (seed, 0), "longest": (longest, LEAST_SIDE), "workers": (workers, 0)}
    for name, (value, lowest) in least.items():
        if value is not None and value < lowest:
            raise ScscoError(f"{name} {value} is out of range; use {lowest} or more")
    if not 1 <= quality <= 100:
        raise ScscoError(f"quality {quality} is out of range; use 1 to 100")
    if suffix not in (".jpg", ".png"):
        raise ScscoError(f"suffix {suffix!r} is unknown; use .jpg or .png")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*", subset):
        raise ScscoError(f"subset {subset!r} is no folder's name of letters, digits and hyphens")


def _finished(output: Path, folder: Path, settings: dict[str, Any]) -> Synthesis:
    report = read_json(folder / REPORT)
    check_same(folder, report["settings"], settings)
    with suppress(ScscoError), writing(output):  # a kill may have come between the report and this
        shutil.rmtree(folder / STATE, ignore_errors=True)
        remove_leftovers(output, folder)
    return Synthesis(folder, **{name: report[name] for name in ("made", "given_up", "unusable", "families")})


class _Unit(NamedTuple):
    """Some composites of one photograph: numbers first to last - 1."""

    photograph: Source
    first: int
    last: int


def _units(usable: list[Source], count: int) -> list[_Unit]:
    units = []
    for index, each in enumerate(usable):
        number = count // len(usable) + (index < count % len(usable))
        units += [_Unit(each, first, min(first + _UNIT, number)) for first in range(0, number, _UNIT)]
    return units


class _UnitTask(NamedTuple):
    run: Run
    unit: _Unit


def _make_all(run: Run, units: list[_Unit], workers: int, progress: Progress | None) -> list[dict[str, Any]]:
    """A record for each composite, in the order of the units; those that an earlier run made are not made again."""
    log = run.folder / STATE / "records.jsonl"
    done = read_log(log, run.folder)
    remaining = [unit for unit in units if _key(unit) not in done]
    total = sum(unit.last - unit.first for unit in units)
    so_far = total - sum(unit.last - unit.first for unit in remaining)
    tasks = (_UnitTask(run, unit) for unit in remaining)
    with closing(run_tasks(_make_unit, tasks, workers, _UNIT_SECONDS)) as outcomes:
        for task, records in outcomes:
            if isinstance(records, Lost):
                raise ScscoError(f"{task.unit.photograph.path}: {records.reason}; run the same command to go on")
            if isinstance(records, ScscoError):
                raise records
            done[_key(task.unit)] = records
            add_to_log(log, json.dumps([_key(task.unit), records]) + "\n")
            so_far += len(records)
            if progress is not None:
                progress(so_far, total)
    return [record for unit in units for record in done[_key(unit)]]


def _key(unit: _Unit) -> str:
    return f"{unit.photograph.identity} {unit.first} {unit.last}"


def _make_unit(task: _UnitTask) -> list[dict[str, Any]] | ScscoError:
    run, (each, first, last) = task
    try:
        with one_thread():
            real = shrink(read_picture(each.path).rgb, run.longest)
            small, moments = load_inspected(run.folder / STATE, each.identity, run.digests[each.identity])
            photo = dataclasses.replace(small, rgb=real)
            return [make_composite(run, each, photo, moments[:, 1], number) for number in range(first, last)]
    except ScscoError as error:
        return error
