"""Instance norm, RAIN and BAIN, without and with the style loss, by the recipe of the model in the package.

    python -m benchmarks.norms PHOTOGRAPHS --steps 500 --real TRIPLETS
    python -m benchmarks.norms --table

Each run is `scsco train compact` with another norm at all decoder levels that have BAIN in it, with or without the
style loss, with fewer steps. It is measured at 256x256 by the protocol `strict`: on composites of unseen photographs,
and, with --real, on real composites in iHarmony4's layout and on their untouched real photographs (damage). One row per
run goes to the CSV file as it ends; runs that are in it already are left out, so the program can be stopped and started
again.
"""

import argparse
import csv
import dataclasses
import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from scsco_fast.data.iharmony4 import IHarmony4
from scsco_fast.data.photos import load_photos
from scsco_fast.evaluation import evaluate
from scsco_fast.evaluation.protocols import protocol_named
from scsco_fast.evaluation.triplets import Triplets
from scsco_fast.nn.weights import load_model
from scsco_fast.synthesis.synthetic import SyntheticComposites
from scsco_fast.train import TrainConfig, train
from scsco_fast.train.presets import PRESETS

NORMS = ("instance", "rain", "bain")
STYLE_WEIGHTS = (0.0, 0.01)
SIZE = 256
TEST_SEED = 1000
RESULTS = Path(__file__).parent / "results" / "norms.csv"
KEYS = ("norm", "style_weight", "seed", "steps", "batch_size")
SETS = ("unseen", "real")
METRICS = ("composite_mse", "composite_psnr", "mse", "psnr")
COLUMNS = (*KEYS, *(f"{name}_{metric}" for name in SETS for metric in METRICS), "damage_fmse", "cpu_seconds", "torch")


def settings(norm: str, style_weight: float, seed: int, options: argparse.Namespace) -> TrainConfig:
    """The recipe with one norm at the levels that have BAIN in it; the finest keeps RAIN unless none is wanted."""
    recipe = PRESETS["compact"]
    norms = tuple(norm if name == "bain" or norm == "instance" else name for name in recipe.norm)
    return dataclasses.replace(
        recipe,
        photos=str(options.photographs),
        norm=norms,
        style_weight=style_weight,
        seed=seed,
        steps=options.steps,
        device="cpu",
        log_every=options.steps,
        picture_every=10**6,
        checkpoint_every=options.steps,
    )


def measure(norm: str, config: TrainConfig, count: int, real: Path | None) -> dict[str, Any]:
    """Train one network, measure it, and return its row."""
    torch.set_num_threads(1)
    begun = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        path = train(dataclasses.replace(config, output=f"{folder}/run", workers=0))
        model = load_model(path / "model.safetensors")
    row: dict[str, Any] = {name: getattr(config, name) for name in KEYS} | {"norm": norm}
    row |= {"cpu_seconds": f"{time.process_time() - begun:.0f}", "torch": str(torch.__version__)}
    photos = load_photos(config.photos, "test")
    unseen = SyntheticComposites(photos, SIZE, count, TEST_SEED, augment=False, wide=True)
    row |= _means("unseen", evaluate(model, unseen).summaries()[-1].means)
    if real is not None:
        triplets = Triplets(IHarmony4(str(real), split="test").members, protocol_named("strict"), SIZE)
        row |= _means("real", evaluate(model, triplets).summaries()[-1].means)
        row["damage_fmse"] = f"{evaluate(model, triplets, untouched=True).summaries()[-1].means['fmse']:.4f}"
    return row


def _means(name: str, means: Any) -> dict[str, str]:
    return {f"{name}_{metric}": f"{means[metric]:.4f}" for metric in METRICS}


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
    """Markdown: per norm and style weight the mean over seeds, and, of several, the smallest and largest."""
    lines = [
        "| norm | style loss | unseen: MSE below composite, % | PSNR above, dB "
        "| real: MSE below composite, % | PSNR above, dB | damage, fMSE |",
        "|---|---|---|---|---|---|---|",
    ]
    for norm, weight in itertools.product(NORMS, STYLE_WEIGHTS):
        own = [row for row in rows if row["norm"] == norm and float(row["style_weight"]) == weight]
        if own:
            cells = [cell for name in SETS for cell in gains(name, own)]
            cells.append(spread([float(row["damage_fmse"]) for row in own if row["damage_fmse"]], digits=0))
            lines.append(f"| {norm} | {weight or 'without'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def gains(name: str, rows: list[dict[str, str]]) -> list[str]:
    """The share of the composite's MSE that is gone, and the decibels gained, on one set."""
    rows = [row for row in rows if row[f"{name}_mse"]]
    shares = [100 * (1 - float(row[f"{name}_mse"]) / float(row[f"{name}_composite_mse"])) for row in rows]
    decibels = [float(row[f"{name}_psnr"]) - float(row[f"{name}_composite_psnr"]) for row in rows]
    return [spread(shares), spread(decibels, digits=2)]


def spread(values: list[float], digits: int = 1) -> str:
    if not values:
        return "not measured"
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", nargs="?", type=Path, help="folder with train/ and test/ photographs")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--real", type=Path, help="real composites in iHarmony4's layout, for measuring only")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=2)
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
    wanted = {
        (norm, str(weight), str(seed)): settings(norm, weight, seed, options)
        for seed, norm, weight in itertools.product(range(options.seeds), NORMS, STYLE_WEIGHTS)
    }
    left = [
        (key[0], config)
        for key, config in wanted.items()
        if (*key, str(config.steps), str(config.batch_size)) not in done
    ]
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, context) as pool:
        runs = [pool.submit(measure, norm, config, options.count, options.real) for norm, config in left]
        for future in as_completed(runs):
            row = future.result()
            append(options.output, row)
            which = f"{row['norm']}, style {row['style_weight']}, seed {row['seed']}"
            print(f"{which}: MSE {row['unseen_composite_mse']} -> {row['unseen_mse']}", flush=True)


if __name__ == "__main__":
    main()
