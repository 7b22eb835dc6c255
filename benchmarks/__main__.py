"""`python -m scsco_fast.benchmarks`: `scsco bench --suite` with nothing but torch and the standard library."""

import argparse
from pathlib import Path

from scsco_fast.benchmarks.suites import SUITES, run

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", choices=SUITES, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/bench"), help="folder for SUITE.csv and SUITE.jsonl")
    parser.add_argument("--minutes", type=float, help="cases that would start later are left out")
    options = parser.parse_args()
    run(options.suite, options.output, options.minutes, lambda line: print(line, flush=True))
