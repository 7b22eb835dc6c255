"""The counter of machine instructions: loops in made-up code, and in kernels that are compiled here."""

from typing import Any

import pytest

pytest.importorskip("triton")

import triton
import triton.language as tl

from scsco_fast import kernels
from scsco_fast.kernels import resources, sass
from scsco_fast.kernels.cases import Case
from scsco_fast.kernels.sass import Instruction

pytestmark = pytest.mark.skipif(kernels.interpreted(), reason="an interpreter makes no machine code")


def code(*lines: str) -> list[Instruction]:
    """Instructions of 16 bytes from "[@]OPERATION operands"; "#3" is the address of the third."""
    found = []
    for place, line in enumerate(lines):
        operation, _, operands = line.removeprefix("@").partition(" ")
        for target in range(len(lines)):
            operands = operands.replace(f"#{target};", f"{16 * target:#x}")
        found.append(Instruction(16 * place, line.startswith("@"), operation, operands))
    return found


def test_nested_loops() -> None:
    nested = code("MOV", "FADD", "FMUL", "@BRA #2;", "IADD3", "@BRA #1;", "EXIT")
    assert sorted(map(sorted, sass.loops(nested))) == [[1, 2, 3, 4, 5], [2, 3]]


def test_a_jump_back_from_behind_the_end_is_no_loop() -> None:
    """A wait put out of line: it returns to where it was left."""
    waiting = code("MOV", "@BRA #4;", "FADD", "EXIT", "@BRA #4;", "BRA #2;")
    assert [sorted(loop) for loop in sass.loops(waiting)] == [[4]]


def test_a_condition_may_stand_among_the_operands() -> None:
    """A uniform branch falls through too, and what it skips belongs to the loop."""
    assert [sorted(loop) for loop in sass.loops(code("MOV", "BRA.U UP1, #3;", "FADD", "@BRA #0;", "EXIT"))] == [
        [0, 1, 2, 3]
    ]
    assert [sorted(loop) for loop in sass.loops(code("MOV", "BRA #3;", "FADD", "@BRA #0;", "EXIT"))] == [[0, 1, 3]]


def test_threads_that_part_meet_where_it_was_said() -> None:
    """Code behind the kernel's end that goes back by its barrier belongs to the loop."""
    parted = code("MOV", "BSSY B0, #4;", "@BRA #6;", "BSYNC B0", "@BRA #0;", "EXIT", "FADD", "BSYNC B0", "EXIT")
    assert [sorted(loop) for loop in sass.loops(parted)] == [[0, 1, 2, 3, 4, 6, 7]]


def test_the_main_loop_multiplies_matrices_else_is_the_longest() -> None:
    padding = ["FADD"] * 10
    short = ["@BRA #0;", "HMMA.16816.F32", "@BRA #1;"]
    assert sorted(sass.main_loop(code(*short, *padding, "@BRA #3;", "EXIT"))) == [1, 2]
    without = [line.replace("HMMA.16816.F32", "FFMA") for line in short]
    assert sorted(sass.main_loop(code(*without, *padding, "@BRA #3;", "EXIT"))) == [*range(3, 14)]
    assert sorted(sass.main_loop(code("MOV", "FADD", "HMMA", "@BRA #2;", "@BRA #1;", "EXIT"))) == [2, 3]
    assert sass.main_loop(code("FADD", "EXIT")) == frozenset()
    assert sass.main_loop(code("FADD", "@BRA #0;", "EXIT")) == frozenset()  # a wait
    assert sass.main_loop([]) == frozenset()


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("HGMMA.64x64x16.F32", "matrix"),
        ("HMMA.16816.F32", "matrix"),
        ("UTCHMMA.2CTA", "matrix"),
        ("UTCBAR", "tensor memory"),
        ("LDSM.16.M88.4", "shared load"),
        ("STS.128", "shared store"),
        ("LDGSTS.E.BYPASS.LTC128B.128", "global load"),
        ("STL.64", "local"),
        ("MUFU.EX2", "special function"),
        ("F2FP.BF16.F32.PACK_AB", "conversion"),
        ("FFMA.FTZ", "float"),
        ("FADD", "float"),
        ("FSETP.GEU.AND", "float"),
        ("IMAD.MOV.U32", sass.OTHER),
        ("LOP3.LUT", sass.OTHER),
        ("UIADD3", "uniform"),
        ("ULDC.64", "uniform"),
        ("BAR.SYNC.DEFER_BLOCKING", "barrier"),
        ("BRA.U", "control"),
    ],
)
def test_classes(operation: str, kind: str) -> None:
    assert sass.classify(operation) == kind


@triton.jit
def product_kernel(a_ptr, b_ptr, c_ptr, steps, K: tl.constexpr):
    m, k = tl.arange(0, 64), tl.arange(0, K)
    total = tl.zeros((64, 64), tl.float32)
    for step in range(steps):
        a = tl.load(a_ptr + step * 64 * K + m[:, None] * K + k[None, :])
        b = tl.load(b_ptr + step * 64 * K + k[:, None] * 64 + m[None, :])
        total = tl.dot(a, b, total)
    tl.store(c_ptr + m[:, None] * 64 + m[None, :], total)


@triton.jit
def chain_kernel(x_ptr, steps, LENGTH: tl.constexpr):
    at = tl.program_id(0) * 32 + tl.arange(0, 32)
    x = tl.load(x_ptr + at)
    for _ in range(steps):
        for _ in tl.static_range(LENGTH):
            x = x * x + 0.5
    tl.store(x_ptr + at, x)


def compiled(kernel: Any, types: dict[str, str], constants: dict[str, Any], sm: int, warps: int) -> list[Instruction]:
    case = Case("test", kernel, types, constants, warps, 2)
    return sass.instructions(resources._disassembled(resources._compile(case, sm)[0].asm["cubin"]))


@pytest.mark.parametrize(("sm", "operation", "per_depth"), [(80, "HMMA.16816", 8), (90, "HGMMA.64x64x16", 1)])
def test_products_of_a_compiled_loop(sm: int, operation: str, per_depth: int) -> None:
    """A warp of four multiplies 16x64 of 64x64 by 16x8x16, a warpgroup 64x64x16 at once."""
    types = {"a_ptr": "*fp16", "b_ptr": "*fp16", "c_ptr": "*fp32", "steps": "i32"}
    for depth in (32, 64):
        found = compiled(product_kernel, types, {"K": depth}, sm, warps=4)
        loop = sass.main_loop(found)
        names = [found[place].operation for place in loop if found[place].operation.startswith(operation)]
        assert len(names) == depth // 16 * per_depth
        assert sass.by_class(found, loop)["matrix"] == len(names)
        assert sass.by_class(found, loop).total() == len(loop) < len(found)


def test_a_longer_chain_is_as_much_longer() -> None:
    """Too long to be unrolled, so that a turn is one of the source."""
    lengths = []
    for length in (400, 600):
        found = compiled(chain_kernel, {"x_ptr": "*fp32", "steps": "i32"}, {"LENGTH": length}, 90, warps=1)
        loop = sass.main_loop(found)
        assert sass.by_class(found, loop)["float"] == length
        lengths.append(len(loop))
    assert lengths[1] - lengths[0] == 200


def test_no_loop() -> None:
    found = compiled(chain_kernel, {"x_ptr": "*fp32"}, {"steps": 0, "LENGTH": 4}, 90, warps=1)
    assert found[0].address == 0
    assert sass.main_loop(found) == frozenset()
