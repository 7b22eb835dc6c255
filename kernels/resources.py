"""The resource gate: every kernel configuration compiled ahead of time, without a GPU, and what it needs.

Every operation's module lists its configurations in `compile_cases`. `python -m scsco_fast.kernels.resources` compiles
them for each architecture (the command is `gate.py`); it exits 1 if one spills, needs more shared memory than the
device has, multiplies matrices without tensor cores, or lets products wait for one another that should overlap.
"""

import contextlib
import hashlib
import importlib
import inspect
import io
import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from scsco_fast.kernels import sass
from scsco_fast.kernels.cases import Case

# Every operation that has a launcher here; it lists its configurations in `compile_cases`.
OPERATIONS = tuple(sorted(path.parent.name for path in Path(__file__).parent.glob("*/launch.py")))
SHARED_LIMIT = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
TENSOR_MEMORY_LIMIT = 512  # columns, sm_100 only
MATRIX_INSTRUCTIONS = ("wgmma.mma_async", "tcgen05.mma", "mma.sync")


@dataclass(frozen=True)
class Resources:
    """What ptxas made of a case on one architecture; without the case and the architecture, a row of the table."""

    case: Case
    architecture: int
    registers: int  # per thread
    spilled: int  # bytes per thread of local memory, or of what is stored there or loaded if that is more
    shared: int  # bytes per block
    tensor_memory: int  # columns
    instruction: str  # matrix instruction, or ""
    loop_instructions: int  # of one turn of the main loop and a warp (`sass.main_loop`); 0 without a loop or uncounted
    serialised: bool  # every matrix product waits for the one before

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
        if self.case.pipelined and self.serialised:
            found.append("its matrix products wait for one another (ptxas: wgmma.mma_async is serialized)")
        return [f"{name(self.case)} on sm_{self.architecture}: {problem}" for problem in found]


def name(case: Case) -> str:
    """Kernel and label, for tests and tables."""
    return f"{case.kernel.__name__}[{case.label}]"


def all_cases(operations: Iterable[str] = OPERATIONS) -> list[Case]:
    """The cases of these operations."""
    cases: list[Case] = []
    for operation in operations:
        cases += importlib.import_module(f"scsco_fast.kernels.{operation}.launch").compile_cases()
    return cases


def measure(case: Case, architecture: int) -> Resources:
    """Compile `case` for `architecture` (90 = sm_90) and read what it needs; needs no GPU.

    The numbers are kept beside the kernel in Triton's cache, so that a second run takes milliseconds instead of 2 s.

    Raises:
        RuntimeError: TRITON_INTERPRET is set, so that there is no compiler, or the case does not compile.
    """
    import triton
    from triton.runtime.cache import get_cache_manager

    if not isinstance(case.kernel, triton.JITFunction):
        raise RuntimeError("resources are measured by the compiler: unset TRITON_INTERPRET")
    compiled, log = _compile(case, architecture)
    kept = get_cache_manager(compiled.metadata.hash)
    whole = architecture == 90 or case.kernel.__name__.startswith("bain_attention")
    name_kept = f"resources-{_reader()}.json" if whole else f"resources-log-{_reader()}.json"
    path = kept.get_file(name_kept)
    if path is not None:
        return Resources(case, architecture, *json.loads(Path(path).read_text()))
    if not log:  # Triton took the kernel from its cache, which holds no log
        compiled, log = _compile(case, architecture, anew=True)
    numbers = _numbers(compiled, log) if whole else _numbers_of_log(compiled, log)
    kept.put(json.dumps(numbers), name_kept, binary=False)
    return Resources(case, architecture, *numbers)


