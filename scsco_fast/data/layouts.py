"""Which pictures belong together: the ways in which iHarmony4, and data kept like it, lie on disk.

Lists, the first that is there::

    ROOT/IHD_train.txt               lines: HCOCO/composite_images/c21070_1396052_1.jpg
    ROOT/train.txt                   the same lines, or bare names
    ROOT/train.jsonl                 {"file_name": "HCOCO/composite_images/c21070_1396052_1.jpg", ...}
    ROOT/HCOCO/HCOCO_train.txt       bare names, one list in each subset's folder; ROOT may be such a folder itself
    ROOT/train/                      a folder for each split
    none                             every picture, for train and test alike, with a warning

Folders, for each entry the first that is there::

    ROOT/HCOCO/{composite_images,masks,real_images}/    ID_M_K.jpg, ID_M.png, ID.jpg
    ROOT/{composite_images,masks,real_images}/          the subsets merged
    ROOT/{composite,mask,real}/                         NAME.jpg, NAME.png, NAME.jpg; real/ only where it is wanted
    ROOT/                                               ID_M_K.jpg, ID_M.png and ID.jpg beside each other

Only the file *name* is split at the underscores; ids may contain `-`. A mask or real picture may have another picture
suffix than its composite.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from scsco_fast.data.images import PICTURE_SUFFIXES
from scsco_fast.errors import ScscoError

SUBSETS = ("HAdobe5k", "HCOCO", "HFlickr", "Hday2night")
SPLITS = ("train", "test")
OFFICIAL = ("composite_images", "masks", "real_images")
EQUAL_NAMES = ("composite", "mask", "real")
ONE_FOLDER = (".", ".", ".")

_SUBSET_OF_LETTER = {"a": "HAdobe5k", "c": "HCOCO", "f": "HFlickr", "d": "Hday2night"}
_DIALECTS = {
    OFFICIAL: "composite_images, masks, real_images",
    EQUAL_NAMES: "composite, mask, real with equal names",
    ONE_FOLDER: "all files in one folder",
}
_NAMES_SHOWN = 3

_log = logging.getLogger("scsco_fast.data")


class Member(NamedTuple):
    """The files of one sample; `real` is None only where `find_layout` was told that none is needed."""

    subset: str
    composite: Path
    mask: Path
    real: Path | None


@dataclass(frozen=True)
class Layout:
    """What was found on disk for one split.

    Attributes:
        root: the folder that was looked at.
        split: "train" or "test".
        dialect: the kind of list and of folders, in words.
        members: the complete samples, in the list's order, each once.
        missing: a line for each entry without a composite, mask or real picture.
        malformed: a line for each line of a list that names no composite.
        repeated: entries that are listed more than once.
        shared: entries that are in the other split's list too.
        listed: False where there is no list, so that the split is every picture.
    """

    root: Path
    split: str
    dialect: str
    members: list[Member]
    missing: list[str]
    malformed: list[str]
    repeated: list[str]
    shared: list[str]
    listed: bool

    def no_sample(self) -> str:
        """Why there is no member, in one line, where there is none."""
        if self.missing:
            return f"{self.root}: none of the {self.split} list's entries is complete; first: {self.missing[0]}"
        return (
            f"{self.root}: its list of {self.split} pictures is empty ({self.dialect}); a line for each composite is "
            "wanted, such as HCOCO/composite_images/c21070_1396052_1.jpg"
        )

    def log(self) -> None:
        """Log the dialect in one line, and what is wrong with the lists in one line each."""
        subsets = Counter(member.subset for member in self.members)
        known = f" ({', '.join(f'{name} {count}' for name, count in subsets.items())})" if len(subsets) > 1 else ""
        _log.info("%s: %s: %d %s samples%s", self.root, self.dialect, len(self.members), self.split, known)
        if not self.listed:
            _log.warning(
                "%s: no list says which samples are for training: train and test are the same, and figures on pictures "
                "that a model was trained on say little; IHD_train.txt and IHD_test.txt keep them apart",
                self.root,
            )
        for lines, text in (
            (self.missing, f"of {len(self.members) + len(self.missing)} {self.split} entries are left out"),
            (self.repeated, f"{self.split} entries are listed more than once and used once"),
            (self.shared, "entries are in the list of train and of test"),
        ):
            if lines:
                _log.warning("%s: %d %s: %s", self.root, len(lines), text, first_of(lines))


class _Entry(NamedTuple):
    subset: str
    folder: Path  # holds the three folders of `parts`
    parts: tuple[str, str, str]
    name: str

    @property
    def composite(self) -> Path:
        return self.folder / self.parts[0] / self.name


class _Line(NamedTuple):
    where: str
    base: Path  # the folder that the list lies in
    text: str


def find_layout(root: str | os.PathLike[str], split: str, *, real_required: bool = True) -> Layout:
    """Find the samples of a split on disk, in any of the module's dialects; no picture is opened.

    Args:
        root: the dataset's folder, or one subset's folder.
        split: "train" or "test".
        real_required: with False a sample without a real picture is complete, for checking and harmonizing.

    Raises:
        ScscoError: no such folder, an unknown split, no list and no pictures, or a list that cannot be read.

    Examples:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> for file in ("composite/a.jpg", "mask/a.png", "real/a.jpg"):
        ...     (root / file).parent.mkdir()
        ...     (root / file).touch()
        >>> find_layout(root, "test").dialect
        'no list; composite, mask, real with equal names'
    """
    root = Path(root)
    if split not in SPLITS:
        raise ScscoError(f"split {split!r} is unknown; use one of {', '.join(SPLITS)}")
    if not root.is_dir():
        raise ScscoError(f"{root}: no such folder; give iHarmony4's root, or one subset's folder")
    disk = _Disk()
    found = _read_list(root, split)
    if found is None:
        return _unlisted(root, split, disk, real_required)
    kind, lines = found
    entries, malformed = _parse(lines, disk)
    counts = Counter(entry.composite for entry in entries)
    members, missing = _find_members(_first_of_each(entries), disk, real_required)
    return Layout(
        root,
        split,
        f"{kind}; {_DIALECTS[Counter(entry.parts for entry in entries).most_common(1)[0][0]]}" if entries else kind,
        members,
        missing,
        malformed,
        [str(path) for path, count in counts.items() if count > 1],
        _shared(root, split, counts.keys(), disk),
        listed=True,
    )


def first_of(lines: list[str]) -> str:
    """The first few, for a message."""
    return "; ".join(lines[:_NAMES_SHOWN]) + ("; ..." if len(lines) > _NAMES_SHOWN else "")


def listed_splits(root: str | os.PathLike[str]) -> list[str]:
    """The splits that a list, or a folder of its own, defines."""
    return [split for split in SPLITS if Path(root).is_dir() and _read_list(Path(root), split) is not None]


def _read_list(root: Path, split: str) -> tuple[str, list[_Line]] | None:
    """The kind of list in words and its lines; None where there is none."""
    for path in (root / f"IHD_{split}.txt", root / f"{split}.txt"):
        if _is_list(path):
            return path.name, list(_lines(path))
    jsonl = root / f"{split}.jsonl"
    if _is_list(jsonl):
        return jsonl.name, [_Line(where, base, _file_name(text)) for where, base, text in _lines(jsonl)]
    folders = [root / subset for subset in SUBSETS if (root / subset).is_dir()] or [root]
    lists = [listed for folder in folders for listed in _subset_lists(folder, split)]
    if lists:
        names = ", ".join(path.name for path in lists)
        return f"lists of the subsets ({names})", [line for path in lists for line in _lines(path)]
    own = root / split
    for part in (OFFICIAL[0], EQUAL_NAMES[0]):
        if (own / part).is_dir():
            names_there = sorted(_pictures(_list_folder(own / part)))
            return f"the folder {split}", [_Line(f"{own / part}", own, name) for name in names_there]
    return None


def _subset_lists(folder: Path, split: str) -> list[Path]:
    own = folder / f"{folder.name}_{split}.txt"
    if _is_list(own):
        return [own]
    return [path for path in (folder / f"{subset}_{split}.txt" for subset in SUBSETS) if _is_list(path)]


def _is_list(path: Path) -> bool:
    """Whether there is a file; a folder, or a link to nothing, is refused: another list must not stand in for it."""
    if path.is_file():
        return True
    if os.path.lexists(path):
        raise ScscoError(f"{path}: is {'a folder' if path.is_dir() else 'no file'}; a list of file names is wanted")
    return False


def _lines(path: Path) -> Iterator[_Line]:
    """The list's lines that are not blank, numbered from 1; a byte-order mark and Windows line ends are dropped."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ScscoError(f"{path}: cannot be read as a list of file names ({error})") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield _Line(f"{path}:{number}", path.parent, line.strip())


