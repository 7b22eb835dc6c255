"""What JPEG alone costs on a dataset in iHarmony4's layout: python -m benchmarks.jpeg_floor DIR.

Prints the squared difference outside the masks, over all pixels of each picture, which no output that keeps the
composite's background can be without; and fMSE of the composites.
"""

import argparse
import statistics
from pathlib import Path

from scsco_fast.data.iharmony4 import IHarmony4
from scsco_fast.data.photos import SPLITS
from scsco_fast.data.samples import Sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    root = parser.parse_args().root
    floors, errors = [], []
    for split in SPLITS:
        for sample in IHarmony4(root, split, size=None):
            if isinstance(sample, Sample):
                squared = ((sample.composite - sample.real) * 255).square().mean(dim=0)  # (H, W)
                inside = sample.mask[0] > 0
                floors.append(float((squared * ~inside).mean()))
                errors.append(float(squared[inside].mean()))
    print(f"{len(floors)} composites, background: mean {statistics.mean(floors):.3f}, largest {max(floors):.3f}")
    print(f"fMSE: mean {statistics.mean(errors):.1f}, median {statistics.median(errors):.1f}")


if __name__ == "__main__":
    main()
