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

import csv
import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image

from scsco_fast.data.images import PICTURE_SUFFIXES, read_picture, save_image
from scsco_fast.data.photos import (
    LONGEST_SIDE,
    MASKS_FOLDER,
    SPLITS,
    Photo,
    builtin_files,
    masked_photo,
    name_hash,
    picture_names,
    segmented_photo,
    shrink,
    split_names,
)
from scsco_fast.data.workers import Lost, run_tasks

# Not `ops.transfer_color`: the first call of a registered operation imports torch._dynamo, in every process.
from scsco_fast.eager import transfer_color
from scsco_fast.errors import ScscoError
from scsco_fast.synthesis.distribution_transfer import distribution_transfer
from scsco_fast.synthesis.realism import RULES, Measures, broken_rule, lab_of, measure
from scsco_fast.system.extras import require
from scsco_fast.system.files import is_same_path, real_path, replacing
from scsco_fast.system.locks import writing

SUBSET = "Synthetic"
PER_PHOTOGRAPH = 4  # composites, where no count is given
QUALITY = 95
TRIES = 48
REFERENCES = 32  # drawn, to choose one from
MEAN_DISTANCES = (5.0, 20.0)  # CIE76, between the mean colours of a region and its reference
LEAST_SIDE = 64  # pixels of a photograph; its regions would be a few pixels
REPORT, TABLE = "synthesis.json", "synthesis.csv"

# Family to its source.
FAMILIES = {
    "reinhard": "Reinhard, Ashikhmin, Gooch, Shirley, Color transfer between images (2001), in CIE Lab",
    "gaussian": "Pitie, Kokaram, The linear Monge-Kantorovitch linear colour mapping (2007): covariance in RGB",
    "histogram": "Fecker, Barkowsky, Kaup, Histogram-based prefiltering for luminance and chrominance (2008)",
    "distribution": "Pitie, Kokaram, Dahyot, N-dimensional probability density function transfer (2005)",
}

_COMPOSITES, _MASKS, _REALS, _STATE = "composite_images", "masks", "real_images", ".synthesis"
_PALETTE_SIDE = 128  # of a photograph whose colours are borrowed
_LEAST_REFERENCE = 64  # pixels
_UNIT = 8  # composites of one photograph that a process makes at a time
_CACHED_PHOTOS = 256
_UNIT_SECONDS = 3600.0

Progress = Callable[[int, int], object]


@dataclasses.dataclass(frozen=True)
class Synthesis:
    """What `synthesize` did.

    Attributes:
        folder: the subset's folder.
        made: composites in the dataset.
        given_up: composites that no try of `TRIES` made well enough.
        unusable: files that are no photograph to use, with the reason.
        families: for each transfer family how many composites were "kept" and how many tries each rule rejected.
    """

    folder: Path
    made: int
    given_up: int
    unusable: dict[str, str]
    families: dict[str, dict[str, int]]

    def acceptance(self, family: str) -> float:
        """Share of the tries that were kept; NaN where nothing was tried."""
        counts = self.families[family]
        return counts["kept"] / sum(counts.values()) if sum(counts.values()) else float("nan")


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

    For each composite a family of `FAMILIES` is drawn; then a region of the photograph and a reference, until the
    recoloured region breaks none of `realism.RULES`, at most `TRIES` times. The reference is a region of another
    photograph, or what lies around one: of `REFERENCES` that are drawn, the one whose colours have the nearest
    deviations and a mean nearest to a drawn distance. (By chance alone most recolour beyond belief.) Outside the mask
    the composite is the real picture, bit for bit before JPEG. A fifth of the photographs, by a hash of their names, is
    for testing; a test composite may have borrowed colours, never pixels, from a photograph of the other list.

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
    inputs = _find_inputs(photos, masks, Path(output))
    if any(each.mask is None for each in inputs):
        require("finding the regions of photographs without masks", "train", "scikit-image")
    folder = Path(output) / subset
    settings = {
        "count": count,
        "seed": seed,
        "subset": subset,
        "format": suffix[1:],
        "quality": quality if suffix == ".jpg" else None,
        "longest_side": longest,
        "files": {each.identity: each.name for each in inputs},
        "rules": [list(rule) for rule in RULES],
        "drawing": [TRIES, REFERENCES, *MEAN_DISTANCES],
    }
    _check_output(Path(output), folder)
    if (folder / REPORT).exists():
        return _finished(Path(output), folder, settings)
    with writing(output):
        if (folder / REPORT).exists():  # another run has come and gone in between
            return _finished(Path(output), folder, settings)
        _make_state(folder / _STATE)
        _remove_leftovers(Path(output), folder)
        looks = _look_at_all(inputs, folder / _STATE, longest, workers, progress)
        usable, unusable = _sort_out(inputs, looks)
        digests = {each.identity: looks[each.identity].digest for each in usable}
        _keep_plan(folder, settings, digests)
        shared = _Shared(folder, digests, seed, suffix, quality, longest)
        splits = _splits(usable)
        units = _units(usable, len(usable) * PER_PHOTOGRAPH if count is None else count)
        records = _make_all(shared, units, workers, progress)
        result = _summary(folder, records, unusable)
        _write_lists(Path(output), folder, records, splits)
        _write_table(folder / TABLE, records, splits)
        _write_report(folder / REPORT, result, settings, usable, looks, splits)
        shutil.rmtree(folder / _STATE, ignore_errors=True)
    return result