def _file_name(line: str) -> str:
    """The file name in a line of JSON; the line itself, which is then refused as a name, where there is none."""
    try:
        name = json.loads(line)["file_name"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return line
    return name if isinstance(name, str) and name.strip() else line


def _parse(lines: Iterable[_Line], disk: _Disk) -> tuple[list[_Entry], list[str]]:
    entries: list[_Entry] = []
    malformed: list[str] = []
    for where, base, text in lines:
        try:
            entries.append(_entry(base, text.replace("\\", "/"), disk))
        except ScscoError as error:
            malformed.append(f"{where}: {error}")
    return entries, malformed


def _entry(base: Path, text: str, disk: _Disk) -> _Entry:
    *prefix, name = text.split("/")
    if prefix and prefix[-1] in (OFFICIAL[0], EQUAL_NAMES[0]):
        prefix.pop()
    elif prefix:
        raise ScscoError(f"{text!r} is not in the layout; SUBSET/composite_images/ID_M_K.jpg is wanted")
    if len(prefix) > 2 or any(part in ("", ".", "..") for part in (*prefix, name)) or "\0" in text:
        raise ScscoError(f"{text!r} is not in the layout; SUBSET/composite_images/ID_M_K.jpg is wanted")
    subset = prefix[-1] if prefix else _SUBSET_OF_LETTER.get(name[0], base.name)
    folder, parts = disk.place(base, tuple(prefix), subset)
    if not disk.names(folder / parts[0]) and name in disk.names(base):
        folder, parts = base, ONE_FOLDER
    stem = name.rpartition(".")[0]
    if not stem or (parts != EQUAL_NAMES and stem.count("_") < 2):
        raise ScscoError(f"{text!r} is not a composite's name; ID_M_K.jpg is wanted")
    return _Entry(subset, folder, parts, name)


def _first_of_each(entries: Iterable[_Entry]) -> list[_Entry]:
    return list({entry.composite: entry for entry in entries}.values())


def _shared(root: Path, split: str, own: Iterable[Path], disk: _Disk) -> list[str]:
    """Entries of `own` that the other split's list has too."""
    (other,) = (name for name in SPLITS if name != split)
    try:
        found = _read_list(root, other)
    except ScscoError:  # it is reported by who reads that split
        return []
    if found is None:
        return []
    theirs = {entry.composite for entry in _parse(found[1], disk)[0]}
    return [str(path) for path in own if path in theirs]


def _unlisted(root: Path, split: str, disk: _Disk, real_required: bool) -> Layout:
    """Every composite under `root`, where no list names any."""
    if listed_splits(root):
        raise ScscoError(
            f"{root}: no list of {split} pictures; IHD_{split}.txt is wanted there (the other split has one)"
        )
    folders = [root / subset for subset in SUBSETS if (root / subset).is_dir()] or [root]
    entries: list[_Entry] = []
    malformed: list[str] = []
    for folder in folders:
        for parts in (OFFICIAL, EQUAL_NAMES):
            names = sorted(_pictures(disk.names(folder / parts[0])))
            if names:
                lines = [_Line(str(folder / parts[0]), folder, name) for name in names]
                found, wrong = _parse(lines, disk)
                entries, malformed = entries + found, malformed + wrong
                break
    if not entries and not malformed:
        raise ScscoError(
            f"{root}: no list of {split} pictures; IHD_{split}.txt is wanted there, "
            f"or SUBSET_{split}.txt in each of its subset folders ({', '.join(SUBSETS)}), or composite/ and mask/"
        )
    members, missing = _find_members(entries, disk, real_required)
    dialect = "no list" + (f"; {_DIALECTS[entries[0].parts]}" if entries else "")
    return Layout(root, split, dialect, members, missing, malformed, [], [], listed=False)


def _find_members(entries: list[_Entry], disk: _Disk, real_required: bool) -> tuple[list[Member], list[str]]:
    """The entries whose files are there, and a line for each of the others."""
    members: list[Member] = []
    missing: list[str] = []
    for subset, folder, parts, name in entries:
        composite, mask, real = (folder / part for part in parts)
        stem, _, suffix = name.rpartition(".")
        mask_stem, real_stem = stem, stem
        if parts != EQUAL_NAMES:
            real_stem, number, _ = stem.rsplit("_", 2)
            mask_stem = f"{real_stem}_{number}"
        mask_name = _pick(disk.names(mask), mask_stem, ".png")
        real_name = _pick(disk.names(real), real_stem, f".{suffix}")
        if name not in disk.names(composite):
            missing.append(f"{composite / name}: no such file")
        elif mask_name is None:
            missing.append(f"{mask / f'{mask_stem}.png'}: no such file")
        elif real_name is None and real_required:
            missing.append(f"{real / f'{real_stem}.{suffix}'}: no such file")
        else:
            members.append(
                Member(subset, composite / name, mask / mask_name, None if real_name is None else real / real_name)
            )
    return members, missing


class _Disk:
    """Listings of folders, each read once: 200,000 separate looks at the disk take minutes on a network drive."""

    def __init__(self) -> None:
        self.names = cache(_list_folder)
        self.place = cache(self._place)

    def _place(self, base: Path, prefix: tuple[str, ...], subset: str) -> tuple[Path, tuple[str, str, str]]:
        """The folder of an entry: as its line says, without the line's beginning, the subset's, that of all subsets."""
        candidates = (base.joinpath(*prefix), base.joinpath(*prefix[-1:]), base / subset, base)
        places = ((folder, parts) for folder in candidates for parts in (OFFICIAL, EQUAL_NAMES))
        return next((place for place in places if self.names(place[0] / place[1][0])), (candidates[0], OFFICIAL))


def _list_folder(folder: Path) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))
    except (OSError, ValueError):
        return frozenset()


def _pictures(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.lower().endswith(PICTURE_SUFFIXES)]


def _pick(names: frozenset[str], stem: str, suffix: str) -> str | None:
    """`stem` with `suffix`, or with another picture suffix that tools leave behind; None where there is none."""
    return next((stem + end for end in (suffix, *PICTURE_SUFFIXES) if stem + end in names), None)
