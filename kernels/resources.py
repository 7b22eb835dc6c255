"""The resource gate: every kernel configuration compiled ahead of time, without a GPU, and what it needs.

Every operation's module lists its configurations in `compile_cases`. `python -m scsco_fast.kernels.resources` compiles
them for each architecture and prints a table of what each needs; it exits 1 if one spills, needs more
shared memory than the device has, or multiplies matrices without tensor cores.
"""

import argparse
import importlib
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

OPERATIONS = (
    "bain_attention",
    
    "region_norm",
    "masked_gram",
    "cross_gram",
    "feature_distances",
    "gram_distances",
    "transfer_color",
)
ARCHITECTURES = (80, 90, 100)
SHARED_LIMIT = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
TENSOR_MEMORY_LIMIT = 512  # columns, sm_100 only
MATRIX_INSTRUCTIONS = ("wgmma.mma_async", "tcgen05.mma", "mma.sync")


@dataclass(frozen=True)
class Case:
    """One configuration of one kernel, as its launcher would compile it.

    Attributes:
        label: what a reader needs to recognise it: channels, key width, dtype.
        kernel: the `@triton.jit` function.
        signature: type of every argument that is not constexpr, by name: "*fp16", "*i64", "i32", "i64", "fp32".
        constexprs: value of every constexpr argument, and of arguments the launcher would specialise to 1.
        needs_tensor_cores: it multiplies matrices in something other than IEEE float32.
        architectures: the compute capabilities (80 = 8.0) that the launcher gives this configuration to.
        aligned: names of arguments divisible by 16; None: all pointers, and integers named "stride..." or "n_...".
        options: further options of the compiler, such as maxnreg.
        core: compiled by the test suite; the others only by `python -m scsco_fast.kernels.resources`.
    """

    label: str
    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    num_warps: int
    num_stages: int
    needs_tensor_cores: bool = False
    architectures: tuple[int, ...] = ARCHITECTURES
    aligned: tuple[str, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    core: bool = True


@dataclass(frozen=True)
class Resources:
    """What ptxas made of a case on one architecture."""

    case: Case
    architecture: int
    registers: int  # per thread
    spilled: int  # bytes of local memory per thread: spills and local arrays
    shared: int  # bytes per block
    tensor_memory: int  # columns
    instruction: str  # matrix instruction, or ""

    def problems(self) -> list[str]:
        """One line per rule that the configuration breaks."""
        found = []
        if self.spilled:
            found.append(f"spills {self.spilled} bytes")
        if self.shared > SHARED_LIMIT[self.architecture]:
            found.append(f"needs {self.shared} bytes of shared memory, limit {SHARED_LIMIT[self.architecture]}")
        if self.tensor_memory > TENSOR_MEMORY_LIMIT:
            found.append(f"needs {self.tensor_memory} columns of tensor memory, limit {TENSOR_MEMORY_LIMIT}")
        if self.case.needs_tensor_cores and not self.instruction:
            found.append("multiplies matrices without tensor cores")
        return [f"{name(self.case)} on sm_{self.architecture}: {problem}" for problem in found]


def name(case: Case) -> str:
    """Kernel and label, for tests and tables."""
    return f"{case.kernel.__name__}[{case.label}]"


def all_cases(operations: Iterable[str] = OPERATIONS) -> list[Case]:
    """The cases of every operation whose module is there."""
    cases: list[Case] = []
    for operation in operations:
        if (Path(__file__).parent / f"{operation}.py").exists():
            cases += importlib.import_module(f"scsco_fast.kernels.{operation}").compile_cases()
    return cases


def measure(case: Case, architecture: int) -> Resources:
    """Compile `case` for `architecture` (90 = sm_90) and read what it needs; needs no GPU.

    Raises:
        RuntimeError: TRITON_INTERPRET is set, so that there is no compiler.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if not isinstance(case.kernel, triton.JITFunction):
        raise RuntimeError("resources are measured by the compiler: unset TRITON_INTERPRET")
    signature = {arg: case.signature.get(arg, "constexpr") for arg in case.kernel.arg_names}
    attributes = {(case.kernel.arg_names.index(arg),): [["tt.divisibility", 16]] for arg in _aligned(case)}
    source = ASTSource(case.kernel, signature, dict(case.constexprs), attributes)
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, **case.options}
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    registers, spilled = _usage(compiled.asm["cubin"])
    instruction = next((i for i in MATRIX_INSTRUCTIONS if i in compiled.asm["ptx"]), "")
    tensor_memory = getattr(compiled.metadata, "tmem_size", None) or 0
    return Resources(case, architecture, registers, spilled, compiled.metadata.shared, tensor_memory, instruction)


def measure_all(rows: Sequence[tuple[Case, int]], processes: int) -> Iterator[Resources]:
    """`measure` of each case and architecture, in their order, by several processes."""
    named = [(name(case), sm) for case, sm in rows]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:  # not fork: Triton's compiler holds threads
        for (case, sm), numbers in zip(rows, pool.imap(_measure_named, named), strict=True):
            yield Resources(case, sm, *numbers)


def _measure_named(row: tuple[str, int]) -> tuple[int, int, int, int, str]:
    """A case by its name, and numbers back: the kernel of a case cannot be sent to another process."""
    found = measure(_cases_by_row()[row], row[1])
    return found.registers, found.spilled, found.shared, found.tensor_memory, found.instruction


@cache
def _cases_by_row() -> dict[tuple[str, int], Case]:
    return {(name(case), sm): case for case in all_cases() for sm in case.architectures}


def _aligned(case: Case) -> list[str]:
    if case.aligned is not None:
        return list(case.aligned)
    return [arg for arg, kind in case.signature.items() if kind.startswith("*") or arg.startswith(("stride", "n_"))]


@cache
def _cuobjdump() -> str:
    import triton

    try:
        return str(triton.knobs.nvidia.cuobjdump.path)
    except (AttributeError, RuntimeError):
        return str(Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump")


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of local memory of one kernel, from its binary."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        text = subprocess.run([_cuobjdump(), "-res-usage", path], capture_output=True, text=True, check=True).stdout
    numbers = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    return numbers["REG"], numbers["STACK"] + numbers["LOCAL"]


def table(rows: Iterable[Resources]) -> str:
    """The measurements as a Markdown table."""
    lines = [
        "| kernel | configuration | warps | stages | sm | registers | spilled | shared KiB | matrix instruction |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        case = row.case
        launch = (case.kernel.__name__, case.label, case.num_warps, case.num_stages, row.architecture)
        cells = (*launch, row.registers, row.spilled, f"{row.shared / 1024:.1f}", row.instruction or "none")
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


HEADER = """# What every kernel configuration needs

Compiled ahead of time without a GPU by Triton {version}, one row per configuration and architecture; written by
`python -m scsco_fast.kernels.resources`. Limits: no spilled byte, at most {limits} of
shared memory, a matrix instruction wherever matrices are multiplied in anything but IEEE float32. These are no timings:
no GPU figure exists yet.
"""


def main(argv: list[str] | None = None) -> int:
    """Print the table; 1 if a configuration breaks a rule, each named on stderr."""
    import triton

    parser = argparse.ArgumentParser(prog="python -m scsco_fast.kernels.resources", description=__doc__)
    parser.add_argument("operations", nargs="*", default=OPERATIONS, help="operations to compile (default: all)")
    parser.add_argument("--sm", type=int, nargs="*", choices=sorted(SHARED_LIMIT), help="architectures (default: all)")
    parser.add_argument("--only", default="", help="compile the cases whose name contains this text")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    arguments = parser.parse_args(argv)
    wanted = [
        (case, sm)
        for case in all_cases(arguments.operations)
        for sm in case.architectures
        if arguments.only in name(case) and (not arguments.sm or sm in arguments.sm)
    ]
    rows = []
    for row in measure_all(wanted, arguments.jobs):
        rows.append(row)
        if sys.stderr.isatty() or os.environ.get("SCSCO_VERBOSE"):
            sys.stderr.write(table([row]).splitlines()[-1] + "\n")
    limits = ", ".join(f"{SHARED_LIMIT[sm] // 1024} KiB (sm_{sm})" for sm in ARCHITECTURES)
    sys.stdout.write(HEADER.format(version=triton.__version__, limits=limits) + "\n" + table(rows) + "\n")
    broken = [problem for row in rows for problem in row.problems()]
    sys.stderr.write("".join(f"{problem}\n" for problem in broken))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
