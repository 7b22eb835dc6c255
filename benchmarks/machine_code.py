"""What the kernels of the CUDA library need and what their main loops consist of, read from the machine code.

    python -m scsco_fast.benchmarks.machine_code                        # compiles csrc/ for sm_90, some minutes
    python -m scsco_fast.benchmarks.machine_code --library FILE         # one that `scsco build` has made for sm_90
    python -m scsco_fast.benchmarks.machine_code --csv FILE

No GPU is needed; nvcc and cuobjdump are. A count of instructions is no timing. `loop_instructions` and what follows it
count each instruction of the main loop once, whether a turn issues it never or several times; `turn_64`, `turn_128` and
`turn_256` count what one warp of the attention issues for one tile of 64 keys or queries (`turn`).
"""

import argparse
import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, fields
from importlib.util import find_spec
from pathlib import Path

from scsco_fast.cuda import build, compilers, resources
from scsco_fast.errors import ScscoError
from scsco_fast.kernels import sass

ARCHITECTURE = "9.0"
FRAGMENTS = 32  # numbers of a tile of 64 x 64 that a thread has


@dataclass(frozen=True)
class Row:
    """One kernel on one architecture; a column of the table for each attribute.

    Attributes:
        op: the file of csrc/ that the kernel stands in, without its ending.
        kernel: its name and template arguments.
        architecture: such as "sm_90".
        registers: per thread.
        spilled: bytes of spill stores and loads per thread.
        loop_instructions: of the main loop; the columns down to `local_loads` count some of them.
        ldsm, lds: loads of matrices, and other loads, from shared memory.
        generic_loads: from an address whose memory is found out at run time, which takes longer.
        hmma: products on the tensor cores.
        f2f, f2fp: conversions one at a time, on the unit of exp2, and packed, on the usual ones.
        mufu: exp2, reciprocals and roots.
        local_loads: of spilled values and arrays.
        stack: bytes of local arrays and calls per thread.
        turn_64, turn_128, turn_256: `turn` of kernels of the attention that hold rows of so many columns whole, or 0.
    """

    op: str
    kernel: str
    architecture: str
    registers: int
    spilled: int
    loop_instructions: int
    ldsm: int
    lds: int
    generic_loads: int
    hmma: int
    f2f: int
    mufu: int
    f2fp: int
    local_loads: int
    stack: int
    turn_64: int
    turn_128: int
    turn_256: int


def rows(library: Path, architecture: str = ARCHITECTURE) -> list[Row]:
    """Every kernel of a library, with the log of its build beside it, sorted by name.

    Raises:
        ScscoError: there is no cuobjdump, or the library has no machine code for the architecture.
    """
    name = f"sm_{architecture.replace('.', '')}"
    log = (library.parent / build.LOG).read_text()
    needs = {needed.kernel: needed for needed in resources.read_log(log) if needed.architecture == name}
    code = dict(_disassembled(library, name))
    if not code:
        raise ScscoError(f"{library} has no machine code for {name}")
    names = _demangled(list(code))
    found = [_row(op, names[kernel], needs[kernel], text) for kernel, (op, text) in code.items()]
    return sorted(found, key=lambda row: (row.op, row.kernel))


def cuobjdump() -> str:
    """From the PATH, the CUDA toolkit, or Triton's wheel.

    Raises:
        ScscoError: it is in none of them.
    """
    home = os.environ.get("CUDA_HOME")
    triton = find_spec("triton")
    folders = [Path(home) / "bin"] if home else []
    if triton is not None and triton.submodule_search_locations:
        folders.append(Path(triton.submodule_search_locations[0]) / "backends" / "nvidia" / "bin")
    found = shutil.which("cuobjdump") or shutil.which("cuobjdump", path=os.pathsep.join(map(str, folders)))
    if found is None:
        raise ScscoError("cuobjdump is not found: it is in the CUDA toolkit (CUDA_HOME), and in Triton's wheel")
    return found


def main_loop(code: list[sass.Instruction]) -> sass.Loop:
    """The longest loop, of those with products on tensor cores where there are such, with all that it contains.

    A kernel of the attention multiplies in loops of their own for every tile of keys; the tile is what counts.
    """
    found = sass.loops(code)
    products = [loop for loop in found if any(sass.classify(code[place].operation) == "matrix" for place in loop)]
    return max(products or found, key=len, default=frozenset())


