"""`scsco bench`: time, tune, compare, count and report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scsco_fast.cli.parsing import parse
from scsco_fast.cli.shared import check_backend
from scsco_fast.system.extras import require


@dataclass(frozen=True)
class BenchOptions:
    """Time every operation and the whole network, beside dense, compiled and library attention: docs/benchmarks.md.

    Without --report, --tune, --compare and --gate it measures a suite and appends its rows.
    """

    suite: Literal["smoke", "cpu", "gpu", "full"] | None = None
    """smoke: seconds, does the program work; cpu: a quarter of an hour; gpu: under ten minutes; full: more of either.
    If not given, gpu where there is a GPU, else cpu."""
    output: Path = Path("runs/bench")
    """Folder for SUITE.csv and SUITE.jsonl; rows are appended."""
    minutes: float | None = None
    """Cases, or kernels of the table, that would start later are left out, and counted; if not given, the suite's
    limit, 9 for --tune."""
    report: bool = False
    """Instead: draw the figures and write docs/performance.md and the README's table from the committed rows."""
    tune: bool = False
    """Instead: time the candidates for the attention kernels' configurations on this GPU, write each kernel's fastest
    into the table, and append the rows behind it to tune.csv."""
    compare: tuple[str, str] | None = None
    """Instead: what differs from the first to the second, two files of rows or git revisions. Exit code 1: a row got
    worse."""
    gate: bool = False
    """Instead: launches, bytes, operations, memory and waits, counted without a GPU. Exit code 1: one grew."""


def command(arguments: list[str]) -> int:
    options = parse(BenchOptions, arguments, "scsco bench")

    def say(line: str) -> None:
        print(line, flush=True)

    if options.compare is not None:
        from scsco_fast.benchmarks.compare import compare

        return compare(*options.compare, say=say)
    if options.gate:
        require("scsco bench --gate", "bench", "triton")
        from scsco_fast.benchmarks.counts import gate

        return gate()
    if options.report:
        from scsco_fast.benchmarks.report import report

        report(say=say)
        return 0
    check_backend()
    if options.tune:
        from scsco_fast.benchmarks.tuning import tune

        tune(9.0 if options.minutes is None else options.minutes, options.output, say)
        return 0
    import torch

    from scsco_fast.benchmarks.suites import run as run_suite

    suite = options.suite or ("gpu" if torch.cuda.is_available() else "cpu")
    rows = run_suite(suite, options.output, options.minutes, say)
    return 1 if any(row.note.startswith("wrong") for row in rows) else 0