def recolour(pixels: np.ndarray, examples: np.ndarray, family: str) -> np.ndarray:
    """(n, 3) uint8 colours with the statistics of `examples` (m, 3) uint8 that the family transfers.

    Examples:
        >>> recolour(np.full((9, 3), 10, np.uint8), np.full((9, 3), 200, np.uint8), "distribution").mean()
        np.float64(200.0)
    """
    own, wanted = (np.ascontiguousarray(each.T, dtype=np.float32) / 255 for each in (pixels, examples))
    if family == "distribution":
        moved = distribution_transfer(own, wanted)
    else:
        source, reference = (torch.from_numpy(each)[None, :, None] for each in (own, wanted))  # (1, 3, 1, n)
        inside, there = (torch.ones_like(rows[:, :1], dtype=torch.bool) for rows in (source, reference))
        moved = transfer_color.forward(source, reference, inside, there, family)[0, :, 0].numpy()
    return np.rint(moved * 255).astype(np.uint8).T


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


class _Input(NamedTuple):
    identity: str
    name: str
    path: Path
    mask: Path | None
    split: str | None  # fixed for the built-in ones


def _find_inputs(photos: str | os.PathLike[str], masks: str | os.PathLike[str] | None, output: Path) -> list[_Input]:
    if masks is not None and not Path(masks).is_dir():
        raise ScscoError(f"{os.fspath(masks)}: no such folder of masks")
    found: list[tuple[str, Path, str | None]]
    if os.fspath(photos) == "builtin":
        found = [(name, path, split) for split in SPLITS for name, path in builtin_files(split).items()]
    else:
        folder = Path(photos)
        found = [(name, folder / name, None) for name in picture_names(folder)]
        for other, what in ((output, "the output"), *([] if masks is None else [(Path(masks), "the masks' folder")])):
            if is_same_path(other, folder):
                raise ScscoError(f"{os.fspath(other)}: {what} is the photographs' folder; give one of its own")
        if real_path(folder) in real_path(output).parents:
            raise ScscoError(f"{output}: lies inside the photographs' folder {folder}; give another output folder")
        if masks is not None:
            inner = real_path(masks)
            found = [each for each in found if inner not in real_path(each[1]).parents]
        masks = folder / MASKS_FOLDER if masks is None else masks
    listing = lru_cache(maxsize=None)(_names_in)
    inputs = []
    for number, (name, path, split) in enumerate(sorted(found), start=1):
        mask = None if masks is None else _mask_of(Path(masks), PurePosixPath(name), listing)
        inputs.append(_Input(f"s{number:05d}", name, path, mask, split))
    return inputs


def _names_in(folder: Path) -> frozenset[str]:
    return frozenset(os.listdir(folder)) if folder.is_dir() else frozenset()


def _mask_of(masks: Path, name: PurePosixPath, listing: Callable[[Path], frozenset[str]]) -> Path | None:
    folder = masks / name.parent
    found = (name.stem + suffix for suffix in (".png", *PICTURE_SUFFIXES) if name.stem + suffix in listing(folder))
    first = next(found, None)
    return None if first is None else folder / first


