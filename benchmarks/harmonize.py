"""Time and peak memory of harmonizing one picture on the CPU, at four sizes.

    python -m benchmarks.harmonize [--csv FILE]     # about two minutes on two cores
    python -m benchmarks.harmonize --smoke          # small pictures: does the program work?

Every case runs in a process of its own, which first harmonizes a tiny picture. `seconds` is the median of the
repetitions of the whole: decode a JPEG and a PNG mask, harmonize, encode; `decode`, `harmonize` and `encode` are its
parts. `peak_mib` is the most memory that the process ever held, Python and PyTorch included, of which `base_mib` was
held before the first picture was opened.

The picture is smooth colours with noise, the mask an ellipse over 20 % of it. The weights are random: neither time nor
memory depends on them. `paper` has base width 64 and 8 levels and works at 256 pixels, `demo` has 16 and 5 and works at
128; `native` works at the picture's own size.
"""

import argparse
import csv
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import scsco_fast as sf
from scsco_fast.benchmarks.timing import reset_resident_peak, resident
from scsco_fast.data.masks import read_mask
from scsco_fast.harmonizing.image_files import read_image, write_image
from scsco_fast.system.environment import git_revision
from scsco_fast.train.presets import PRESETS

SIZES = ((256, 171), (1024, 683), (2048, 1365), (6000, 4000))  # width, height
SMOKE_SIZES = ((64, 43), (96, 64))
# preset, native, and the format written, with the number of sizes that it is measured at.
CASES = (("paper", False, "png", 4), ("paper", False, "jpg", 4), ("demo", False, "png", 4), ("demo", True, "png", 2))
COLUMNS = ("time", "git", "device", "threads", "torch", "preset", "native", "format", "width", "height")
MEASURED = ("seconds", "decode", "harmonize", "encode", "peak_mib", "base_mib")


def pictures(width: int, height: int) -> tuple[Image.Image, Image.Image]:
    """A picture and its mask."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    smooth = np.stack([x / width, y / height, 1 - x / width], axis=2) * 160 + 40
    noise = rng.integers(-6, 7, (height, width, 1), dtype=np.int8)
    inside = ((x - width / 2) / (0.25 * width)) ** 2 + ((y - height / 2) / (0.255 * height)) ** 2 < 1
    return Image.fromarray((smooth + noise).astype(np.uint8)), Image.fromarray(inside.astype(np.uint8) * 255)


def network(preset: str) -> sf.HarmonizationUNet:
    torch.manual_seed(0)
    config = PRESETS[preset]
    model = sf.HarmonizationUNet(**config.architecture()).eval()
    model.working_size = config.size
    return model


def measure(folder: Path, preset: str, native: bool, suffix: str, repeats: int) -> dict[str, float]:
    """One case in this process: medians in seconds, and the peak memory in MiB."""
    model = network(preset)
    once(folder / "tiny", folder / f"tiny/out.{suffix}", model, native)
    base = reset_resident_peak()
    found = [once(folder, folder / f"out.{suffix}", model, native) for _ in range(repeats)]
    parts = {name: statistics.median(times[name] for times in found) for name in found[0]}
    return {**parts, "peak_mib": resident("VmHWM") / 1024, "base_mib": base / 1024}


def once(folder: Path, output: Path, model: sf.HarmonizationUNet, native: bool) -> dict[str, float]:
    start = time.perf_counter()
    image, mask = read_image(folder / "image.jpg"), read_mask(folder / "mask.png")
    decoded = time.perf_counter()
    result = sf.harmonize(image, mask, model, native=native)
    harmonized = time.perf_counter()
    write_image(result, output)
    end = time.perf_counter()
    return {
        "seconds": end - start,
        "decode": decoded - start,
        "harmonize": harmonized - decoded,
        "encode": end - harmonized,
    }


def save_pictures(folder: Path, width: int, height: int) -> None:
    for place, size in ((folder, (width, height)), (folder / "tiny", (48, 32))):
        place.mkdir(parents=True, exist_ok=True)
        image, mask = pictures(*size)
        image.save(place / "image.jpg", quality=95)
        mask.save(place / "mask.png")


def benchmark(sizes: tuple[tuple[int, int], ...], repeats: int) -> Iterator[dict[str, Any]]:
    """A row per case and size, as they come."""
    machine = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "git": git_revision(),
        "device": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    with tempfile.TemporaryDirectory() as temporary:
        for width, height in sizes:
            save_pictures(Path(temporary) / str(width), width, height)
        for preset, native, suffix, count in CASES:
            for width, height in sizes[:count]:
                command = [sys.executable, "-m", "benchmarks.harmonize", "--repeats", str(repeats), "--case"]
                case = [str(Path(temporary) / str(width)), preset, "native" if native else "working", suffix]
                done = subprocess.run([*command, *case], stdout=subprocess.PIPE, text=True, check=True)
                found = json.loads(done.stdout)
                what = {"preset": preset, "native": native, "format": suffix, "width": width, "height": height}
                yield {**machine, **what, **{name: round(found[name], 4) for name in MEASURED}}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *MEASURED])
        writer.writeheader()
        writer.writerows(rows)


def line(row: dict[str, Any]) -> str:
    size = f"{row['width']}x{row['height']}"
    where = "native" if row["native"] else "working size"
    parts = " + ".join(f"{row[name]:.2f}" for name in MEASURED[1:4])
    return (
        f"{row['preset']:>6} {where:>12} {row['format']} {size:>10} {row['seconds']:7.2f} s = {parts}"
        f"   {row['peak_mib']:6.0f} MiB, {row['base_mib']:.0f} before"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, help="write the rows to this file")
    parser.add_argument("--smoke", action="store_true", help="small pictures, seconds instead of minutes")
    parser.add_argument("--repeats", type=int, default=3, help="repetitions in each process")
    parser.add_argument("--case", nargs=4, metavar=("FOLDER", "PRESET", "NATIVE", "SUFFIX"), help="one case, as JSON")
    options = parser.parse_args()
    if options.case:
        folder, preset, native, suffix = options.case
        print(json.dumps(measure(Path(folder), preset, native == "native", suffix, options.repeats)))
        return
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    rows: list[dict[str, Any]] = []
    for row in benchmark(SMOKE_SIZES if options.smoke else SIZES, options.repeats):
        print(line(row), flush=True)
        rows.append(row)
        if options.csv:
            write(options.csv, rows)


if __name__ == "__main__":
    main()