def _compile(case: Case, architecture: int, anew: bool = False) -> tuple[Any, str]:
    """The compiled kernel and what ptxas said, which is nothing where Triton's cache has the kernel."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {arg: case.signature.get(arg, "constexpr") for arg in case.kernel.arg_names}
    attributes = {(case.kernel.arg_names.index(arg),): [["tt.divisibility", 16]] for arg in _aligned(case)}
    source = ASTSource(case.kernel, signature, dict(case.constexprs), attributes)
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, **case.options}
    nvidia, compilation = triton.knobs.nvidia, triton.knobs.compilation
    with nvidia.scope(), compilation.scope(), contextlib.redirect_stdout(io.StringIO()) as log:
        nvidia.dump_ptxas_log, compilation.always_compile = True, anew
        try:
            compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
        except Exception as error:  # whatever a compiler raises; some texts hold the whole kernel
            lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            reason = next((line for line in lines if "fatal" in line), lines[-1])
            raise RuntimeError(f"{name(case)} on sm_{architecture}: {reason}") from error
    return compiled, log.getvalue()


def _numbers(compiled: Any, log: str) -> tuple[int, int, int, int, str, int, bool]:
    """The fields of `Resources` that are measured."""
    text = _disassembled(compiled.asm["cubin"])
    used = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    code = sass.instructions(text)
    return (
        used["REG"],
        max(used["STACK"] + used["LOCAL"], spilled(log)),
        compiled.metadata.shared,
        getattr(compiled.metadata, "tmem_size", None) or 0,
        next((i for i in MATRIX_INSTRUCTIONS if i in compiled.asm["ptx"]), ""),
        len(sass.main_loop(code)),
        serialised(log),
    )


def _numbers_of_log(compiled: Any, log: str) -> tuple[int, int, int, int, str, int, bool]:
    """The same without the loop: disassembling takes 0.45 s, half of what a small kernel takes in all."""
    registers = max(int(count) for count in re.findall(r"Used (\d+) registers", log))
    stack = max(int(count) for count in re.findall(r"(\d+) bytes stack frame", log))
    return (
        registers,
        max(stack, spilled(log)),
        compiled.metadata.shared,
        getattr(compiled.metadata, "tmem_size", None) or 0,
        next((i for i in MATRIX_INSTRUCTIONS if i in compiled.asm["ptx"]), ""),
        0,
        serialised(log),
    )


def spilled(log: str) -> int:
    """The larger number of bytes that ptxas says are stored or loaded for want of registers."""
    return max((int(count) for count in re.findall(r"(\d+) bytes spill", log)), default=0)


def serialised(log: str) -> bool:
    """Whether ptxas says that matrix products do not overlap; its number is C7510 to C7515, by the reason."""
    return "wgmma.mma_async instructions are serialized" in log


@cache
def _reader() -> str:
    """Changes with what reads the numbers, so that none read otherwise are taken from the cache."""
    parts = (sass, _numbers, _disassembled, spilled, serialised)
    return hashlib.sha256("".join(inspect.getsource(part) for part in parts).encode()).hexdigest()[:12]


def measure_all(rows: Sequence[tuple[Case, int]], processes: int) -> Iterator[Resources]:
    """`measure` of each case and architecture, in their order, by several processes."""
    named = [(name(case), sm) for case, sm in rows]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:  # not fork: Triton's compiler holds threads
        for (case, sm), numbers in zip(rows, pool.imap(_measure_named, named), strict=True):
            yield Resources(case, sm, *numbers)
        pool.close()
        pool.join()


def _measure_named(row: tuple[str, int]) -> tuple[int, int, int, int, str, int, bool]:
    """A case by its name, and numbers back: the kernel of a case cannot be sent to another process."""
    found = measure(_cases_by_row()[row], row[1])
    size = found.registers, found.spilled, found.shared, found.tensor_memory
    return *size, found.instruction, found.loop_instructions, found.serialised


@cache
def _cases_by_row() -> dict[tuple[str, int], Case]:
    return {(name(case), sm): case for case in all_cases() for sm in case.architectures}


def _aligned(case: Case) -> list[str]:
    if case.aligned is not None:
        return list(case.aligned)
    return [arg for arg, kind in case.signature.items() if kind.startswith("*") or arg.startswith(("stride", "n_"))]


def _disassembled(cubin: bytes) -> str:
    """What a kernel uses, and its instructions; one call for both, of half a second whatever the kernel's size."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", "-sass", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    from scsco_fast.kernels.gate import main

    sys.exit(main())