def _check_output(output: Path, folder: Path) -> None:
    for split in SPLITS:
        listed = output / f"IHD_{split}.txt"
        with suppress(OSError, UnicodeDecodeError):
            if any(line.strip() and not line.startswith(f"{folder.name}/") for line in listed.read_text().splitlines()):
                raise ScscoError(f"{listed}: lists another dataset; give an output folder of its own")
    begun = (folder / REPORT).exists() or (folder / _STATE).is_dir()
    if not begun and folder.is_dir() and any(folder.iterdir()):
        raise ScscoError(f"{folder}: holds files that this command did not write; give an empty folder")


def _finished(output: Path, folder: Path, settings: dict[str, Any]) -> Synthesis:
    report = _read_json(folder / REPORT)
    _check_same(folder, report["settings"], settings)
    with suppress(ScscoError), writing(output):  # a kill may have come between the report and this
        shutil.rmtree(folder / _STATE, ignore_errors=True)
        _remove_leftovers(output, folder)
    return Synthesis(folder, **{name: report[name] for name in ("made", "given_up", "unusable", "families")})


def _check_same(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    said = {"files": "the photographs are others", "rules": "another version's rules", "drawing": "another version"}
    for name, value in now.items():
        if before.get(name) != value:
            detail = said.get(name, f"{name} was {before.get(name)}, now it is {value}")
            raise ScscoError(f"{folder}: was begun with other settings ({detail}); repeat them, or give another folder")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ScscoError(f"{path}: cannot be read ({error}); remove the folder to begin anew") from error


def _make_state(state: Path) -> None:
    try:
        state.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ScscoError(f"{state}: cannot be made ({error.strerror}); give another output folder") from error


def _remove_leftovers(output: Path, folder: Path) -> None:
    """Temporary files of a run that was killed."""
    places = (folder, *(folder / name for name in (_COMPOSITES, _MASKS, _REALS, _STATE)))
    for leftover in (*(path for place in places for path in place.glob(".*.tmp.*")), *output.glob(".IHD_*.tmp.txt")):
        leftover.unlink(missing_ok=True)


# First pass: read and segment each photograph. What the second pass needs of it goes to STATE/ID.npz.


class _Look(NamedTuple):
    digest: str  # of the pixels, the regions and the candidates
    pixels: str  # digest of the pixels
    candidates: int


class _LookTask(NamedTuple):
    photograph: _Input
    state: Path
    longest: int


def _look_at_all(
    inputs: list[_Input], state: Path, longest: int, workers: int, progress: Progress | None
) -> dict[str, Any]:
    """A `_Look`, or the reason why the photograph cannot be used, for each identity."""
    looks: dict[str, Any] = {}
    with closing(run_tasks(_look_at, (_LookTask(each, state, longest) for each in inputs), workers)) as outcomes:
        for task, look in outcomes:
            if isinstance(look, ScscoError):
                raise look
            each = task.photograph
            looks[each.identity] = f"{each.path}: {look.reason}" if isinstance(look, Lost) else look
            if progress is not None:
                progress(len(looks), len(inputs))
    return looks


def _look_at(task: _LookTask) -> _Look | str | ScscoError:
    """What it is, why it cannot be used, or why nothing can be written."""
    each, longest, cache = task.photograph, task.longest, task.state / f"{task.photograph.identity}.npz"
    try:
        stamp = json.dumps([each.name, longest, *(_stamp(path) for path in (each.path, each.mask) if path is not None)])
        look = _known_look(cache, stamp)
        if look is not None:
            return look
        photo = _read_photo(each, longest)
    except ScscoError as error:
        return str(error)
    pixels = _digest(repr(photo.rgb.shape).encode() + photo.rgb.tobytes())
    candidates = json.dumps(photo.candidates)
    look = _Look(
        _digest(pixels.encode() + photo.regions.tobytes() + candidates.encode()), pixels, len(photo.candidates)
    )
    palette = shrink(photo.rgb, _PALETTE_SIDE)
    with _one_thread():
        moments = _moments(dataclasses.replace(photo, rgb=palette))
    try:
        with replacing(cache) as temporary:
            np.savez_compressed(
                temporary,
                stamp=stamp,
                look=json.dumps(look),
                candidates=candidates,
                smoothing=photo.smoothing,
                regions=photo.regions,
                palette=palette,
                moments=moments,
            )
    except ScscoError as error:
        return error
    return look


def _known_look(cache: Path, stamp: str) -> _Look | None:
    """What an earlier run found, if the photograph is the same file."""
    if not cache.exists():
        return None
    with np.load(cache) as saved:
        return _Look(*json.loads(str(saved["look"]))) if str(saved["stamp"]) == stamp else None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums depend, in their last bits, on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _stamp(path: Path) -> list[int]:
    try:
        status = path.stat()
    except OSError as error:
        raise ScscoError(f"{path}: cannot be looked at ({error.strerror})") from error
    return [status.st_size, status.st_mtime_ns]


def _read_photo(each: _Input, longest: int) -> Photo:
    rgb = read_picture(each.path).rgb
    if min(rgb.shape[:2]) < LEAST_SIDE:
        raise ScscoError(f"{each.path}: is {rgb.shape[1]}x{rgb.shape[0]}, at least {LEAST_SIDE} pixels each are wanted")
    if each.mask is not None:
        return masked_photo(each.name, rgb, each.mask, longest)
    return segmented_photo(each.name, rgb, longest)


def _moments(photo: Photo) -> np.ndarray:
    """(candidates, 2, 6): CIE Lab means and deviations of what lies around each region, and of it; NaN if too small."""
    lab = lab_of(photo.rgb.reshape(-1, 3))
    regions = (_region_of(photo, candidate).ravel() for candidate in range(len(photo.candidates)))
    parts = (lab[inside == within] for inside in regions for within in (False, True))
    enough = (part if len(part) >= _LEAST_REFERENCE else np.full((1, 3), np.nan) for part in parts)
    moments = [np.concatenate([part.mean(axis=0), part.std(axis=0)]) for part in enough]
    return np.asarray(moments, dtype=np.float32).reshape(-1, 2, 6)


@lru_cache(maxsize=_CACHED_PHOTOS)
def _load_look(state: Path, identity: str, digest: str) -> tuple[Photo, np.ndarray]:
    """A photograph's regions, with its small version as the picture, and its regions' `_moments`.

    The digest keeps what was read for an earlier dataset of the same place apart.
    """
    with np.load(state / f"{identity}.npz") as saved:
        candidates = tuple(tuple(labels) for labels in json.loads(str(saved["candidates"])))
        photo = Photo(identity, saved["palette"], saved["regions"], candidates, float(saved["smoothing"]))
        return photo, saved["moments"]


def _sort_out(inputs: list[_Input], looks: dict[str, Any]) -> tuple[list[_Input], dict[str, str]]:
    """The photographs to use, and the reason for each of the others; the same picture twice might be in both lists."""
    usable: list[_Input] = []
    unusable: dict[str, str] = {}
    first: dict[str, str] = {}
    for each in inputs:
        look = looks[each.identity]
        if isinstance(look, str):
            unusable[each.name] = look
        elif look.pixels in first:
            unusable[each.name] = f"{each.path}: is the same picture as {first[look.pixels]}"
        else:
            first[look.pixels] = each.name
            usable.append(each)
    if len(usable) < 2:
        reason = f"; first of the others: {next(iter(unusable.values()))}" if unusable else ""
        raise ScscoError(f"{len(usable)} of {len(inputs)} photographs can be used, at least 2 are wanted{reason}")
    return usable, unusable


def _keep_plan(folder: Path, settings: dict[str, Any], digests: dict[str, str]) -> None:
    """Composites of other photographs or settings must not mix with what an earlier run left."""
    path = folder / _STATE / "plan.json"
    if path.exists():
        before = _read_json(path)
        _check_same(folder, before["settings"], settings)
        if before["digests"] != digests:
            raise ScscoError(f"{folder}: was begun with other photographs or masks; remove it, or give another folder")
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({"settings": settings, "digests": digests}))


