"""One stage of the GPU pass; benchmarks/gpu_pass.sh calls it with the stage's time."""

import argparse
import math
import os
import re
import signal
import sys
import time
from pathlib import Path

from scsco_fast.benchmarks.gpu_pass import STAGES
from scsco_fast.benchmarks.gpu_pass.journal import Journal, code_digest, trim
from scsco_fast.benchmarks.gpu_pass.runner import UNMATCHED, Runner, Settings


def processes() -> int:
    """How many measure or compile at once: on 16 cores 12, each with half a GiB of GPU memory for its context."""
    return max(2, min(12, len(os.sched_getaffinity(0)) - 4))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scsco_fast.benchmarks.gpu_pass", description=__doc__)
    parser.add_argument("out", type=Path, help="folder for STAGE.jsonl and log.txt")
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--seconds", type=float, required=True, help="for the items, once a process is ready")
    parser.add_argument("--within", type=float, default=math.inf, help="seconds for all, start included")
    parser.add_argument("--cache", type=Path, required=True, help="folder for what is compiled")
    parser.add_argument("--rehearse", action="store_true", help="small shapes on the CPU")
    parser.add_argument("--only", default="", help="regular expression: items whose name it is found in")
    options = parser.parse_args()
    try:
        only = re.compile(options.only)
    except re.error as error:
        parser.exit(2, f"--only {options.only!r} is no regular expression: {error}\n")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the processes are ended on the way out
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / "log.txt"
    begun = time.monotonic()

    def say(line: str) -> None:
        text = f"[{time.monotonic() - begun:5.1f} s] {line}"
        print(text, flush=True)
        with log.open("a") as file:
            file.write(text + "\n")

    code, device = code_digest(), "cpu" if options.rehearse else "cuda"
    journal = Journal(options.out / f"{options.stage}.jsonl", stage=options.stage, code=code, device=device)
    settings = Settings(options.stage, options.out, options.cache, options.rehearse, log, processes())
    runner = Runner(settings, journal, options.seconds, say, options.within)
    statuses = runner.run(lambda name: only.search(name) is not None)
    if UNMATCHED in statuses:
        say(f"{options.stage}: no item has a name in which --only {options.only!r} is found")
    else:
        counts = ", ".join(f"{count} {status}" for status, count in statuses.items())
        say(f"{options.stage}: {counts or 'nothing to do'}")
    trim(log)
    return 1 if set(statuses) - {"done"} else 0


if __name__ == "__main__":
    sys.exit(main())
