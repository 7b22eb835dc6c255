"""How fast samples come: raw JPEGs, the packed store, and what a training step consumes.

    python -m benchmarks.data                  # makes its own pictures; prints a table, writes runs/bench/data.csv
    python -m benchmarks.data --smoke          # seconds: does the program work?
    python -m benchmarks.data --only generators

Method: JPEGs of 1024x1024 pixels are synthesised in iHarmony4's layout (quality 90, a mask and a real picture for each
composite) and packed at 256x256. A sample is a composite, its mask and its real picture. Each reader is warmed up for
one pass over its part, then timed for passes over all samples in a shuffled order until `--seconds` have gone by; the
files are in the page cache, as a data set is that fits in memory. "raw" is `IHarmony4(size=256)` through a
`DataLoader`; "packed" is `PackedDataset` in batches of bytes, with 0 processes by `read_ahead`, as in training;
"packed, on the device" adds the crops, the flips and the floats, and the copy where there is a GPU. "training step" is
the demo's network without a style loss on one batch that stays on the device: what the data has to keep up with there.
One thread a process, whatever the machine has.

The generators make their composites out of 24 pictures of the same kind, of 512x384 pixels, with a disc of other noise
as the object of each, augmented as in training: "synthetic" is `SyntheticComposites` at the demo's size and batch, also
`wide` and at `--size`, with 0 processes by `dataset[i]` and with more through training's loader; "composed" is
`ComposedComposites` at the size and batch of `compact`.
"""

import argparse
import csv
import dataclasses
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from itertools import count
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch.utils.data import DataLoader

from scsco_fast.data.iharmony4 import IHarmony4
from scsco_fast.data.packed import PackedDataset, read_ahead
from scsco_fast.data.packing import pack
from scsco_fast.data.photos import Photo
from scsco_fast.data.samples import collate
from scsco_fast.data.workers import default_workers
from scsco_fast.nn.unet import HarmonizationUNet
from scsco_fast.synthesis.composer import ComposedComposites
from scsco_fast.synthesis.store import build_store
from scsco_fast.synthesis.synthetic import SyntheticComposites
from scsco_fast.system.environment import cpu_name
from scsco_fast.system.files import replacing
from scsco_fast.train import PRESETS
from scsco_fast.train.loader import build_loader
from scsco_fast.train.processes import Processes
from scsco_fast.train.step import TrainingStep

BATCH = 16


@dataclass(frozen=True)
class Row:
    """One way of reading; `ratio` is to the raw JPEGs read with as many processes."""

    reader: str
    processes: int
    images: int
    images_per_second: float
    ratio: float | None
    device: str
    cores: int
    cpu: str
    torch: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder for data.csv")
    parser.add_argument("--pictures", type=int, default=128, help="composites to make")
    parser.add_argument("--side", type=int, default=1024, help="of the JPEGs in pixels")
    parser.add_argument("--size", type=int, default=256, help="of the samples in pixels")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each row")
    parser.add_argument("--only", choices=["readers", "generators"], help="leave the others out")
    parser.add_argument("--smoke", action="store_true", help="few small pictures")
    options = parser.parse_args()
    pictures, side, size, seconds = options.pictures, options.side, options.size, options.seconds
    if options.smoke:
        pictures, side, size, seconds = 8, 64, 32, 0.2
    rows = [] if options.only == "generators" else measure(pictures, side, size, seconds)
    rows += [] if options.only == "readers" else measure_generators(size, seconds)
    with replacing(options.out / "data.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    print(f"\n{rows[0].cpu}, {rows[0].cores} cores, {rows[0].device}, torch {rows[0].torch}")
    print(f"{side}x{side} -> {size}x{size}")
    print(f"{'reader':<28}{'processes':>10}{'images/s':>12}{'x raw':>9}")
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.1f}"
        print(f"{row.reader:<28}{row.processes:>10}{row.images_per_second:>12.1f}{ratio:>9}")
    print(f"wrote {options.out / 'data.csv'}")


