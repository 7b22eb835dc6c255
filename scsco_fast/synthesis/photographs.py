"""The photographs that composites are made of: found, and read and segmented once, before anything is made of them.

What the composites need of a photograph beside its pixels goes to `STATE/ID.npz`, where an interrupted run finds it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from scsco_fast.data.images import PICTURE_SUFFIXES, read_picture
from scsco_fast.data.photos import (
    MASKS_FOLDER,
    SPLITS,
    Photo,
    builtin_files,
    masked_photo,
    picture_names,
    segmented_photo,
    shrink,
    split_names,
)
from scsco_fast.data.workers import Lost, run_tasks
from scsco_fast.errors import ScscoError
from scsco_fast.synthesis.realism import lab_of
from scsco_fast.system.files import is_same_path, real_path, replacing

LEAST_SIDE = 64  # pixels of a photograph; its regions would be a few pixels

_PALETTE_SIDE = 128  # of a photograph whose colours are borrowed
_LEAST_REFERENCE = 64  # pixels
_CACHED_PHOTOS = 256

Progress = Callable[[int, int], object]


class Source(NamedTuple):
    """A photograph's file and its mask's, if it has one; `identity` is what its files in the data set are named by."""

    identity: str
    name: str
    path: Path
    mask: Path | None
    split: str | None  # fixed for the built-in ones


def find_photographs(
    photos: str | os.PathLike[str], masks: str | os.PathLike[str] | None, output: Path
) -> list[Source]:
    """All photographs of a folder, or the built-in ones, in the order of their names, each with its mask.

    Raises:
        ScscoError: no such folder, or the output or the masks are in the photographs' place.
    """
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
    listing = lru_cache(maxsize=None)(names_in)
    sources = []
    for number, (name, path, split) in enumerate(sorted(found), start=1):
        mask = None if masks is None else _mask_of(Path(masks), PurePosixPath(name), listing)
        sources.append(Source(f"s{number:05d}", name, path, mask, split))
    return sources


def _mask_of(masks: Path, name: PurePosixPath, listing: Callable[[Path], frozenset[str]]) -> Path | None:
    folder = masks / name.parent
    found = (name.stem + suffix for suffix in (".png", *PICTURE_SUFFIXES) if name.stem + suffix in listing(folder))
    first = next(found, None)
    return None if first is None else folder / first


def names_in(folder: Path) -> frozenset[str]:
    """What a folder holds; nothing where there is none."""
    return frozenset(os.listdir(folder)) if folder.is_dir() else frozenset()


class Inspected(NamedTuple):
    """What was found in a photograph that can be used."""

    digest: str  # of the pixels, the regions and the candidates
    pixels: str  # digest of the pixels
    candidates: int  # regions that can be a foreground


class _Task(NamedTuple):
    photograph: Source
    state: Path
    longest: int


def inspect_all(
    sources: list[Source], state: Path, longest: int, workers: int, progress: Progress | None
) -> dict[str, Any]:
    """An `Inspected`, or the reason why the photograph cannot be used, for each identity."""
    results: dict[str, Any] = {}
    with closing(run_tasks(_inspect, (_Task(each, state, longest) for each in sources), workers)) as outcomes:
        for task, found in outcomes:
            if isinstance(found, ScscoError):
                raise found
            each = task.photograph
            results[each.identity] = f"{each.path}: {found.reason}" if isinstance(found, Lost) else found
            if progress is not None:
                progress(len(results), len(sources))
    return results


def _inspect(task: _Task) -> Inspected | str | ScscoError:
    """What is found in a photograph, why it cannot be used, or why the result cannot be written."""
    each, longest, cache = task.photograph, task.longest, task.state / f"{task.photograph.identity}.npz"
    try:
        stamp = json.dumps([each.name, longest, *(_stamp(path) for path in (each.path, each.mask) if path is not None)])
        known = _known(cache, stamp)
        if known is not None:
            return known
        photo = _read_photo(each, longest)
    except ScscoError as error:
        return str(error)
    pixels = _digest(repr(photo.rgb.shape).encode() + photo.rgb.tobytes())
    candidates = json.dumps(photo.candidates)
    digest = _digest(pixels.encode() + photo.regions.tobytes() + candidates.encode())
    found = Inspected(digest, pixels, len(photo.candidates))
    palette = shrink(photo.rgb, _PALETTE_SIDE)
    with one_thread():
        moments = _moments(dataclasses.replace(photo, rgb=palette))
    try:
        with replacing(cache) as temporary:
            np.savez_compressed(
                temporary,
                stamp=stamp,
                look=json.dumps(found),
                candidates=candidates,
                smoothing=photo.smoothing,
                regions=photo.regions,
                palette=palette,
                moments=moments,
            )
    except ScscoError as error:
        return error
    return found


def _known(cache: Path, stamp: str) -> Inspected | None:
    """What an earlier run found, if the photograph is the same file."""
    if not cache.exists():
        return None
    with np.load(cache) as saved:
        return Inspected(*json.loads(str(saved["look"]))) if str(saved["stamp"]) == stamp else None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _stamp(path: Path) -> list[int]:
    try:
        status = path.stat()
    except OSError as error:
        raise ScscoError(f"{path}: cannot be looked at ({error.strerror})") from error
    return [status.st_size, status.st_mtime_ns]


def _read_photo(each: Source, longest: int) -> Photo:
    rgb = read_picture(each.path).rgb
    if min(rgb.shape[:2]) < LEAST_SIDE:
        raise ScscoError(f"{each.path}: is {rgb.shape[1]}x{rgb.shape[0]}, at least {LEAST_SIDE} pixels each are wanted")
    if each.mask is not None:
        return masked_photo(each.name, rgb, each.mask, longest)
    return segmented_photo(each.name, rgb, longest)


def _moments(photo: Photo) -> np.ndarray:
    """(candidates, 2, 6): CIE Lab means and deviations of what lies around each region, and of it; NaN if too small."""
    lab = lab_of(photo.rgb.reshape(-1, 3))
    regions = (region_of(photo, candidate).ravel() for candidate in range(len(photo.candidates)))
    parts = (lab[inside == within] for inside in regions for within in (False, True))
    enough = (part if len(part) >= _LEAST_REFERENCE else np.full((1, 3), np.nan) for part in parts)
    moments = [np.concatenate([part.mean(axis=0), part.std(axis=0)]) for part in enough]
    return np.asarray(moments, dtype=np.float32).reshape(-1, 2, 6)


def region_of(photo: Photo, candidate: int) -> np.ndarray:
    """One of the regions that can be a foreground, (H, W) bool at the size of the picture."""
    foreground = Image.fromarray(photo.foreground(candidate))
    return np.asarray(foreground.resize(photo.rgb.shape[1::-1], Image.Resampling.BILINEAR)) > 127


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: sums depend, in their last bits, on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@lru_cache(maxsize=_CACHED_PHOTOS)
def load_inspected(state: Path, identity: str, digest: str) -> tuple[Photo, np.ndarray]:
    """A photograph's regions, with its small version as the picture, and its regions' `_moments`.

    The digest keeps what was read for an earlier dataset of the same place apart.
    """
    with np.load(state / f"{identity}.npz") as saved:
        candidates = tuple(tuple(labels) for labels in json.loads(str(saved["candidates"])))
        photo = Photo(identity, saved["palette"], saved["regions"], candidates, float(saved["smoothing"]))
        return photo, saved["moments"]


def sort_out(sources: list[Source], inspected: dict[str, Any]) -> tuple[list[Source], dict[str, str]]:
    """The photographs to use, and the reason for each of the others.

    Of equal pictures the first is used: one of two might be for training and the other for testing.

    Raises:
        ScscoError: fewer than two can be used.
    """
    usable: list[Source] = []
    unusable: dict[str, str] = {}
    first: dict[str, str] = {}
    for each in sources:
        found = inspected[each.identity]
        if isinstance(found, str):
            unusable[each.name] = found
        elif found.pixels in first:
            unusable[each.name] = f"{each.path}: is the same picture as {first[found.pixels]}"
        else:
            first[found.pixels] = each.name
            usable.append(each)
    if len(usable) < 2:
        reason = f"; first of the others: {next(iter(unusable.values()))}" if unusable else ""
        raise ScscoError(f"{len(usable)} of {len(sources)} photographs can be used, at least 2 are wanted{reason}")
    return usable, unusable


def splits_of(usable: list[Source]) -> dict[str, str]:
    """The split of each identity, train or test."""
    names = [each.name for each in usable]
    tested = set(split_names(names, "test"))
    return {each.identity: each.split or ("test" if each.name in tested else "train") for each in usable}
