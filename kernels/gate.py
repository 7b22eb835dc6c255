"""The resource gate's command, its table as data, and the page that is made from it.

    python -m scsco_fast.kernels.resources --csv benchmarks/kernel_resources.csv
    python -m scsco_fast.kernels.resources --csv benchmarks/kernel_resources.csv --triton DIR
    python -m scsco_fast.kernels.resources --csv benchmarks/kernel_resources.csv --page docs/kernels/resources.md

DIR holds another Triton: `pip install --no-deps --target DIR triton==3.6.0`.
"""

import argparse
import csv
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from scsco_fast.kernels import no_triton
from scsco_fast.kernels.cases import ARCHITECTURES, PIPELINED_CHANNELS, Case
from scsco_fast.kernels.resources import (
    OPERATIONS,
    SHARED_LIMIT,
    Resources,
    all_cases,
    measure_all,
    name,
)

PROGRAM = "python -m scsco_fast.kernels.resources"
DEVICES = {80: "A100", 86: "RTX 30", 89: "L4, L40, RTX 40", 90: "H100, H200", 100: "B200", 120: "RTX 50"}


class Row(NamedTuple):
    """A line of the table."""

    triton: str
    kernel: str
    configuration: str
    warps: int
    stages: int
    sm: int
    registers: int
    spilled: int
    shared_bytes: int
    tensor_memory: int
    instruction: str
    loop_instructions: int
    serialised: int  # 1: yes

    @property
    def case(self) -> tuple[str, int]:
        return f"{self.kernel}[{self.configuration}]", self.sm


def row_of(found: Resources, version: str) -> Row:
    case = found.case
    launch = (case.kernel.__name__, case.label, case.num_warps, case.num_stages, found.architecture)
    size = (found.registers, found.spilled, found.shared, found.tensor_memory)
    return Row(version, *launch, *size, found.instruction, found.loop_instructions, int(found.serialised))


def resources_of(row: Row, case: Case) -> Resources:
    """A committed row as if it had just been measured."""
    size = (row.registers, row.spilled, row.shared_bytes, row.tensor_memory)
    return Resources(case, row.sm, *size, row.instruction, row.loop_instructions, bool(row.serialised))


def read(path: Path) -> list[Row]:
    """The rows of a file.

    Raises:
        ValueError: the file cannot be read, or is none of `write`; in one line.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *lines = list(csv.reader(file))
        if tuple(header) != Row._fields:
            raise ValueError(f"wanted the columns {', '.join(Row._fields)}")
        kinds = Row.__annotations__.values()
        return [Row(*(kind(cell) for kind, cell in zip(kinds, line, strict=True))) for line in lines]
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); {PROGRAM} --csv {path} writes it") from error
    except ValueError as error:
        raise ValueError(f"{path}: no table of resources ({error}); delete it, {PROGRAM} --csv writes it") from error


def write(rows: Iterable[Row], path: Path) -> None:
    """Replace a file at once or not at all; its order does not depend on who measured what first."""
    ordered: list[Row] = sorted(rows, key=_order)
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(Row._fields)
            writer.writerows(ordered)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _order(row: Row) -> tuple[str, list[tuple[str, int]], int, str]:
    """By kernel, configuration with its numbers as numbers, architecture, Triton."""
    words = re.findall(r"(\D*)(\d*)", row.configuration)
    return row.kernel, [(text, int(number or 0)) for text, number in words], row.sm, row.triton


def updated(before: Iterable[Row], now: Iterable[Row], cases: Iterable[Case]) -> list[Row]:
    """Measured rows in the place of those of the same Triton, and no row of a configuration that is gone."""
    rows = {(row.triton, *row.case): row for row in [*before, *now]}
    there = {(name(case), sm): (case.num_warps, case.num_stages) for case in cases for sm in case.architectures}
    return [row for row in rows.values() if there.get(row.case) == (row.warps, row.stages)]


# --- the page ---------------------------------------------------------------------------------------------------------

PAGE = f"""# What every kernel configuration needs

Every configuration of every Triton kernel was compiled ahead of time, without a GPU, by Triton {{versions}}.
**No figure here is a timing, and no kernel has run on a GPU yet.** `{PROGRAM}` makes this page from
`benchmarks/kernel_resources.csv`, which has a row for each configuration, architecture and version of Triton.

