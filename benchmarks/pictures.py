"""The pictures of docs/images that show colour transfers: python -m benchmarks.pictures {negatives,synthesized} FILE.

Photographs are scikit-image's astronaut (NASA, public domain), chelsea (CC0), coffee (CC0) and, in the second, rocket
(SpaceX, public domain) and motorcycle (CC0); scikit-image states these standings.
"""

import argparse
import csv
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from scsco_fast.data.images import read_picture, tensor_to_image
from scsco_fast.data.photos import builtin_files, segmented_photo
from scsco_fast.data.samples import Sample
from scsco_fast.data.strips import write_strip
from scsco_fast.ops._transfer_color import TRANSFERS, transfer_color
from scsco_fast.style.photometric import random_curve
from scsco_fast.synthesis import synthesize
from scsco_fast.synthesis.recipes import FAMILIES
from scsco_fast.synthesis.synthetic import SyntheticComposites

SHOWN = ("astronaut", "chelsea", "coffee")
LENT = (*SHOWN, "rocket", "motorcycle")
SIDE, SEED = 160, 5
TILE = (160, 120)


def files(names: Sequence[str]) -> dict[str, Path]:
    found = builtin_files("train") | builtin_files("test")
    return {name: found[name] for name in names}


def negatives(path: Path) -> None:
    """Rows: photographs. Columns: real, composite, and the real foreground recoloured by each family."""
    photos = [segmented_photo(name, read_picture(file).rgb) for name, file in files(SHOWN).items()]
    samples: dict[str, Sample] = {}
    for item in SyntheticComposites(photos, size=SIDE, length=100, seed=SEED, augment=False):
        # Small foregrounds are hard to see in print.
        if isinstance(item, Sample) and item.mask.mean() > 0.15:
            samples.setdefault(item.name.split("_")[0], item)
    real, composite, mask = (
        torch.stack([getattr(samples[name], field) for name in SHOWN]) for field in ("real", "composite", "mask")
    )
    columns = [real, mask.expand_as(real), composite]
    # As make_negatives does, but with each family for each picture: the reference is the foreground of the next row.
    for family in TRANSFERS:
        columns.append(transfer_color(real, real.roll(-1, 0), family, mask, reference_mask=mask.roll(-1, 0)))
    columns.append(torch.where(mask > 0, random_curve(real, torch.Generator().manual_seed(SEED)), real))
    rows = [[tensor_to_image(column[index]) for column in columns] for index in range(len(SHOWN))]
    write_strip(rows, ["real", "mask", "composite", *TRANSFERS, "curve"], path)


def synthesized(path: Path) -> None:
    """Rows: transfer families. Columns: real and composite of what `scsco synthesize` makes."""
    with tempfile.TemporaryDirectory() as folder:
        photos, output = Path(folder) / "photos", Path(folder) / "output"
        photos.mkdir()
        for name, source in files(LENT).items():
            Image.fromarray(read_picture(source).rgb).save(photos / f"{name}.png")
        synthesize(photos, output, count=60, suffix=".png")
        with (output / "Synthetic/synthesis.csv").open() as file:
            table = list(csv.DictReader(file))
        rows = [
            _row(output / "Synthetic", [entry for entry in table if entry["family"] == family]) for family in FAMILIES
        ]
    write_strip(rows, ["real", "composite"] * 3, path)


def _row(folder: Path, entries: list[dict[str, str]]) -> list[np.ndarray]:
    """Real and composite, side by side, of the largest foreground of each of three photographs."""
    largest: dict[str, dict[str, str]] = {}
    for entry in sorted(entries, key=lambda entry: float(entry["foreground"])):
        largest[entry["photograph"]] = entry
    tiles = []
    for entry in sorted(largest.values(), key=lambda entry: -float(entry["foreground"]))[:3]:
        composite = folder / "composite_images" / entry["composite"]
        real = folder / "real_images" / f"{entry['composite'].split('_')[0]}.png"
        tiles += [np.asarray(ImageOps.fit(Image.open(each), TILE)) for each in (real, composite)]
    return tiles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("negatives", "synthesized"))
    parser.add_argument("path", type=Path)
    arguments = parser.parse_args()
    {"negatives": negatives, "synthesized": synthesized}[arguments.what](arguments.path)
    print(f"wrote {arguments.path}")


if __name__ == "__main__":
    main()
