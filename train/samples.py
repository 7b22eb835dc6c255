"""The samples that a configuration names: to train on, to validate with, and to show."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from scsco_fast.data.iharmony4 import IHarmony4
from scsco_fast.data.layouts import find_layout, listed_splits
from scsco_fast.data.packed import PackedDataset, stores
from scsco_fast.data.samples import BadSample, Batch, Sample, collate
from scsco_fast.errors import ScscoError
from scsco_fast.synthesis.composer import ComposedComposites
from scsco_fast.synthesis.store import build_store
from scsco_fast.synthesis.synthetic import SyntheticComposites, load_photos
from scsco_fast.train.config import TrainConfig

_LOOKED_AT = 64  # samples of iHarmony4, spread over the list


class Samples(Protocol):
    """What `train` takes: item i depends on i alone, and indices may exceed the length."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample | BadSample: ...


def build_dataset(config: TrainConfig) -> Samples | ComposedComposites:
    """The training samples that `config` names, without those that are held out for validation."""
    if config.dataset == "composed":
        store = build_store(load_photos(config.photos, "train"), config.size)
        return ComposedComposites(store.to(config.device), config.size, config.batch_size, config.seed)
    if config.dataset == "synthetic":
        photos = load_photos(config.photos, "train")
        length = config.steps * config.batch_size
        return SyntheticComposites(photos, config.size, length, config.seed, config.augment, config.wide)
    return _part(_listed(config, augment=config.augment), config, held_out=False)


def build_validation(config: TrainConfig) -> Samples | None:
    """Composites that training does not see; None where `validate_every` is.

    Of iHarmony4 they come from the training list, never from the test list: choosing a model by it would flatter the
    result. Of synthetic composites they are made from the photographs that training leaves out.
    """
    if config.validate_every is None:
        return None
    if config.dataset in ("synthetic", "composed"):
        photos = load_photos(config.photos, "test")
        return SyntheticComposites(photos, config.size, config.validation_count, config.seed + 1, augment=False)
    return _part(_listed(config, augment=False), config, held_out=True)


def packed_dataset(config: TrainConfig, split: str, augment: bool = False) -> PackedDataset:
    """One split of the packed store that `config` names; a store of another size is refused."""
    assert config.root is not None  # checked by TrainConfig
    packed = PackedDataset(config.root, split, config.subsets, augment, config.seed)
    if packed.size != config.size:
        raise ScscoError(
            f"{packed.folder}: its pictures are {packed.size}x{packed.size} but size is {config.size}; "
            f"train with size {packed.size}, or pack again with scsco prepare --size {config.size}"
        )
    return packed


def _listed(config: TrainConfig, *, augment: bool) -> IHarmony4 | PackedDataset:
    """The training list of iHarmony4, from its files or from a store."""
    assert config.root is not None  # checked by TrainConfig
    if config.dataset == "packed":
        return packed_dataset(config, "train", augment)
    return IHarmony4(config.root, "train", config.size, config.subsets, augment, config.seed)


def _part(dataset: IHarmony4 | PackedDataset, config: TrainConfig, *, held_out: bool) -> IHarmony4 | PackedDataset:
    """`dataset` with the composites that are held out for validation only, or without them."""
    if isinstance(dataset, PackedDataset):
        reals = [str(dataset.index.real[row]) for row in dataset.rows]
    else:
        reals = [str(member.real) for member in dataset.members]
    held = _held_out(reals, config)
    keep = [index for index, real in enumerate(reals) if (real in held) == held_out]
    keep = keep[: config.validation_count] if held_out else keep
    if isinstance(dataset, PackedDataset):
        dataset.rows = [dataset.rows[index] for index in keep]
    else:
        dataset.members = [dataset.members[index] for index in keep]
    return dataset


def _held_out(reals: Sequence[str], config: TrainConfig) -> set[str]:
    """Of the real picture of each composite those whose composites, `validation_count` at least, are held out.

    Whole real pictures, because several composites share one; the same in every run.
    """
    if config.validate_every is None:
        return set()
    composites = Counter(reals)
    order = sorted(composites, key=lambda real: hashlib.sha256(Path(real).name.encode()).hexdigest())
    held: set[str] = set()
    while sum(composites[real] for real in held) < config.validation_count and len(held) < len(order):
        held.add(order[len(held)])
    if len(held) == len(order):
        raise ScscoError(
            f"validation_count {config.validation_count} leaves nothing of {len(reals)} composites to train "
            "on; lower it"
        )
    return held


def build_preview(config: TrainConfig, count: int = 4) -> Batch:
    """A few unseen composites, the same at every step, for the pictures in TensorBoard."""
    samples: Samples
    if config.dataset == "iharmony4":
        samples = _preview_part(config)
    elif config.dataset == "packed":
        splits = {folder.name for folder in stores(config.root or "")}
        samples = packed_dataset(config, "test" if "test" in splits else "train")
    else:
        photos = load_photos(config.photos, "test")
        samples = SyntheticComposites(photos, config.size, count, config.seed, augment=False)
    return collate([samples[index] for index in range(min(count, len(samples)))])


def _preview_part(config: TrainConfig) -> IHarmony4:
    """The test part of iHarmony4, or the training part where no composite is listed for testing."""
    assert config.root is not None  # checked by TrainConfig
    listed = listed_splits(config.root)
    if not listed or "test" in listed:
        try:
            return IHarmony4(config.root, "test", config.size, config.subsets)
        except ScscoError:
            # An empty list is no mistake; the folders are listed again only to tell it from one.
            if not listed or find_layout(config.root, "test").members:
                raise
    return IHarmony4(config.root, "train", config.size, config.subsets)


def fingerprint(samples: object) -> str | None:
    """What the training data hold, for people and for comparison; the same wherever they lie. None: not known here.

    Of a packed store it covers the checksum of every record, and of photographs every pixel (where composites are made
    on the device, each photograph's sum). Of iHarmony4 it covers every name, and the sizes of the files of some
    samples: opening them all takes minutes on a network drive.
    """
    parts: Iterable[bytes | np.ndarray]
    if isinstance(samples, PackedDataset):
        index = samples.index
        rows = [
            (index.names[row], index.composite_checksums[row], index.real_checksums[index.real[row]])
            for row in samples.rows
        ]
        count, parts = f"{len(rows)} packed composites", [repr(rows).encode()]
    elif isinstance(samples, IHarmony4):
        members = samples.members
        names = [[os.path.relpath(path, samples.root) for path in member[1:] if path] for member in members]
        looked_at = members[:: max(1, len(members) // _LOOKED_AT)]
        sizes = [_file_size(path) for member in looked_at for path in member[1:] if path]
        count, parts = f"{len(members)} composites", [repr((names, sizes)).encode()]
    elif isinstance(samples, SyntheticComposites):
        photos = samples.photos
        count = f"{len(photos)} photographs"
        parts = (part for photo in photos for part in (repr(photo.candidates).encode(), photo.rgb, photo.regions))
    elif isinstance(samples, ComposedComposites):
        held = samples.store.pictures, samples.store.masks  # gigabytes, maybe on a GPU
        count, parts = f"{len(held[0])} photographs", (part.flatten(1).sum(dim=1).cpu().numpy() for part in held)
    else:
        return None
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(np.ascontiguousarray(part).data if isinstance(part, np.ndarray) else part)
    return f"{count}, digest {digest.hexdigest()}"


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
