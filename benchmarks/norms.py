"""Instance norm, RAIN and BAIN in the decoder, without and with the style loss: python -m benchmarks.norms PHOTOGRAPHS.

Trains the same small network 18 times, three seeds each, with the same steps on the same composites, and measures each
on the same composites of photographs that none of them saw. One row per run goes to the CSV file as it ends; runs that
are in it already are left out, so the program can be stopped and started again. `--table` prints what is in the file.

The input is composite and mask (`in_channels=4`). The seven channels of the shipped model would give every norm the
background's mean and contrast, which is what the norms are compared for.
"""

import argparse
import csv
import itertools
import logging
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from scsco_fast.data.photos import Photo, load_photos
from scsco_fast.data.synthetic import SyntheticComposites
from scsco_fast.evaluate import evaluate
from scsco_fast.nn.vgg import find_weights
from scsco_fast.train import TrainConfig, train
from scsco_fast.weights import load_model

NORMS = ("instance", "rain", "bain")
STYLE_WEIGHTS = (0.0, 0.01)
SEEDS = (0, 1, 2)
TEST_SEED = 1000
RESULTS = Path(__file__).parent / "results" / "norms.csv"
KEYS = ("norm", "style_weight", "seed", "steps", "size", "base_channels", "batch_size")
METRICS = ("mse", "psnr", "fmse", "ssim")
COLUMNS = (
    *KEYS,
    *(f"composite_{name}" for name in METRICS),
    *METRICS,
    "test_composites",
    "cpu_seconds",
    "vgg",
    "torch",
)
COLUMNS = (*COLUMNS, "machine")

_photos: dict[str, list[Photo]] = {}


def settings(norm: str, style_weight: float, seed: int, options: argparse.Namespace) -> TrainConfig:
    return TrainConfig(
        norm=norm,
        style_weight=style_weight,
        seed=seed,
        steps=options.steps,
        size=options.size,
        base_channels=options.base_channels,
        batch_size=options.batch_size,
        in_channels=4,
        levels=5,
        head="residual",
        cosine=True,
        dropout=False,
        wide=True,
        lr=2e-3,
        betas=(0.9, 0.999),
        schedule="cosine",
        warmup=20,
        clip_norm=0.2,
        ema_decay=0.99,
        style_every=2,
        negatives=3,
        style_size=48,
        vgg_layers=("relu2_2",),
        vgg_weights="auto" if style_weight else "random",
        device="cpu",
        log_every=options.steps,
        picture_every=10**6,
        checkpoint_every=options.steps,
    )


def load(folder: str) -> None:
    """Once per process: segmenting takes longer than a short run."""
    torch.set_num_threads(1)
    logging.getLogger("scsco_fast").setLevel(logging.ERROR)
    _photos.update({split: load_photos(folder, split) for split in ("train", "test")})


def measure(config: TrainConfig, count: int) -> dict[str, Any]:
    """Train one network, measure it on unseen photographs, and return its row."""
    begun = time.process_time()
    samples = SyntheticComposites(
        _photos["train"], config.size, config.steps * config.batch_size, config.seed, augment=True, wide=True
    )
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig.from_dict({**config.to_dict(), "output": f"{folder}/run"})
        path = train(config, dataset=samples)
        model = load_model(path / "model.safetensors")
    seconds = time.process_time() - begun
    unseen = SyntheticComposites(_photos["test"], config.size, count, TEST_SEED, augment=False, wide=True)
    means = evaluate(model, unseen, batch_size=16).summaries()[-1].means
    row = {name: getattr(config, name) for name in KEYS}
    row |= {name: f"{means[name]:.4f}" for metric in METRICS for name in (metric, f"composite_{metric}")}
    vgg = find_weights() if config.style_weight else "none"
    machine = f"{platform.machine()}, one thread"
    return row | {
        "test_composites": count,
        "cpu_seconds": f"{seconds:.0f}",
        "vgg": vgg,
        "torch": str(torch.__version__),
        "machine": machine,
    }


def read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append(path: Path, row: dict[str, Any]) -> None:
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            table.writeheader()
        table.writerow(row)


def table(rows: list[dict[str, str]]) -> str:
    """Markdown: per norm and style weight the mean over seeds, and the smallest and largest."""
    lines = [
        "| norm | style loss | MSE below composite, % | PSNR above, dB | fMSE below, % |",
        "|---|---|---|---|---|",
    ]
    for norm, weight in itertools.product(NORMS, STYLE_WEIGHTS):
        own = [row for row in rows if row["norm"] == norm and float(row["style_weight"]) == weight]
        if not own:
            continue
        cells = [
            spread([100 * (1 - float(row["mse"]) / float(row["composite_mse"])) for row in own]),
            spread([float(row["psnr"]) - float(row["composite_psnr"]) for row in own], digits=2),
            spread([100 * (1 - float(row["fmse"]) / float(row["composite_fmse"])) for row in own]),
        ]
        lines.append(f"| {norm} | {weight or 'without'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: list[float], digits: int = 1) -> str:
    return f"{statistics.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", nargs="?", help="folder that scsco_fast.data.debian wrote")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--base-channels", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--count", type=int, default=104, help="composites of unseen photographs")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args()
    if not options.table:
        if options.photographs is None:
            parser.error("wanted the folder of the photographs")
        run_all(options)
    print(table(read(options.output)))


def run_all(options: argparse.Namespace) -> None:
    done = {tuple(row[key] for key in KEYS) for row in read(options.output)}
    wanted = [
        settings(norm, weight, seed, options) for seed, norm, weight in itertools.product(SEEDS, NORMS, STYLE_WEIGHTS)
    ]
    left = [config for config in wanted if tuple(str(getattr(config, key)) for key in KEYS) not in done]
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, context, load, (options.photographs,)) as pool:
        for future in as_completed([pool.submit(measure, config, options.count) for config in left]):
            row = future.result()
            append(options.output, row)
            which = f"{row['norm']}, style {row['style_weight']}, seed {row['seed']}"
            print(f"{which}: MSE {row['composite_mse']} -> {row['mse']}", flush=True)


if __name__ == "__main__":
    main()
