"""A packed store: pictures resized once and kept as bytes, so that a batch is a few copies out of mapped memory.

::

    STORE/train/composite-00000.bin   records: (S, S, 3) uint8 composite, then its mask, a bit a pixel (numpy.packbits)
    STORE/train/real-00000.bin        records: (S, S, 3) uint8 real picture, each once for all of its composites
    STORE/train/index.json            names, which real picture belongs to which composite, a checksum of every record
    STORE/test/                       the same

`scsco_fast.data.packing` writes it. At 256x256 a composite takes 205 kB and a real picture 197 kB.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from scsco_fast.data.ahead import ahead
from scsco_fast.data.crops import boxes_in_crops
from scsco_fast.data.iharmony4 import draw_crop
from scsco_fast.data.images import image_to_tensor
from scsco_fast.data.layouts import SPLITS
from scsco_fast.data.samples import BadSample, PackedBatch, Sample
from scsco_fast.errors import ScscoError
from scsco_fast.regions import foreground_boxes

FORMAT = 1
INDEX = "index.json"
WORK = ".work"  # in a split's folder: what is not finished
KINDS = ("composite", "real")
FILTER = "pictures: PIL bilinear, antialiased; masks: above 127 at full size, then nearest neighbour"

_REPAIR = "pack it again with scsco prepare, into another folder"


@dataclass(frozen=True)
class Index:
    """What index.json holds; the lists have one entry for each composite, or each real picture, in their order.

    Attributes:
        size: side of the pictures in pixels.
        records_per_shard: records in each file but the last of its kind.
        source: digest of the names, sizes and times of the files that were packed.
        dialect: how they lay on disk, in words.
        names, subsets: of the composites.
        real: number of each composite's real picture.
        widths, heights: of the composites before they were resized; 0 where they could not be read.
        composite_checksums, real_checksums: CRC-32 of each record.
        bad: reason by number of composite; its record is zeros.
        missing: a line for each entry of the list that was left out.
    """

    size: int
    records_per_shard: int
    source: str
    dialect: str
    names: list[str]
    subsets: list[str]
    real: list[int]
    widths: list[int]
    heights: list[int]
    composite_checksums: list[int]
    real_checksums: list[int]
    bad: dict[int, str]
    missing: list[str]

    def checksums(self, kind: str) -> list[int]:
        return self.composite_checksums if kind == "composite" else self.real_checksums

    def shards(self, kind: str) -> Iterator[tuple[str, range]]:
        """Name of each file of a kind, and the numbers of its records."""
        return shards(kind, len(self.checksums(kind)), self.records_per_shard)

    def to_json(self) -> str:
        content = json.dumps({"format": FORMAT, "filter": FILTER, **asdict(self)}, sort_keys=True)
        return f'{{"checksum": {zlib.crc32(content.encode())}, "content":\n{content}}}\n'


def shards(kind: str, count: int, records_per_shard: int) -> Iterator[tuple[str, range]]:
    """Name of each file that `count` records of a kind fill, and the numbers of its records."""
    for number, start in enumerate(range(0, count, records_per_shard)):
        yield f"{kind}-{number:05d}.bin", range(start, min(start + records_per_shard, count))


def record_bytes(kind: str, size: int) -> int:
    """Length of a record: three bytes a pixel, and a bit a pixel for a composite's mask."""
    return 3 * size * size + (-(-size * size // 8) if kind == "composite" else 0)


def read_index(folder: str | os.PathLike[str]) -> Index:
    """The index of one split's folder, checked against its own checksum and the lengths of the files.

    Raises:
        ScscoError: no packed store, an unfinished or damaged one, or one of another version.
    """
    folder = Path(folder)
    path = folder / INDEX
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        state = "the store is not finished; run the same scsco prepare again" if folder.is_dir() else "no such store"
        raise ScscoError(f"{path}: {state}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ScscoError(f"{path}: cannot be read ({error}); {_REPAIR}") from error
    head, _, content = text.partition("\n")
    content = content.removesuffix("}\n")
    if head != f'{{"checksum": {zlib.crc32(content.encode())}, "content":':
        raise ScscoError(f"{path}: the index has been changed, its checksum is wrong; {_REPAIR}")
    values = json.loads(content)
    if values.pop("format") != FORMAT or values.pop("filter") != FILTER:
        raise ScscoError(f"{path}: a store of another version; {_REPAIR}")
    values["bad"] = {int(number): reason for number, reason in values["bad"].items()}
    index = Index(**values)
    for kind in KINDS:
        for name, records in index.shards(kind):
            _check_length(folder / name, len(records) * record_bytes(kind, index.size))
    return index


def _check_length(path: Path, wanted: int) -> None:
    try:
        length = path.stat().st_size
    except OSError as error:
        raise ScscoError(f"{path}: part of the store is missing ({error.strerror}); {_REPAIR}") from error
    if length != wanted:
        raise ScscoError(f"{path}: is {length} bytes long, wanted {wanted}; {_REPAIR}")


def stores(root: str | os.PathLike[str]) -> list[Path]:
    """The folders of a packed store's splits, finished or not; none where `root` is something else."""
    folders = [Path(root) / split for split in SPLITS]
    return [folder for folder in folders if (folder / INDEX).is_file() or (folder / WORK).is_dir()]


def verify(folder: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None) -> list[str]:
    """A line for each record of one split whose bytes have changed since it was written; it names file and picture.

    Raises:
        ScscoError: as `read_index`.
    """
    folder = Path(folder)
    index = read_index(folder)
    total, done, changed = sum(len(index.checksums(kind)) for kind in KINDS), 0, []
    for kind in KINDS:
        names = index.names if kind == "composite" else _names_of_real(index)
        for name, records in index.shards(kind):
            for number, checksum in zip(records, record_checksums(folder / name, kind, index.size), strict=True):
                if checksum != index.checksums(kind)[number]:
                    place = f"record {number - records.start} ({names[number]})"
                    changed.append(f"{folder / name}: {place} has been changed, its checksum is wrong; {_REPAIR}")
            done += len(records)
            if progress is not None:
                progress(done, total)
    return changed


def record_checksums(path: Path, kind: str, size: int) -> Iterator[int]:
    """CRC-32 of each record of a file."""
    length = record_bytes(kind, size)
    try:
        with path.open("rb") as file:
            while record := file.read(length):
                yield zlib.crc32(record)
    except OSError as error:
        raise ScscoError(f"{path}: cannot be read ({error.strerror or error}); {_REPAIR}") from error


def _names_of_real(index: Index) -> dict[int, str]:
    return {real: f"the real picture of {name}" for real, name in zip(index.real, index.names, strict=True)}


class PackedDataset(Dataset[Sample | BadSample]):
    """The samples of a packed store, in the order of `IHarmony4`, with the same bytes as `IHarmony4(size=...)`.

    `dataset[i]` is a `Sample`, or a `BadSample`. `dataset.__getitems__([...])`, which `DataLoader` calls, is a whole
    `PackedBatch` of bytes: one copy for each picture out of mapped memory. Its `to(device)` makes floats, crops and
    flips there.

    `augment` takes a random crop of at least 70 % of the stored picture's area, with foreground and background in it,
    enlarges it to the picture's size, and flips half of the pictures. Which crop is a pure function of `seed` and the
    index; an index may exceed the length, for new crops in every pass, as in `IHarmony4`.

    Args:
        root: the store's folder.
        split: "train" or "test".
        subsets: names of the subsets to keep; None keeps all.
        augment: random crop and flip.
        seed: of the augmentation, not negative.
        verify: read the whole split once and compare every checksum; else only the index's, and all lengths.

    Raises:
        ScscoError: no store, an unfinished or damaged one, an unknown subset or split, a negative seed.

    Examples:
        (needs a store)

        >>> dataset = PackedDataset("packed", "train", augment=True)  # doctest: +SKIP
        >>> dataset.__getitems__([0, 1]).to("cuda").composite.shape  # doctest: +SKIP
        torch.Size([2, 3, 256, 256])
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str = "train",
        subsets: Sequence[str] | None = None,
        augment: bool = False,
        seed: int = 0,
        verify: bool = False,
    ) -> None:
        if split not in SPLITS:
            raise ScscoError(f"split {split!r} is unknown; use one of {', '.join(SPLITS)}")
        if seed < 0:
            raise ScscoError(f"seed {seed} is negative; use 0 or more")
        self.root, self.split, self.augment, self.seed = Path(root), split, augment, seed
        self.folder = self.root / split
        if verify and (changed := _verify(self.folder)):
            raise ScscoError(changed[0] + (f" ({len(changed)} such records)" if len(changed) > 1 else ""))
        self.index = read_index(self.folder)
        self.size = self.index.size
        self.rows = list(range(len(self.index.names)))  # numbers of the composites that are kept
        if subsets is not None:
            known = sorted(set(self.index.subsets))
            for subset in subsets:
                if subset not in known:
                    raise ScscoError(f"subset {subset!r} is not in the store; it has {', '.join(known)}")
            self.rows = [row for row in self.rows if self.index.subsets[row] in subsets]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Sample | BadSample]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Sample | BadSample:
        batch = self.__getitems__([index])
        if batch.bad:
            return batch.bad[0]
        if not self.augment:
            # Without a detour over the batch's floats, for those who read one by one.
            mask = np.unpackbits(batch.mask[0].numpy(), count=self.size**2).reshape(1, self.size, self.size)
            composite, real = (image_to_tensor(picture[0].numpy()) for picture in (batch.composite, batch.real))
            return Sample(composite, real, torch.from_numpy(mask.astype(np.float32)), batch.names[0], batch.subsets[0])
        floats = batch.to("cpu")
        return Sample(floats.composite[0], floats.real[0], floats.mask[0], batch.names[0], batch.subsets[0])

    def __getitems__(self, indices: Sequence[int]) -> PackedBatch:
        """The samples at `indices` as bytes, in one batch; the bad ones are listed apart."""
        rows = [self.rows[index % len(self.rows)] for index in indices]
        bad = [BadSample(self.index.names[row], self.index.bad[row]) for row in rows if row in self.index.bad]
        good = [(index, row) for index, row in zip(indices, rows, strict=True) if row not in self.index.bad]
        pixels = 3 * self.size * self.size
        composite = np.empty((len(good), self.size, self.size, 3), np.uint8)
        real = np.empty_like(composite)
        mask = np.empty((len(good), record_bytes("composite", self.size) - pixels), np.uint8)
        shape = (self.size, self.size, 3)
        for place, (_, row) in enumerate(good):
            record = self._record("composite", row)
            composite[place] = record[:pixels].reshape(shape)
            mask[place] = record[pixels:]
            real[place] = self._record("real", self.index.real[row]).reshape(shape)
        unpacked = np.unpackbits(mask, axis=1, count=self.size**2).reshape(-1, 1, self.size, self.size).view(bool)
        boxes, flips = self._draw_crops([index for index, _ in good], unpacked[:, 0]) if self.augment else (None, None)
        foreground = foreground_boxes(torch.from_numpy(unpacked))
        assert foreground is not None  # the masks are on the CPU
        if boxes is not None and flips is not None:
            foreground = boxes_in_crops(foreground, boxes, flips, self.size, self.size)
        return PackedBatch(
            torch.from_numpy(composite),
            torch.from_numpy(real),
            torch.from_numpy(mask),
            boxes,
            flips,
            foreground,
            [self.index.names[row] for _, row in good],
            [self.index.subsets[row] for _, row in good],
            bad,
        )

    def _draw_crops(self, indices: Sequence[int], masks: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        drawn = [
            draw_crop(mask, np.random.default_rng((self.seed, index)))
            for mask, index in zip(masks, indices, strict=True)
        ]
        boxes = torch.tensor([box for box, _ in drawn], dtype=torch.int32).reshape(-1, 4)
        return boxes, torch.tensor([flip for _, flip in drawn], dtype=torch.bool)

    def _record(self, kind: str, number: int) -> np.ndarray:
        shard, row = divmod(number, self.index.records_per_shard)
        record: np.ndarray = self._maps[kind][shard][row]
        return record

    @cached_property
    def _maps(self) -> dict[str, list[np.ndarray]]:
        """The files of each kind, mapped as (records, bytes)."""
        return {
            kind: [self._map(kind, name, len(records)) for name, records in self.index.shards(kind)] for kind in KINDS
        }

    def _map(self, kind: str, name: str, records: int) -> np.ndarray:
        shape = (records, record_bytes(kind, self.size))
        try:
            return np.memmap(self.folder / name, np.uint8, "r", shape=shape).view(np.ndarray)
        except (OSError, ValueError) as error:
            raise ScscoError(f"{self.folder / name}: cannot be mapped ({error})") from error

    def __getstate__(self) -> dict[str, Any]:
        """Without the maps, which would travel to another process as their contents; it makes its own."""
        return {name: value for name, value in vars(self).items() if name != "_maps"}


def read_ahead(
    dataset: PackedDataset, order: Iterable[Sequence[int]], pin_memory: bool = False, depth: int = 4
) -> Iterator[PackedBatch]:
    """The batch of each list of indices, read by a thread that stays `depth` batches ahead.

    One thread, and no processes: what is read is copied once and needs no decoding, while a `DataLoader`'s process
    copies each batch again to hand it over, at a sixth of the speed (`python -m benchmarks.data`). The thread waits for
    a slow disk while the other trains.

    Args:
        dataset: the store.
        order: lists of indices, as a batch sampler yields; it may be endless.
        pin_memory: for a copy to the device that nobody waits for.
        depth: batches read ahead; at 256x256 a batch of 16 takes 6.4 MB.

    Examples:
        (needs a store)

        >>> for batch in read_ahead(PackedDataset("packed"), [[0, 1], [2, 3]]):  # doctest: +SKIP
        ...     composite, real, mask = batch.to("cuda")[:3]
    """

    def read(indices: Sequence[int]) -> PackedBatch:
        batch = dataset.__getitems__(indices)
        return batch.pin_memory() if pin_memory else batch

    return ahead(read, order, depth)


_verify = verify  # the constructor's argument has the same name
