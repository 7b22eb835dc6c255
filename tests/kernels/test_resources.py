"""The resource gate: configurations compiled without a GPU may not spill, exceed shared memory or miss tensor cores."""

import dataclasses
from pathlib import Path

import pytest

pytest.importorskip("triton")

from scsco_fast.kernels import resources
from scsco_fast.kernels.resources import SHARED_LIMIT, Case, Resources, all_cases, measure, measure_all, name

ROOT = Path(__file__).resolve().parents[2]

CASES = all_cases()
# Of the kernels without products sm_90 only: what they need hardly depends on the architecture.
CORE = [(case, sm) for case in CASES if case.core for sm in case.architectures if sm == 90 or case.needs_tensor_cores]


@pytest.fixture(scope="module")
def measured() -> dict[tuple[str, int], Resources]:
    """The core configurations, compiled by two processes."""
    return {(name(row.case), row.architecture): row for row in measure_all(CORE, processes=2)}


@pytest.mark.parametrize(("case", "sm"), CORE, ids=[f"{name(case)}-sm_{sm}" for case, sm in CORE])
def test_configuration_fits(case: Case, sm: int, measured: dict[tuple[str, int], Resources]) -> None:
    assert measured[name(case), sm].problems() == []


def test_every_rule_is_enforced() -> None:
    case = dataclasses.replace(CASES[0], needs_tensor_cores=True)
    found = Resources(case, 80, 255, spilled=8, shared=200_000, tensor_memory=600, instruction="").problems()
    assert [word for word in ("spills", "shared", "tensor memory", "tensor cores") if word in " ".join(found)] == [
        "spills",
        "shared",
        "tensor memory",
        "tensor cores",
    ]
    assert Resources(case, 80, 255, 0, 100_000, 0, "mma.sync").problems() == []


def test_a_spill_is_seen() -> None:
    """A configuration squeezed into too few registers: the measurement itself works."""
    case = next(case for case in CASES if "dq" in case.kernel.__name__ and case.core)
    squeezed = dataclasses.replace(case, options={"maxnreg": 32})
    assert measure(squeezed, case.architectures[0]).spilled > 0


def test_committed_table_has_every_configuration_and_no_problem() -> None:
    """docs/kernels/resources.md is the whole gate's result; the suite itself compiles the core configurations only."""
    lines = (ROOT / "docs/kernels/resources.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][1:]
    wanted = {
        (case.kernel.__name__, case.label, str(case.num_warps), str(case.num_stages), str(sm))
        for case in CASES
        for sm in case.architectures
    }
    assert {tuple(row[:5]) for row in rows} == wanted
    products = {(name(case), str(sm)) for case in CASES for sm in case.architectures if case.needs_tensor_cores}
    for kernel, label, _, _, sm, _, spilled, shared, instruction in rows:
        assert spilled == "0"
        assert float(shared) * 1024 <= SHARED_LIMIT[int(sm)]
        assert instruction != "none" or (f"{kernel}[{label}]", sm) not in products


def test_no_configuration_needs_more_than_the_committed_table_says(measured: dict[tuple[str, int], Resources]) -> None:
    """Registers, spilled bytes and shared memory of the core configurations, where the compiler is the table's."""
    import triton

    text = (ROOT / "docs/kernels/resources.md").read_text()
    if f"by Triton {triton.__version__}," not in text:
        pytest.skip(f"the table was compiled by another Triton than {triton.__version__}")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]
    committed = {(f"{row[0]}[{row[1]}]", int(row[4])): row[5:8] for row in rows[1:]}
    grown = []
    for place, found in measured.items():
        now = (found.registers, found.spilled, round(found.shared / 1024, 1))
        before = tuple(float(cell) for cell in committed[place])
        if any(new > old for new, old in zip(now, before, strict=True)):
            grown.append(f"{place[0]} on sm_{place[1]}: registers, spilled, shared KiB {before} -> {now}")
    assert not grown, "\n".join([*grown, "meant? python -m scsco_fast.kernels.resources > docs/kernels/resources.md"])


def test_labels_are_unique() -> None:
    rows = [(name(case), sm) for case in CASES for sm in case.architectures]
    assert len(rows) == len(set(rows))


def test_operations_are_those_with_modules() -> None:
    folder = Path(resources.__file__).parent
    assert [operation for operation in resources.OPERATIONS if not (folder / f"{operation}.py").exists()] == []
