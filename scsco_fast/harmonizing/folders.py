"""Harmonize folders of pictures: which mask belongs to which picture, processes, resuming, and a report."""

import json
import multiprocessing
import tempfile
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from scsco_fast.data.images import PICTURE_SUFFIXES
from scsco_fast.data.workers import Lost, run_tasks
from scsco_fast.errors import ScscoError
from scsco_fast.harmonizing.files import harmonize_file
from scsco_fast.harmonizing.settings import Settings
from scsco_fast.nn.unet import HarmonizationUNet
from scsco_fast.nn.weights import load_model, save_model
from scsco_fast.system.files import check_writable, is_same_path, replacing, sweep
from scsco_fast.system.locks import writing

REPORT = "report.json"
MASK_SUFFIXES = ("_mask", "-mask", ".mask", "_m")
# Subfolders of pictures and of masks, the first pair that is there.
LAYOUTS = (("composite_images", "masks"), ("images", "masks"), ("composite", "mask"), ("image", "mask"))
TIME_LIMIT = 3600.0  # seconds for a picture in a process of its own


class Pair(NamedTuple):
    """A picture and its mask; None where it has none, or is its own, and `reason` says which."""

    image: Path
    mask: Path | None
    reason: str = ""


@dataclass(frozen=True)
class Entry:
    """What became of one picture.

    Attributes:
        status: "done", "skipped" (its output was there already) or "failed".
        seconds: of decoding, computing and writing; 0 where nothing was done.
        width, height: of what was written; 0 where nothing was.
        message: why it failed, or what was noticed; else empty.
    """

    image: str
    mask: str | None
    output: str
    status: str
    seconds: float = 0.0
    width: int = 0
    height: int = 0
    message: str = ""


@dataclass
class FolderReport:
    """What `harmonize_folder` did with each picture, in the order in which they were done.

    Attributes:
        entries: one for each picture.
        ignored: what else lies in the folders of the pictures and masks, with the reason why it is left alone.
    """

    entries: list[Entry] = field(default_factory=list)
    ignored: dict[Path, str] = field(default_factory=dict)

    @property
    def written(self) -> list[Path]:
        """The outputs written by this run."""
        return [Path(entry.output) for entry in self.entries if entry.status == "done"]

    @property
    def skipped(self) -> list[Path]:
        """The outputs that were there already."""
        return [Path(entry.output) for entry in self.entries if entry.status == "skipped"]

    @property
    def failed(self) -> dict[Path, str]:
        """The pictures that could not be harmonized, with the reason."""
        return {Path(entry.image): entry.message for entry in self.entries if entry.status == "failed"}

    def write(self, path: str | Path, pictures: int) -> None:
        """Write it as JSON, whole or not at all; `pictures` is how many there are, done or not."""
        counts = {"done": len(self.written), "skipped": len(self.skipped), "failed": len(self.failed)}
        content = {
            "pictures": pictures,
            **counts,
            "not_reached": pictures - len(self.entries),
            "files": [asdict(entry) for entry in self.entries],
            "ignored": [{"file": str(path), "reason": reason} for path, reason in self.ignored.items()],
        }
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=True) + "\n", encoding="utf-8")


class _Task(NamedTuple):
    pair: Pair
    target: Path
    settings: Settings
    model_file: str


def harmonize_folder(
    images: str | Path,
    masks: str | Path | None,
    output: str | Path,
    model: HarmonizationUNet,
    settings: Settings | None = None,
    *,
    suffix: str | None = None,
    alpha_mask: bool = False,
    overwrite: bool = False,
    workers: int = 0,
    report: str | Path | None = None,
    progress: Callable[[Entry, int, int], None] | None = None,
) -> FolderReport:
    """Harmonize each picture of a folder; one that cannot be used is reported and does not stop the others.

    Outputs are written whole or not at all, so one that is there is complete, and is skipped: an interrupted run goes
    on where it stopped. The report is written at the end, also of an interrupted run.

    Args:
        images, masks: as `find_pairs`.
        output: folder of the outputs, which have the pictures' names.
        settings: options of each picture.
        suffix: format of the outputs, such as ".png"; None is each picture's own.
        alpha_mask: each picture's own alpha channel is its mask.
        overwrite: harmonize again what is there already.
        workers: processes, with one thread each; 0, or a single picture, is done in this one.
        report: file of the report; None is OUTPUT/report.json.
        progress: called with each entry, how many are done, and how many there are.

    Raises:
        ScscoError: a folder is missing, holds no picture, or is the output folder, or that cannot be written to, or
            another run is writing to it.
    """
    output = Path(output)
    pairs = find_pairs(images, masks, alpha_mask)
    folders = [folder for folder in _folders_of(images, masks, alpha_mask) if folder is not None]
    if any(is_same_path(output, folder) for folder in folders):
        raise ScscoError(f"{output}: the output folder holds the inputs; name another folder")
    check_writable(output)
    report_path = output / REPORT if report is None else Path(report)
    if report_path.suffix != ".json":
        raise ScscoError(f"{report_path}: the report is JSON; name a .json file")
    check_writable(report_path.parent)
    result = FolderReport(ignored=_ignored(folders, pairs))
    with writing(output):
        sweep(output)
        try:
            with closing(_entries(pairs, output, model, settings or Settings(), suffix, overwrite, workers)) as entries:
                for entry in entries:
                    result.entries.append(entry)
                    if progress is not None:
                        progress(entry, len(result.entries), len(pairs))
        finally:
            sweep(output)  # processes that were ended in the middle of a file
            result.write(report_path, len(pairs))
    return result


