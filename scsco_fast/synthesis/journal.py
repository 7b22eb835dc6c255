"""The folder of a data set while it is made: the names in it, and what is kept so that an interrupted run goes on."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from scsco_fast.data.photos import SPLITS
from scsco_fast.errors import ScscoError
from scsco_fast.synthesis.photographs import names_in
from scsco_fast.system.files import replacing

COMPOSITES, MASKS, REALS = "composite_images", "masks", "real_images"
REPORT, TABLE = "synthesis.json", "synthesis.csv"
STATE = ".synthesis"  # there until the report is written


def check_output(output: Path, folder: Path) -> None:
    """ScscoError if the output folder, or the subset's folder in it, holds something else than such a data set."""
    for split in SPLITS:
        listed = output / f"IHD_{split}.txt"
        with suppress(OSError, UnicodeDecodeError):
            if any(line.strip() and not line.startswith(f"{folder.name}/") for line in listed.read_text().splitlines()):
                raise ScscoError(f"{listed}: lists another dataset; give an output folder of its own")
    begun = (folder / REPORT).exists() or (folder / STATE).is_dir()
    if not begun and folder.is_dir() and any(folder.iterdir()):
        raise ScscoError(f"{folder}: holds files that this command did not write; give an empty folder")


def check_same(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """ScscoError if a data set was begun with other settings."""
    known = {"files": "the photographs are others", "rules": "another version's rules", "drawing": "another version"}
    for name, value in now.items():
        if before.get(name) != value:
            detail = known.get(name, f"{name} was {before.get(name)}, now it is {value}")
            raise ScscoError(f"{folder}: was begun with other settings ({detail}); repeat them, or give another folder")


def read_json(path: Path) -> dict[str, Any]:
    """A report or a plan; ScscoError if it cannot be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ScscoError(f"{path}: cannot be read ({error}); remove the folder to begin anew") from error


def make_state(state: Path) -> None:
    """Make the folder of what is kept for an interrupted run."""
    try:
        state.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ScscoError(f"{state}: cannot be made ({error.strerror}); give another output folder") from error


def remove_leftovers(output: Path, folder: Path) -> None:
    """Remove the temporary files of a run that was killed."""
    places = (folder, *(folder / name for name in (COMPOSITES, MASKS, REALS, STATE)))
    for leftover in (*(path for place in places for path in place.glob(".*.tmp.*")), *output.glob(".IHD_*.tmp.txt")):
        leftover.unlink(missing_ok=True)


def keep_plan(folder: Path, settings: dict[str, Any], digests: dict[str, str]) -> None:
    """Write down the settings and photographs; ScscoError if an earlier run had others, as composites must not mix."""
    path = folder / STATE / "plan.json"
    if path.exists():
        before = read_json(path)
        check_same(folder, before["settings"], settings)
        if before["digests"] != digests:
            raise ScscoError(f"{folder}: was begun with other photographs or masks; remove it, or give another folder")
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({"settings": settings, "digests": digests}))


def add_to_log(log: Path, line: str) -> None:
    """Add a line on composites that are made; ScscoError if it cannot be written."""
    try:
        with log.open("a") as file:
            file.write(line)
    except OSError as error:
        raise ScscoError(
            f"{log}: cannot be written ({error.strerror or error}); make room, and run the same command to go on"
        ) from error


def read_log(log: Path, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What an earlier run made, without a last line cut short and without units whose files are gone."""
    done: dict[str, list[dict[str, Any]]] = {}
    there = {name: names_in(folder / name) for name in (COMPOSITES, MASKS, REALS)}
    for line in log.read_text().splitlines() if log.exists() else ():
        try:
            key, records = json.loads(line)
        except ValueError:
            continue
        if all(file in there[place] for record in records for place, file in record["files"].items()):
            done[key] = records
    with replacing(log) as temporary:
        temporary.write_text("".join(json.dumps([key, records]) + "\n" for key, records in done.items()))
    return done