def measure(pictures: int, side: int, size: int, seconds: float) -> list[Row]:
    """Make the pictures, pack them, and time every reader."""
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cores = default_workers()
    rows: list[Row] = []
    raw: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        root, store = Path(temporary) / "raw", Path(temporary) / "packed"
        print(f"making {pictures} composites of {side}x{side}", flush=True)
        make_pictures(root, pictures, side)
        begun = time.perf_counter()
        pack(root, store, "train", size, cores)
        rows.append(row("scsco prepare", cores, pictures, time.perf_counter() - begun, device, None))
        for name, dataset, processes, moved in (
            ("raw JPEGs", IHarmony4(root, "train", size), 0, None),
            ("raw JPEGs", IHarmony4(root, "train", size), cores, None),
            ("packed", PackedDataset(store), 0, None),
            ("packed", PackedDataset(store), cores, None),
            ("packed, on the device", PackedDataset(store, augment=True), 0, device),
        ):
            images, elapsed = time_reader(dataset, processes, moved, seconds)
            if name.startswith("raw"):
                raw[processes] = images / elapsed
            rows.append(row(name, processes, images, elapsed, device, raw[processes]))
            print(f"{name}, {processes} processes: {rows[-1].images_per_second:.1f} images/s", flush=True)
    images, elapsed = time_step(size, device, seconds)
    rows.append(row("training step", 0, images, elapsed, device, None))
    return rows


def measure_generators(size: int, seconds: float) -> list[Row]:
    """Time both generators."""
    torch.set_num_threads(1)
    demo, compact, cores = PRESETS["demo"], PRESETS["compact"], default_workers()
    photos = make_photos(24)
    rows = []
    for name, side, wide in (
        ("synthetic", demo.size, False),
        ("synthetic, wide", demo.size, True),
        ("synthetic", size, False),
    ):
        dataset = SyntheticComposites(photos, side, length=1, seed=0, augment=True, wide=wide)
        config = dataclasses.replace(demo, size=side, steps=10**9)
        for processes in (0, cores):
            loader = build_loader(
                dataset, dataclasses.replace(config, workers=processes), 0, torch.device("cpu"), Processes()
            )
            rows.append(row(f"{name}, {side}", processes, *time_batches(iter(loader), processes, seconds), "cpu", None))
    composed = ComposedComposites(build_store(photos, compact.size), compact.size, compact.batch_size, seed=0)
    batches = composed.batches(count(), range(compact.batch_size))
    rows.append(row(f"composed, {compact.size}", 0, *time_batches(batches, 0, seconds), "cpu", None))
    for made in rows:
        print(f"{made.reader}, {made.processes} processes: {made.images_per_second:.1f} images/s", flush=True)
    return rows


def time_batches(batches: Iterator, processes: int, seconds: float) -> tuple[int, float]:
    """Composites made after the warm-up, which finds each foreground once, and the seconds that took."""
    for _ in range(8 * max(processes, 1)):
        next(batches)
    images, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        images += len(next(batches).names)
    return images, time.perf_counter() - begun


def make_photos(number: int) -> list[Photo]:
    rows, columns = np.mgrid[:384, :512]
    disc = np.hypot(rows - 192, columns - 256) < 90
    photos = []
    for seed in range(number):
        ground, thing = (smooth_noise(np.random.default_rng((seed, part)), 512)[:384] for part in range(2))
        rgb = np.where(disc[:, :, None], thing, ground)
        photos.append(Photo(f"noise {seed}", rgb, disc.astype(np.uint16), ((1,),), smoothing=1.5))
    return photos