def find_pairs(images: str | Path, masks: str | Path | None = None, alpha_mask: bool = False) -> list[Pair]:
    """The pictures of a folder, by name, and the mask of each.

    With `masks`, a folder, the mask of `cat.jpg` is the first of these that is there, with any picture suffix: `cat`,
    `cat_mask`, `cat-mask`, `cat.mask`, `cat_m`, and for `ID_M_K.jpg` iHarmony4's `ID_M`. Without, `images` is a folder
    that holds such a pair of folders (`LAYOUTS`), or all files beside each other, where a name's end tells the masks.

    Raises:
        ScscoError: a folder is missing or holds no picture.

    Examples:
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("cat.jpg", "cat_mask.png", "dog.png"):
        ...     (folder / name).touch()
        >>> [(pair.image.name, pair.mask and pair.mask.name) for pair in find_pairs(folder)]
        [('cat.jpg', 'cat_mask.png'), ('dog.png', None)]
    """
    pictures, mask_folder = _folders_of(images, masks, alpha_mask)
    found = _pictures_of(pictures)
    if mask_folder is None:
        return [Pair(path, None) for path in found]
    rules: tuple[str, ...] = MASK_SUFFIXES
    if is_same_path(mask_folder, pictures):
        candidates, found = found, _without_masks(found, pictures)
    else:
        candidates = _pictures_of(mask_folder)
        rules = ("", *rules)
    by_stem: dict[str, list[Path]] = {}
    for path in candidates:
        by_stem.setdefault(path.stem, []).append(path)
    return [_pair(path, by_stem, rules) for path in found]


def _folders_of(images: str | Path, masks: str | Path | None, alpha_mask: bool) -> tuple[Path, Path | None]:
    """The folder of the pictures and that of their masks; None where each is its own."""
    pictures = Path(images)
    if alpha_mask:
        return pictures, None
    if masks is not None:
        return pictures, Path(masks)
    parts = next((p for p in LAYOUTS if all((pictures / part).is_dir() for part in p)), (".", "."))
    return pictures / parts[0], pictures / parts[1]


def _ignored(folders: list[Path], pairs: list[Pair]) -> dict[Path, str]:
    """What lies in the folders and is neither a picture nor the mask of one."""
    used = {path for pair in pairs for path in (pair.image, pair.mask)}
    left = [path for folder in folders for path in sorted(folder.iterdir()) if path not in used]
    return {path: _why_ignored(path) for path in left}


def _why_ignored(path: Path) -> str:
    if path.is_dir():
        return "a folder; only what lies directly in the folder of the pictures is harmonized"
    if path.name.startswith("."):
        return "a hidden file"
    if path.suffix.lower() in PICTURE_SUFFIXES:
        return "a mask that belongs to no picture"
    return f"{path.suffix or 'a name without suffix'} is none of {', '.join(PICTURE_SUFFIXES)}"


def _pair(path: Path, masks: dict[str, list[Path]], rules: tuple[str, ...]) -> Pair:
    stems = [path.stem + rule for rule in rules]
    parts = path.stem.rsplit("_", 1)
    if len(parts) == 2 and "_" in parts[0] and "" in rules:
        stems.append(parts[0])
    for stem in stems:
        candidates = masks.get(stem, [])
        if len(candidates) > 1:
            names = ", ".join(candidate.name for candidate in candidates)
            return Pair(path, None, f"{path}: more than one mask ({names}); keep one")
        if candidates:
            return Pair(path, candidates[0])
    wanted = [stems[0], *stems[1:2], *([parts[0]] if parts[0] in stems else [])]
    return Pair(path, None, f"{path}: no mask; wanted a file named {' or '.join(f'{stem}.png' for stem in wanted)}")