def turn(code: list[sass.Instruction], loop: sass.Loop, panels: int) -> int:
    """How many instructions a warp issues for one turn of an attention kernel's main loop.

    The turn of a whole tile of keys or queries in the middle, with rows of `panels` panels of 128 bytes: the loops
    within go round once for each panel. What such a turn branches over is left out, and is told by its instructions:
    the incomplete end of a tile (selections) and of a row (products in a loop of their own), a rescaling of the sums
    (multiplications without a product), and copies where there is no second stage (a barrier).
    """
    position = {instruction.address: place for place, instruction in enumerate(code)}
    left = dict.fromkeys(loop, panels - 1)  # turns of the loops within, by the branch that ends them
    rounds = [other for other in sass.loops(code) if other < loop and _products(code, sorted(other))]
    place, issued = min(loop), 0
    while place in loop:
        issued += 1
        address = sass.jump_target(code[place]) if code[place].operation.startswith("BRA") else None
        target = -1 if address is None else position.get(address, -1)
        conditional = code[place].guarded or "," in code[place].operands
        if target not in loop:
            place += 1
        elif target > place:
            over = range(place + 1, target)
            place = target if not conditional or _is_rare(code, over, rounds) else place + 1
        elif target == min(loop):
            break
        elif not conditional or left[place] > 0:
            left[place] -= 1
            place = target
        else:
            place += 1
    return issued


def _products(code: list[sass.Instruction], places: Iterable[int]) -> int:
    return sum(sass.classify(code[place].operation) == "matrix" for place in places)


def _is_rare(code: list[sass.Instruction], over: range, rounds: list[sass.Loop]) -> bool:
    """Whether a turn of a whole tile branches over these instructions."""
    count = Counter(code[place].operation.split(".")[0] for place in over)
    if not _products(code, over):
        return count["BAR"] > 0 or count["FSEL"] >= FRAGMENTS or count["FMUL"] >= 2 * FRAGMENTS
    return any(set(loop) <= set(over) for loop in rounds)


def _row(op: str, kernel: str, needed: resources.Resources, text: str) -> Row:
    code = sass.instructions(text)
    loop = main_loop(code)
    count = Counter(code[place].operation.split(".")[0] for place in loop)
    whole = op.startswith("bain_attention") and count["HMMA"] > 0 and not kernel.endswith("false>")
    turns = (turn(code, loop, panels) if whole else 0 for panels in (1, 2, 4))
    return Row(
        op,
        kernel,
        needed.architecture,
        needed.registers,
        needed.spilled,
        len(loop),
        ldsm=count["LDSM"],
        lds=count["LDS"],
        generic_loads=count["LD"],
        hmma=count["HMMA"],
        f2f=count["F2F"],
        mufu=count["MUFU"],
        f2fp=count["F2FP"],
        local_loads=count["LDL"],
        stack=needed.stack,
        **dict(zip(("turn_64", "turn_128", "turn_256"), turns, strict=True)),
    )


def _disassembled(library: Path, architecture: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """Mangled name, file and machine code of each kernel."""
    command = [cuobjdump(), "-sass", "-arch", architecture, str(library)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for cubin in text.split("Fatbin elf code:")[1:]:
        file = re.search(r"^identifier = (.+)$", cubin, re.MULTILINE)
        for part in re.split(r"(?=Function : )", cubin)[1:]:
            yield part.split(None, 3)[2], (Path(file[1]).stem if file else "", part)


def _demangled(names: list[str]) -> dict[str, str]:
    """Short names, as "fwd_kernel<BFloat16Product, true>", by mangled ones."""
    command = ["c++filt", "--no-params", *names]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return {
        name: re.sub(r"(\(anonymous namespace\)|scsco)::", "", line) for name, line in zip(names, lines, strict=True)
    }


def _table(found: list[Row]) -> Iterator[str]:
    header = [field.name for field in fields(Row)]
    cells = [header, *([str(value) for value in astuple(row)] for row in found)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def _write(found: list[Row], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in fields(Row))
        writer.writerows(map(astuple, found))


def _compiled(folder: Path, architecture: str) -> Path:
    plan = build.plan("cuda", architectures=architecture)
    return build.compile_library(plan, folder, folder / build.LOG, lambda line: print(line, file=sys.stderr))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=Path, metavar="FILE", help="a library with the log of its build beside it")
    parser.add_argument("--architecture", default=ARCHITECTURE, help="compute capability; %(default)s by default")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table there instead of printing it")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            library = options.library or _compiled(Path(folder), options.architecture)
            found = rows(library, options.architecture)
    except (ScscoError, compilers.BuildError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.csv:
        _write(found, options.csv)
    else:
        print("\n".join(_table(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