## Compile them again

With the installed Triton:

```bash
{PROGRAM} --csv benchmarks/kernel_resources.csv
```

With another one, in a folder of its own, here `other-triton`:

```bash
pip install --no-deps --target other-triton triton==3.6.0
{PROGRAM} --csv benchmarks/kernel_resources.csv --triton other-triton
```

Then write this page:

```bash
{PROGRAM} --csv benchmarks/kernel_resources.csv --page docs/kernels/resources.md
```

The command exits with 1 if one of these rules is broken:

- no thread spills a byte;
- a block's shared memory fits the device;
- matrices are multiplied by tensor cores wherever the operands are not IEEE float32;
- with 16-bit operands and at most {PIPELINED_CHANNELS} channels no matrix product waits for the one before because
  the compiler could not overlap them (ptxas's warnings C7510 to C7515, compute capability 9.0 only). Wider maps and
  TF32 may break this rule; the column "serialised" counts the configurations that do.

## Read the tables

- Registers are per thread, of 255. Shared memory is per block, in KiB.
- Instructions are those of one turn of the kernel's main loop and one warp, counted in the machine code. The main loop
  is the innermost one that multiplies matrices, or else the longest; what a compiler unrolled is one turn.
- Where a cell has several figures, they are those of Triton {{versions}}; one figure is the same for all.
"""


def page(rows: Sequence[Row]) -> str:
    """The Markdown page of a table."""
    versions = sorted({row.triton for row in rows}, key=lambda text: [int(n) for n in re.findall(r"\d+", text)])
    parts = [PAGE.format(versions=" / ".join(versions)), _attention(rows, versions)]
    for sm in ARCHITECTURES:
        there = [row for row in rows if row.sm == sm]
        if there:
            limit = SHARED_LIMIT[sm] // 1024
            parts.append(f"## Compute capability {sm / 10:.1f} ({DEVICES[sm]}): at most {limit} KiB of shared memory\n")
            parts.append(_table(there, versions))
    return "\n".join(part for part in parts if part)


def _table(rows: Sequence[Row], versions: Sequence[str]) -> str:
    """A line for each kernel on one architecture."""
    lines = [
        "| kernel | configurations | most registers | most shared memory | bytes spilled | serialised | instructions |",
        "|---|---|---|---|---|---|---|",
    ]
    for kernel, group in groupby(sorted(rows, key=_order), key=lambda row: row.kernel):
        by_version = [
            [row for row in found if row.triton == version] for found in [list(group)] for version in versions
        ]
        columns = (
            [len(found) for found in by_version],
            [max((row.registers for row in found), default=None) for found in by_version],
            [max((round(row.shared_bytes / 1024, 1) for row in found), default=None) for found in by_version],
            [sum(row.spilled for row in found) for found in by_version],
            [sum(row.serialised for row in found) for found in by_version],
            [_span([row.loop_instructions for row in found]) for found in by_version],
        )
        lines.append(f"| {kernel} | " + " | ".join(_cell(column) for column in columns) + " |")
    return "\n".join(lines) + "\n"


def _attention(rows: Sequence[Row], versions: Sequence[str]) -> str:
    """What a turn of the attention's loops takes on the decoder's levels, on compute capability 9.0."""
    pattern = re.compile(r"half C=(\d+) D=64 (.+)")
    found = [(match, row) for row in rows if row.sm == 90 and (match := pattern.fullmatch(row.configuration))]
    if not found:
        return ""
    channels = sorted({int(match[1]) for match, _ in found})
    counts = {(match[2], int(match[1]), row.triton): row.loop_instructions for match, row in found}
    lines = [
        "## The attention on the decoder's levels: instructions of one turn\n",
        "Compute capability 9.0, float16, query and key of 64 channels. `fwd` is the forward, `fwd norm` the same with",
        "BAIN's output, the others are gradients: `dk` and `dv` where one kernel (`dkv`) cannot hold both.\n",
        "| kernel | " + " | ".join(f"{width} channels" for width in channels) + " |",
        "|---|" + "---|" * len(channels),
    ]
    for part in dict.fromkeys(part for part, _, _ in counts):
        cells = (_cell([counts.get((part, width, version)) for version in versions]) for width in channels)
        lines.append(f"| {part} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(figures: Sequence[object]) -> str:
    """One figure if all versions agree, else one for each."""
    texts = ["-" if figure is None else str(figure) for figure in figures]
    return texts[0] if len(set(texts)) == 1 else " / ".join(texts)


def _span(figures: Sequence[int]) -> str:
    few, many = min(figures, default=0), max(figures, default=0)
    return str(few) if few == many else f"{few}-{many}"


# --- the command ------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """The exit code: 1 if a configuration breaks a rule, each named on stderr; 2 if nothing could be done."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.triton is not None:
            return _with_triton(arguments.triton, argv)
        if arguments.page is not None:
            return _write_page(arguments.csv, arguments.page)
        return _compile(arguments)
    except (ValueError, RuntimeError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("operations", nargs="*", default=OPERATIONS, help="operations to compile (default: all)")
    parser.add_argument("--sm", type=int, nargs="+", choices=ARCHITECTURES, help="architectures (default: all)")
    parser.add_argument("--only", default="", help="compile the cases whose name contains this text")
    parser.add_argument(
        "--jobs", type=_processes, default=os.cpu_count() or 1, help="processes (default: one per core)"
    )
    parser.add_argument("--triton", type=Path, metavar="DIR", help="compile with the Triton installed in this folder")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="update this table, instead of printing one")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the page made from --csv, and compile nothing")
    return parser


def _processes(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"wanted a number of processes, 1 or more, not {text!r}")
    return int(text)


def _with_triton(folder: Path, argv: list[str] | None) -> int:
    """The same command in a process that finds the Triton of `folder` first."""
    if not (folder / "triton" / "__init__.py").is_file():
        raise ValueError(f"{folder} holds no Triton: pip install --no-deps --target {folder} triton==3.6.0")
    option = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    option.add_argument("--triton")
    rest = option.parse_known_args(argv)[1]
    path = os.pathsep.join(filter(None, (str(folder.resolve()), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", PROGRAM.split()[-1], *rest]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, check=False).returncode


def _write_page(table: Path | None, path: Path) -> int:
    if table is None:
        raise ValueError(f"--page is made from a table: add --csv FILE, as {PROGRAM} --csv FILE writes it")
    path.write_text(page(read(table)), encoding="utf-8")
    return 0


def _compile(arguments: argparse.Namespace) -> int:
    before = read(arguments.csv) if arguments.csv is not None and arguments.csv.exists() else []
    wanted = _wanted(arguments)
    import triton

    found = []
    for resources in measure_all(wanted, arguments.jobs):
        found.append(resources)
        _tell(f"{len(found)} of {len(wanted)}: {name(resources.case)}", len(found) == len(wanted))
    rows = [row_of(resources, triton.__version__) for resources in found]
    if arguments.csv is None:
        sys.stdout.write(_listing(rows))
    else:
        write(updated(before, rows, all_cases()), arguments.csv)
    used = os.times()
    seconds = used.children_user + used.children_system
    sys.stderr.write(f"{len(rows)} compiled by Triton {triton.__version__}, {seconds:.0f} s of CPU time\n")
    broken = [problem for resources in found for problem in resources.problems()]
    sys.stderr.write("".join(f"{problem}\n" for problem in broken))
    return 1 if broken else 0


def _wanted(arguments: argparse.Namespace) -> list[tuple[Case, int]]:
    """What is to be compiled; whatever can be wrong is found here, before an hour has passed."""
    unknown = [operation for operation in arguments.operations if operation not in OPERATIONS]
    if unknown:
        raise ValueError(f"no operation {', '.join(unknown)}: there are {', '.join(OPERATIONS)}")
    if arguments.csv is not None and not arguments.csv.parent.is_dir():
        raise ValueError(f"--csv {arguments.csv}: there is no folder {arguments.csv.parent}")
    if (reason := no_triton()) is not None:
        raise ValueError(reason)
    wanted = [
        (case, sm)
        for case in all_cases(arguments.operations)
        for sm in case.architectures
        if arguments.only in name(case) and (not arguments.sm or sm in arguments.sm)
    ]
    if not wanted:
        raise ValueError(f"--only {arguments.only!r}: no configuration of these has it in its name")
    return wanted


def _tell(progress: str, last: bool) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{progress}\033[K" + "\n" * last)


def _listing(rows: Iterable[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [Row._fields, ("---",) * len(Row._fields), *rows]
    return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines)