def _without_masks(paths: list[Path], folder: Path) -> list[Path]:
    """The pictures among files that lie beside their masks; `x_m` is a mask only where there is an `x`."""
    stems = {path.stem for path in paths}

    def is_mask(stem: str) -> bool:
        ends = [end for end in MASK_SUFFIXES if stem.endswith(end)]
        return any(end != "_m" or stem.removesuffix(end) in stems for end in ends)

    pictures = [path for path in paths if not is_mask(path.stem)]
    if not pictures:
        raise ScscoError(f"{folder}: holds masks only ({paths[0].name}, ...); wanted the pictures beside them")
    return pictures


def _entries(
    pairs: list[Pair],
    output: Path,
    model: HarmonizationUNet,
    settings: Settings,
    suffix: str | None,
    overwrite: bool,
    workers: int,
) -> Generator[Entry, None, None]:
    tasks: list[_Task] = []
    taken: dict[Path, Path] = {}
    for pair in pairs:
        target = output / (pair.image.name if suffix is None else pair.image.stem + suffix)
        reason = pair.reason
        if target in taken:
            reason = f"{pair.image}: its output {target} is taken by {taken[target].name}; rename one"
        taken.setdefault(target, pair.image)
        if reason:
            yield _entry(pair, target, "failed", reason)
        elif not overwrite and target.is_file() and target.stat().st_size > 0:
            yield _entry(pair, target, "skipped")
        else:
            tasks.append(_Task(pair, target, settings, ""))
    yield from _here(tasks, model) if workers == 0 or len(tasks) < 2 else _in_processes(tasks, model, workers)


def _here(tasks: list[_Task], model: HarmonizationUNet) -> Iterator[Entry]:
    for task in tasks:
        yield _harmonize(task, model)


def _in_processes(tasks: list[_Task], model: HarmonizationUNet, workers: int) -> Iterator[Entry]:
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="scsco-"))
        model_file = str(Path(folder) / "model.safetensors")
        save_model(model, model_file)
        given = [task._replace(model_file=model_file) for task in tasks]
        results = stack.enter_context(closing(run_tasks(_work, given, min(workers, len(tasks)), TIME_LIMIT)))
        for task, entry in results:
            if isinstance(entry, Lost):
                reason = f"{task.pair.image}: {entry.reason}; if memory ran out, take fewer --workers"
                entry = _entry(task.pair, task.target, "failed", reason)
            yield entry


def _work(task: _Task) -> Entry:
    """In a process of `run_tasks`."""
    return _harmonize(task, _model_of_process(task.model_file))


@cache
def _model_of_process(path: str) -> HarmonizationUNet:
    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)  # the processes share the cores
    return load_model(path)


def _harmonize(task: _Task, model: HarmonizationUNet) -> Entry:
    pair, target, settings = task.pair, task.target, task.settings
    start = time.perf_counter()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            width, height = harmonize_file(pair.image, pair.mask, target, model, settings)
    except ScscoError as error:
        return _entry(pair, target, "failed", str(error), time.perf_counter() - start)
    except Exception as error:  # whatever one file brings about, the others are still to be done
        reason = f"{pair.image}: {type(error).__name__}: {error}"
        return _entry(pair, target, "failed", reason, time.perf_counter() - start)
    message = "; ".join(dict.fromkeys(str(warning.message) for warning in caught))
    return _entry(pair, target, "done", message, time.perf_counter() - start, width, height)


def _entry(
    pair: Pair, target: Path, status: str, message: str = "", seconds: float = 0.0, width: int = 0, height: int = 0
) -> Entry:
    mask = None if pair.mask is None else str(pair.mask)
    return Entry(
        str(pair.image), mask, str(target), status, round(seconds, 3), width, height, " ".join(message.split())
    )


def _pictures_of(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ScscoError(f"{folder}: no such folder; wanted a folder of pictures")
    seen = (path for path in folder.iterdir() if not path.name.startswith("."))  # temporaries, and what macOS adds
    # A pipe, or a link that leads nowhere, is reported as a picture that cannot be read.
    found = sorted(path for path in seen if path.suffix.lower() in PICTURE_SUFFIXES and not path.is_dir())
    if not found:
        raise ScscoError(f"{folder}: holds no picture ({', '.join(PICTURE_SUFFIXES)})")
    return found
