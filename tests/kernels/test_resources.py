"""The resource gate: what each kernel configuration needs when it is compiled without a GPU, measured and committed."""

import dataclasses
import re
from pathlib import Path

import pytest

pytest.importorskip("triton")

from scsco_fast.kernels import gate, resources
from scsco_fast.kernels.cases import ARCHITECTURES, CLASSES, Case
from scsco_fast.kernels.resources import Resources, all_cases, measure, measure_all, name

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "benchmarks/kernel_resources.csv"
TRITONS = ("3.6.0", "3.7.1")  # of the table

CASES = all_cases()
# Of the kernels without products sm_90 only: what they need hardly depends on the architecture. The table has them all.
CORE = [
    (case, sm)
    for case in CASES
    if case.core
    for sm in case.architectures
    if sm == 90 or (sm == 80 and case.needs_tensor_cores)
]


@pytest.fixture(scope="module")
def measured() -> dict[tuple[str, int], Resources]:
    """The core configurations, compiled by two processes."""
    return {(name(row.case), row.architecture): row for row in measure_all(CORE, processes=2)}


@pytest.fixture(scope="module")
def committed() -> list[gate.Row]:
    return gate.read(TABLE)


# --- the rules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "sm"), CORE, ids=[f"{name(case)}-sm_{sm}" for case, sm in CORE])
def test_configuration_fits(case: Case, sm: int, measured: dict[tuple[str, int], Resources]) -> None:
    assert measured[name(case), sm].problems() == []


def test_every_rule_is_enforced() -> None:
    case = next(case for case in CASES if case.pipelined)
    fine = Resources(case, 90, 255, 0, 100_000, 512, "wgmma.mma_async", loop_instructions=400, serialised=False)
    assert fine.problems() == []
    for change, said in (
        ({"spilled": 8}, "spills 8 bytes"),
        ({"shared": 300_000}, "needs 300000 bytes of shared memory, limit 232448"),
        ({"tensor_memory": 600}, "needs 600 columns of tensor memory, limit 512"),
        ({"instruction": ""}, "multiplies matrices without tensor cores"),
        ({"serialised": True}, "its matrix products wait for one another"),
    ):
        (problem,) = dataclasses.replace(fine, **change).problems()  # type: ignore[arg-type]
        assert problem.startswith(f"{name(case)} on sm_90: {said}")


def test_what_must_overlap() -> None:
    """16-bit operands, and at most 128 channels: by the cases' names."""
    of_attention = [(case, re.match(r"(\w+) C=(\d+) ", case.label)) for case in CASES]
    found = {(m[1], int(m[2])): case.pipelined for case, m in of_attention if m and case.needs_tensor_cores}
    assert {key for key, pipelined in found.items() if pipelined} == {("half", 64), ("half", 128)}
    assert {("half", 512), ("tf32", 64), ("tf32", 512)} <= set(found)
    grams = {case.label: case.pipelined for case in CASES if "gram" in case.kernel.__name__ and case.needs_tensor_cores}
    assert {pipelined for label, pipelined in grams.items() if "fp16" in label or "bf16" in label} == {True}
    assert {pipelined for label, pipelined in grams.items() if "tf32" in label} == {False}


def test_too_few_registers_are_seen() -> None:
    """A configuration squeezed into 96 registers spills, and its products no longer overlap."""
    case = next(case for case in CASES if "dq" in case.kernel.__name__ and case.core and case.architectures == (90,))
    squeezed = dataclasses.replace(case, options={"maxnreg": 96})
    found = measure(squeezed, 90)
    assert (found.registers, found.serialised) == (96, True)
    assert found.spilled > 0
    assert measure(squeezed, 90) == found  # from Triton's cache