def smooth_noise(rng: np.random.Generator, side: int) -> np.ndarray:
    """(side, side, 3) uint8: smooth noise with some grain, which compresses about as photographs do."""
    coarse = Image.fromarray(rng.integers(0, 256, (side // 16, side // 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC).filter(ImageFilter.BoxBlur(1)))
    return np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)


def row(reader: str, processes: int, images: int, elapsed: float, device: str, raw: float | None) -> Row:
    speed = images / elapsed
    ratio = None if raw is None else speed / raw
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return Row(reader, processes, images, speed, ratio, name, default_workers(), cpu_name(), str(torch.__version__))


def make_pictures(root: Path, pictures: int, side: int) -> None:
    """`smooth_noise` as composites, masks and real pictures."""
    for part in ("composite_images", "masks", "real_images"):
        (root / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = []
    for number in range(pictures):
        real = smooth_noise(rng, side)
        mask = np.zeros((side, side), np.uint8)
        mask[side // 4 : side // 2, side // 3 : side // 2] = 255
        names.append(f"c{number}_1_1.jpg")
        composite = np.where(mask[:, :, None] > 127, real // 2, real)
        Image.fromarray(composite).save(root / "composite_images" / names[-1], quality=90)
        Image.fromarray(mask).convert("RGB").save(root / "masks" / f"c{number}_1.png")
        Image.fromarray(real).save(root / "real_images" / f"c{number}.jpg", quality=90)
    (root / "train.txt").write_text("\n".join(names))


def time_reader(
    dataset: IHarmony4 | PackedDataset, processes: int, device: str | None, seconds: float
) -> tuple[int, float]:
    """Samples read after the warm-up, and the seconds that took; with `device` they are turned into floats there."""
    batches = read(dataset, processes)
    warm_up = max(1, min(len(dataset) // BATCH, 4 * processes))
    images, begun = 0, 0.0
    for number, batch in zip(count(), batches, strict=False):
        if number == warm_up:
            synchronize(device)
            images, begun = 0, time.perf_counter()
        if device is not None:
            batch.to(device)
        images += len(batch.names)
        if number > warm_up and time.perf_counter() - begun > seconds:
            break
    synchronize(device)
    return images, time.perf_counter() - begun


def read(dataset: IHarmony4 | PackedDataset, processes: int) -> Iterator:
    """Batches without end, in an order that is shuffled anew in every pass."""
    pin_memory = torch.cuda.is_available()
    if isinstance(dataset, PackedDataset) and processes == 0:
        return read_ahead(dataset, Shuffled(len(dataset)), pin_memory)
    loader = DataLoader(
        dataset,
        batch_sampler=Shuffled(len(dataset)),
        num_workers=processes,
        collate_fn=collate if isinstance(dataset, IHarmony4) else as_it_is,
        pin_memory=pin_memory,
    )
    return iter(loader)


def as_it_is(batch: object) -> object:
    return batch


class Shuffled:
    """Indices of batches without end."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> Iterator[list[int]]:
        for epoch in count():
            order = np.random.default_rng(epoch).permutation(self.length)
            for start in range(0, self.length, BATCH):
                yield [epoch * self.length + int(place) for place in order[start : start + BATCH]]


def synchronize(device: str | None) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def time_step(size: int, device: str, seconds: float) -> tuple[int, float]:
    """Samples that training steps of the demo's network take, and the seconds of it."""
    config = dataclasses.replace(PRESETS["demo"], style_weight=0.0, size=size, device=device, precision="float32")
    torch.manual_seed(0)
    step = TrainingStep(HarmonizationUNet(**config.architecture()).to(device).train(), None, config)
    real = torch.rand(BATCH, 3, size, size, device=device)
    mask = torch.zeros(BATCH, 1, size, size, device=device)
    mask[..., size // 4 : size // 2, size // 4 : size // 2] = 1
    composite = real * (1 - 0.5 * mask)
    step(composite, real, mask, 0)
    synchronize(device)
    steps, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        steps += 1
        step(composite, real, mask, steps)
        synchronize(device)
    return steps * BATCH, time.perf_counter() - begun


if __name__ == "__main__":
    main()