# Second pass: composites.


class _Shared(NamedTuple):
    folder: Path
    digests: dict[str, str]  # of each identity
    seed: int
    suffix: str
    quality: int
    longest: int


class _Unit(NamedTuple):
    """Some composites of one photograph: numbers first to last - 1."""

    photograph: _Input
    first: int
    last: int


def _units(usable: list[_Input], count: int) -> list[_Unit]:
    units = []
    for index, each in enumerate(usable):
        number = count // len(usable) + (index < count % len(usable))
        units += [_Unit(each, first, min(first + _UNIT, number)) for first in range(0, number, _UNIT)]
    return units


class _UnitTask(NamedTuple):
    shared: _Shared
    unit: _Unit


def _make_all(shared: _Shared, units: list[_Unit], workers: int, progress: Progress | None) -> list[dict[str, Any]]:
    """A record for each composite, in the order of the units; those that an earlier run made are not made again."""
    log = shared.folder / _STATE / "records.jsonl"
    done = _read_log(log, shared.folder)
    remaining = [unit for unit in units if _key(unit) not in done]
    total = sum(unit.last - unit.first for unit in units)
    so_far = total - sum(unit.last - unit.first for unit in remaining)
    tasks = (_UnitTask(shared, unit) for unit in remaining)
    with closing(run_tasks(_make_unit, tasks, workers, _UNIT_SECONDS)) as outcomes:
        for task, records in outcomes:
            if isinstance(records, Lost):
                raise ScscoError(f"{task.unit.photograph.path}: {records.reason}; run the same command to go on")
            if isinstance(records, ScscoError):
                raise records
            done[_key(task.unit)] = records
            _add_to_log(log, json.dumps([_key(task.unit), records]) + "\n")
            so_far += len(records)
            if progress is not None:
                progress(so_far, total)
    return [record for unit in units for record in done[_key(unit)]]