@pytest.mark.parametrize(
    ("reason", "number"), [("non wgmma instructions defining accumulator registers", 7515), ("insufficient", 7511)]
)
def test_what_ptxas_says(reason: str, number: int) -> None:
    complaint = f"(C{number}) Potential Performance Loss: wgmma.mma_async instructions are serialized due to {reason}"
    spill = "32 bytes stack frame, 32 bytes spill stores, 40 bytes spill loads"
    assert resources.serialised(f"ptxas info    : {complaint} in the function 'f'\n")
    assert not resources.serialised("ptxas info    : Used 168 registers, used 1 barriers\n")
    assert resources.spilled(f"    {spill}\n") == 40
    assert resources.spilled("    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n") == 0


def test_a_kernel_that_does_not_compile_is_one_line() -> None:
    """A warpgroup's product needs more registers than 24."""
    case = next(case for case in CASES if "dq" in case.kernel.__name__ and case.core and case.architectures == (90,))
    with pytest.raises(RuntimeError, match=r"on sm_90: .*Insufficient registers") as caught:
        measure(dataclasses.replace(case, options={"maxnreg": 24}), 90)
    assert "\n" not in str(caught.value)


def test_labels_are_unique() -> None:
    rows = [(name(case), sm) for case in CASES for sm in case.architectures]
    assert len(rows) == len(set(rows))


def test_every_architecture_is_in_one_class() -> None:
    assert sorted(sm for served in CLASSES.values() for sm in served) == sorted(ARCHITECTURES)
    assert {sm for case in CASES for sm in case.architectures} == set(ARCHITECTURES)


def test_operations_are_those_with_modules() -> None:
    folder = Path(resources.__file__).parent
    assert list(resources.OPERATIONS) == sorted(path.name for path in folder.iterdir() if (path / "launch.py").exists())


def launch_of(case: Case | None) -> tuple[int, int] | None:
    return None if case is None else (case.num_warps, case.num_stages)


# --- the committed table ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", TRITONS)
def test_committed_table_has_every_configuration_and_no_problem(version: str, committed: list[gate.Row]) -> None:
    """The gate's result by each Triton on every architecture; the suite compiles the core configurations only."""
    cases = {(name(case), sm): case for case in CASES for sm in case.architectures}
    rows = {row.case: row for row in committed if row.triton == version}
    missing = [place for place in cases if place not in rows]
    other = [place for place, row in rows.items() if (row.warps, row.stages) != launch_of(cases.get(place))]
    advice = f"write it anew: {gate.PROGRAM} --csv benchmarks/{TABLE.name}, with --triton DIR for Triton {version}"
    assert (len(missing), missing[:3], other[:3]) == (0, [], []), advice
    assert [text for place, row in rows.items() for text in gate.resources_of(row, cases[place]).problems()] == []


def test_committed_table_is_in_order_and_of_these_versions(committed: list[gate.Row]) -> None:
    assert committed == sorted(committed, key=gate._order)
    assert {row.triton for row in committed} == set(TRITONS)


def test_the_page_is_made_from_the_table(committed: list[gate.Row]) -> None:
    page = (ROOT / "docs/kernels/resources.md").read_text(encoding="utf-8")
    assert page == gate.page(committed), f"{gate.PROGRAM} --csv {TABLE.name} --page docs/kernels/resources.md"


def test_no_configuration_needs_more_than_the_committed_table_says(
    measured: dict[tuple[str, int], Resources], committed: list[gate.Row]
) -> None:
    """Of the core configurations, where the compiler is one of the table's."""
    import triton

    before = {row.case: row for row in committed if row.triton == triton.__version__}
    if not before:
        pytest.skip(f"the table has no row of Triton {triton.__version__}")
    grown = []
    for place, found in measured.items():
        now, old = gate.row_of(found, triton.__version__), before.get(place)
        if old is None:
            grown.append(f"{place}: new")
            continue
        columns = ("registers", "spilled", "shared_bytes", "loop_instructions", "serialised")
        worse = [column for column in columns if getattr(now, column) > getattr(old, column)]
        grown += [f"{place}: {column} {getattr(old, column)} -> {getattr(now, column)}" for column in worse]
    assert not grown, "\n".join([*grown, f"meant? {gate.PROGRAM} --csv benchmarks/kernel_resources.csv"])
