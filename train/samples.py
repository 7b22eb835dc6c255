"""Which samples a step sees: a pure function of the seed and the step, so that a resumed run sees the same ones."""

import signal
from collections.abc import Iterable, Iterator
from typing import Protocol, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from scsco_fast.data.iharmony4 import IHarmony4
from scsco_fast.data.packed import PackedDataset, read_ahead, stores
from scsco_fast.data.samples import BadSample, Batch, PackedBatch, Sample, collate
from scsco_fast.data.synthetic import SyntheticComposites, load_photos
from scsco_fast.errors import ScscoError
from scsco_fast.train.config import TrainConfig


class Samples(Protocol):
    """What `train` takes: item i depends on i alone, and indices may exceed the length."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample | BadSample: ...


def build_dataset(config: TrainConfig) -> Samples:
    """The training samples that `config` names."""
    if config.dataset == "iharmony4":
        assert config.root is not None  # checked by TrainConfig
        return IHarmony4(
            config.root,
            split="train",
            size=config.size,
            subsets=config.subsets,
            augment=config.augment,
            seed=config.seed,
        )
    if config.dataset == "packed":
        return packed_dataset(config, "train", augment=config.augment)
    photos = load_photos(config.photos, "train")
    length = config.steps * config.batch_size
    return SyntheticComposites(photos, config.size, length, config.seed, augment=config.augment)


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


def build_preview(config: TrainConfig, count: int = 4) -> Batch:
    """A few unseen composites, the same at every step, for the pictures in TensorBoard."""
    samples: Samples
    if config.dataset == "iharmony4":
        assert config.root is not None
        samples = IHarmony4(config.root, "test", config.size, config.subsets)
    elif config.dataset == "packed":
        splits = {folder.name for folder in stores(config.root or "")}
        samples = packed_dataset(config, "test" if "test" in splits else "train")
    else:
        photos = load_photos(config.photos, "test")
        samples = SyntheticComposites(photos, config.size, count, config.seed, augment=False)
    return collate([samples[index] for index in range(min(count, len(samples)))])


class StepOrder(Sampler[list[int]]):
    """Indices of the samples of the steps `first` ... `steps` - 1.

    Step t uses the positions t * B ... t * B + B - 1. Position p is in epoch p // n, at place p % n of the data set's
    order or (`shuffle`) of an order that depends on (seed, epoch) alone. Its index is epoch * n + sample: the data
    sets take that as the same sample in a new crop.
    """

    def __init__(self, length: int, batch_size: int, first: int, steps: int, *, shuffle: bool, seed: int) -> None:
        self.length, self.batch_size, self.first, self.steps = length, batch_size, first, steps
        self.shuffle, self.seed = shuffle, seed

    def __len__(self) -> int:
        return self.steps - self.first

    def __iter__(self) -> Iterator[list[int]]:
        orders: dict[int, np.ndarray] = {}
        for step in range(self.first, self.steps):
            places = [divmod(step * self.batch_size + row, self.length) for row in range(self.batch_size)]
            orders = {epoch: orders.get(epoch, self._order(epoch)) for epoch, _ in places}
            yield [epoch * self.length + int(orders[epoch][place]) for epoch, place in places]

    def _order(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.length)
        return np.random.default_rng((self.seed, epoch)).permutation(self.length)


def build_loader(
    samples: Samples, config: TrainConfig, first: int, device: torch.device
) -> Iterable[Batch | PackedBatch]:
    """Batches of the steps from `first` on, in order."""
    shuffle = config.dataset != "synthetic"
    order = StepOrder(len(samples), config.batch_size, first, config.steps, shuffle=shuffle, seed=config.seed)
    if isinstance(samples, PackedDataset):
        return read_ahead(samples, order, pin_memory=device.type == "cuda")
    return DataLoader(
        cast(Dataset[Batch], samples),
        batch_sampler=order,
        collate_fn=collate,
        num_workers=config.workers,
        worker_init_fn=_ignore_signals,
        pin_memory=device.type == "cuda",
        # Its own generator: the default one, which dropout draws from, must not move with the number of loaders made.
        generator=torch.Generator(),
    )


def _ignore_signals(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach the whole process group; the training process answers for all."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