def _add_to_log(log: Path, line: str) -> None:
    try:
        with log.open("a") as file:
            file.write(line)
    except OSError as error:
        raise ScscoError(
            f"{log}: cannot be written ({error.strerror or error}); make room, and run the same command to go on"
        ) from error


def _key(unit: _Unit) -> str:
    return f"{unit.photograph.identity} {unit.first} {unit.last}"


def _read_log(log: Path, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What an earlier run made, without a last line cut short and without units whose files are gone."""
    done: dict[str, list[dict[str, Any]]] = {}
    there = {name: _names_in(folder / name) for name in (_COMPOSITES, _MASKS, _REALS)}
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


def _make_unit(task: _UnitTask) -> list[dict[str, Any]] | ScscoError:
    shared, (each, first, last) = task
    try:
        with _one_thread():
            real = shrink(read_picture(each.path).rgb, shared.longest)
            small, moments = _load_look(shared.folder / _STATE, each.identity, shared.digests[each.identity])
            photo = dataclasses.replace(small, rgb=real)
            return [_make_one(shared, each, photo, moments[:, 1], number) for number in range(first, last)]
    except ScscoError as error:
        return error


def _make_one(shared: _Shared, each: _Input, photo: Photo, moments: np.ndarray, number: int) -> dict[str, Any]:
    """Draw until no rule is broken, and write the composite; no files if it was given up."""
    rng = np.random.default_rng((shared.seed, name_hash(each.name), number))
    family = list(FAMILIES)[rng.integers(len(FAMILIES))]
    record = {"identity": each.identity, "photograph": each.name, "family": family}
    rejected: Counter[str] = Counter()
    for _ in range(TRIES):
        region = int(rng.integers(len(photo.candidates)))
        reference = _draw_reference(shared, each.identity, moments[region], rng)
        mask = _region_of(photo, region)
        if not mask.any():  # too thin to outlast the smoothing
            rejected["foreground below"] += 1
            continue
        composite = photo.rgb.copy()
        composite[mask] = recolour(photo.rgb[mask], reference.colours, family)
        measures = measure(photo.rgb, composite, mask)
        broken = broken_rule(measures)
        if broken is None:
            files = _write_pictures(shared, f"{each.identity}_{region + 1}_{number + 1}", photo, mask, composite)
            drawn = {"region": region + 1, "reference": reference.identity, "reference_part": reference.part}
            return record | drawn | {"rejected": rejected, "files": files, "measures": dataclasses.asdict(measures)}
        rejected[broken] += 1
    return record | {"rejected": rejected, "files": {}}


def _region_of(photo: Photo, candidate: int) -> np.ndarray:
    """(H, W) bool at the size of the picture."""
    foreground = Image.fromarray(photo.foreground(candidate))
    return np.asarray(foreground.resize(photo.rgb.shape[1::-1], Image.Resampling.BILINEAR)) > 127


class _Reference(NamedTuple):
    identity: str
    part: str
    colours: np.ndarray  # (m, 3) uint8


def _draw_reference(shared: _Shared, own: str, moments: np.ndarray, rng: np.random.Generator) -> _Reference:
    """Of some random regions of other photographs, and of what lies around them, the one that fits best."""
    others = [identity for identity in shared.digests if identity != own]
    distance = rng.uniform(*MEAN_DISTANCES)
    drawn = []
    for _ in range(REFERENCES):
        identity = others[rng.integers(len(others))]
        _, theirs = _load_look(shared.folder / _STATE, identity, shared.digests[identity])
        region, within = int(rng.integers(len(theirs))), int(rng.random() < 0.5)
        mean, deviation = np.linalg.norm((theirs[region, within] - moments).reshape(2, 3), axis=1)
        miss = float(abs(mean - distance) + deviation)
        drawn.append((np.inf if np.isnan(miss) else miss, identity, region, within))
    _, identity, region, within = min(drawn)
    photo, _ = _load_look(shared.folder / _STATE, identity, shared.digests[identity])
    part = f"{'region' if within else 'around region'} {region + 1}"
    return _Reference(identity, part, photo.rgb[_region_of(photo, region) == within])


def _write_pictures(
    shared: _Shared, stem: str, photo: Photo, mask: np.ndarray, composite: np.ndarray
) -> dict[str, str]:
    """Write composite, mask and real picture, and return their names, by folder."""
    identity, region, _ = stem.split("_")
    pictures = {
        _REALS: (f"{identity}{shared.suffix}", photo.rgb),
        _MASKS: (f"{identity}_{region}.png", mask.astype(np.uint8) * 255),
        _COMPOSITES: (f"{stem}{shared.suffix}", composite),
    }
    for place, (name, picture) in pictures.items():
        path = shared.folder / place / name
        if place != _COMPOSITES and path.exists():  # the same bytes for every composite of the photograph
            continue
        with replacing(path) as temporary:
            # PNG's writer ignores both.
            save_image(Image.fromarray(picture), temporary, quality=shared.quality, subsampling=0)
    return {place: name for place, (name, _) in pictures.items()}


# Lists, table and report.


def _splits(usable: list[_Input]) -> dict[str, str]:
    """Split of each identity."""
    names = [each.name for each in usable]
    tested = set(split_names(names, "test"))
    return {each.identity: each.split or ("test" if each.name in tested else "train") for each in usable}


def _summary(folder: Path, records: list[dict[str, Any]], unusable: dict[str, str]) -> Synthesis:
    families = {}
    for family in FAMILIES:
        own = [record for record in records if record["family"] == family]
        rejected: Counter[str] = sum((Counter(record["rejected"]) for record in own), Counter())
        families[family] = {"kept": sum(bool(record["files"]) for record in own), **dict(sorted(rejected.items()))}
    made = sum(counts["kept"] for counts in families.values())
    return Synthesis(folder, made, len(records) - made, unusable, families)


def _write_lists(output: Path, folder: Path, records: list[dict[str, Any]], splits: dict[str, str]) -> None:
    for split in SPLITS:
        kept = (record for record in records if record["files"] and splits[record["identity"]] == split)
        names = [record["files"][_COMPOSITES] for record in kept]
        with replacing(folder / f"{folder.name}_{split}.txt") as temporary:
            temporary.write_text("".join(f"{name}\n" for name in names))
        with replacing(output / f"IHD_{split}.txt") as temporary:
            temporary.write_text("".join(f"{folder.name}/{_COMPOSITES}/{name}\n" for name in names))


def _write_table(path: Path, records: list[dict[str, Any]], splits: dict[str, str]) -> None:
    measures = [field.name for field in dataclasses.fields(Measures)]
    names = ("composite", "photograph", "split", "region", "family", "reference", "reference_part", "tries", *measures)
    text = io.StringIO()
    table = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    for record in records:
        if record["files"]:
            row = record | {name: f"{value:.6g}" for name, value in record["measures"].items()}
            row |= {"composite": record["files"][_COMPOSITES], "split": splits[record["identity"]]}
            table.writerow(row | {"tries": sum(record["rejected"].values()) + 1})
    with replacing(path) as temporary:
        temporary.write_text(text.getvalue())


def _write_report(
    path: Path,
    result: Synthesis,
    settings: dict[str, Any],
    usable: list[_Input],
    looks: dict[str, _Look],
    splits: dict[str, str],
) -> None:
    report = {
        "made": result.made,
        "given_up": result.given_up,
        "families": result.families,
        "acceptance": {
            family: result.acceptance(family) if sum(result.families[family].values()) else None for family in FAMILIES
        },
        "sources": FAMILIES,
        "unusable": result.unusable,
        "photographs": {
            each.identity: {
                "file": each.name,
                "split": splits[each.identity],
                "regions": looks[each.identity].candidates,
                "from": "segmentation" if each.mask is None else "mask",
                "sha256": looks[each.identity].pixels,
            }
            for each in usable
        },
        "settings": settings,
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n")
