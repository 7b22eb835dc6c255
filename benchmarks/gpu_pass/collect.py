"""Appends the rows that a pass measured to a file of benchmark rows.

python -m scsco_fast.benchmarks.gpu_pass.collect OUT benchmarks/results/gpu.csv
"""

import argparse
from pathlib import Path

from scsco_fast.benchmarks import rows
from scsco_fast.benchmarks.gpu_pass.journal import read
from scsco_fast.benchmarks.rows import Row

STAGES = ("speed", "cuda")


def collect(out: Path, device: str = "cuda") -> list[Row]:
    """Of the same case on the same device the row that was measured last. A rehearsal's rows are left out."""
    records = [record for stage in STAGES for record in read(out / f"{stage}.jsonl") if "row" in record]
    return rows.latest(Row(**record["row"]) for record in records if record["device"] == device)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scsco_fast.benchmarks.gpu_pass.collect", description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the pass")
    parser.add_argument("csv", type=Path, help="file that the rows are appended to; its neighbour .jsonl gets them too")
    options = parser.parse_args()
    found = collect(options.out)
    rows.append(found, options.csv)
    print(f"{len(found)} rows appended to {options.csv}")


if __name__ == "__main__":
    main()
