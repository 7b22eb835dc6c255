"""Which samples a step sees: a pure function of the seed and the step, so that a resumed run sees the same ones."""

import os
from collections.abc import Iterable, Iterator
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from scsco_fast.data.packed import PackedDataset, read_ahead
from scsco_fast.data.samples import Batch, PackedBatch, collate
from scsco_fast.data.workers import loader_workers
from scsco_fast.regions import foreground_boxes
from scsco_fast.synthesis.composer import ComposedComposites
from scsco_fast.train.config import TrainConfig
from scsco_fast.train.processes import Processes
from scsco_fast.train.samples import Samples
from scsco_fast.train.signals import ignore_signals


class StepOrder(Sampler[list[int]]):
    """Indices of the samples of the steps `first` ... `steps` - 1.

    Step t uses the positions t * B ... t * B + B - 1. Position p is in epoch p // n, at place p % n of the data set's
    order or (`shuffle`) of an order that depends on (seed, epoch) alone. Its index is epoch * n + sample: the data
    sets take that as the same sample in a new crop.

    `world_size` processes share a step in order: this one, number `rank`, has the `rank`-th of as many equal pieces.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        first: int,
        steps: int,
        *,
        shuffle: bool,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.length, self.batch_size, self.first, self.steps = length, batch_size, first, steps
        self.shuffle, self.seed = shuffle, seed
        share = batch_size // world_size
        self.rows = range(rank * share, (rank + 1) * share)

    def __len__(self) -> int:
        return self.steps - self.first

    def __iter__(self) -> Iterator[list[int]]:
        orders: dict[int, np.ndarray] = {}
        for step in range(self.first, self.steps):
            places = [divmod(step * self.batch_size + row, self.length) for row in self.rows]
            epochs = dict.fromkeys(epoch for epoch, _ in places)
            orders = {epoch: orders[epoch] if epoch in orders else self._order(epoch) for epoch in epochs}
            yield [epoch * self.length + int(orders[epoch][place]) for epoch, place in places]

    def _order(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.length)
        return np.random.default_rng((self.seed, epoch)).permutation(self.length)


def build_loader(
    samples: Samples | ComposedComposites, config: TrainConfig, first: int, device: torch.device, processes: Processes
) -> Iterable[Batch | PackedBatch]:
    """This process's shares of the batches of the steps from `first` on, in order."""
    workers = config.workers
    if workers is None:
        workers = loader_workers(device.type, int(os.environ.get("LOCAL_WORLD_SIZE", processes.world_size)))
    if isinstance(samples, ComposedComposites):
        share = config.batch_size // processes.world_size
        rows = range(processes.rank * share, (processes.rank + 1) * share)
        # On a GPU the host only launches, and a thread's launches would break the capture of a CUDA graph.
        threaded = workers > 0 and device.type == "cpu"
        return samples.batches(range(first, config.steps), rows, threaded)
    order = StepOrder(
        len(samples),
        config.batch_size,
        first,
        config.steps,
        shuffle=config.dataset != "synthetic",
        seed=config.seed,
        rank=processes.rank,
        world_size=processes.world_size,
    )
    if isinstance(samples, PackedDataset):
        return read_ahead(samples, order, pin_memory=device.type == "cuda")
    return DataLoader(
        cast(Dataset[Batch], samples),
        batch_sampler=order,
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=ignore_signals,
        pin_memory=device.type == "cuda",
        # Its own generator: the default one, which dropout draws from, must not move with the number of loaders made.
        generator=torch.Generator(),
    )


def boxes_of(batch: Batch | PackedBatch) -> Tensor | None:
    """The `foreground_boxes` of a batch where the host knows them: not where its masks are on another device."""
    if not batch.names:
        return None
    return foreground_boxes(batch.mask) if isinstance(batch, Batch) else batch.foreground
