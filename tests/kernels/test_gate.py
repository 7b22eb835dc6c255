"""The resource gate's command: its table as data, the page made from it, another Triton, and mistakes."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("triton")

from scsco_fast.kernels import gate
from scsco_fast.kernels.cases import Case
from scsco_fast.kernels.gate import Row
from scsco_fast.kernels.resources import Resources, all_cases

CASES = all_cases(["region_norm"])


def row(triton: str = "3.7.1", configuration: str = "half C=64 D=64 fwd", sm: int = 90, **changed: object) -> Row:
    base = Row(
        triton, "bain_attention_fwd_kernel", configuration, 4, 2, sm, 168, 0, 57344, 0, "wgmma.mma_async", 400, 0
    )
    return base._replace(**changed)  # type: ignore[arg-type]


def needs(case: Case, sm: int, spilled: int = 0) -> Resources:
    return Resources(case, sm, 40, spilled, 1024, 0, "", loop_instructions=20, serialised=False)


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every configuration is compiled at once and fits."""
    monkeypatch.setattr(gate, "measure_all", lambda rows, jobs: (needs(case, sm) for case, sm in rows))


# --- the table --------------------------------------------------------------------------------------------------------


def test_rows_survive_the_file(tmp_path: Path) -> None:
    rows = [row(), row("3.6.0", tensor_memory=128, serialised=1), row(kernel="other", instruction="")]
    gate.write(rows, tmp_path / "table.csv")
    assert sorted(gate.read(tmp_path / "table.csv")) == sorted(rows)
    assert [type(cell) for cell in gate.read(tmp_path / "table.csv")[0]] == [type(cell) for cell in rows[0]]


def test_the_order_is_the_rows_own(tmp_path: Path) -> None:
    """By numbers as numbers, and whoever measured first."""
    rows = [row(configuration=f"half C={c} D=64 fwd", sm=sm) for c in (64, 128, 512) for sm in (80, 100)]
    for name, order in (("a.csv", rows), ("b.csv", rows[::-1])):
        gate.write(order, tmp_path / name)
    assert gate.read(tmp_path / "a.csv") == gate.read(tmp_path / "b.csv") == rows


def test_an_update_replaces_its_own_and_drops_what_is_gone() -> None:
    (case, *_) = CASES
    old = gate.row_of(needs(case, 90), "3.6.0")
    rows = [old, old._replace(triton="3.7.1"), old._replace(configuration="gone"), old._replace(sm=80, warps=16)]
    new = old._replace(registers=41)
    assert gate.updated(rows, [new], CASES) == [new, old._replace(triton="3.7.1")]


def test_a_row_keeps_its_problem() -> None:
    case = dataclasses.replace(CASES[0], needs_tensor_cores=True)
    bad = Resources(case, 90, 255, 8, 300_000, 600, "", loop_instructions=20, serialised=True)
    assert gate.resources_of(gate.row_of(bad, "3.6.0"), case) == bad


@pytest.mark.usefixtures("compiles")
def test_a_run_adds_its_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "table.csv"
    few = ["region_norm", "--only", CASES[0].label]
    assert gate.main([*few, "--sm", "90", "120", "--csv", str(table)]) == 0
    assert gate.main([*few, "--sm", "80", "--csv", str(table)]) == 0
    assert sorted(r.case for r in gate.read(table)) == sorted(
        (f"{c.kernel.__name__}[{c.label}]", sm)
        for c in CASES
        for sm in c.architectures
        if CASES[0].label in f"{c.kernel.__name__}[{c.label}]" and sm in (80, 90, 120)
    )
    assert capsys.readouterr().out == ""
    assert gate.main(["region_norm", "--only", CASES[0].label, "--sm", "90"]) == 0
    assert f"{CASES[0].label} | {CASES[0].num_warps} |" in capsys.readouterr().out


def test_a_problem_is_named_and_counted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gate, "measure_all", lambda rows, jobs: (needs(case, sm, spilled=4) for case, sm in rows))
    assert gate.main(["region_norm", "--only", CASES[0].label, "--sm", "90"]) == 1
    assert f"{CASES[0].kernel.__name__}[{CASES[0].label}] on sm_90: spills 4 bytes\n" in capsys.readouterr().err


@pytest.mark.usefixtures("compiles")
@pytest.mark.parametrize("where", ["measuring", "writing"])
def test_a_killed_run_leaves_the_table_as_it_was(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "table.csv"
    gate.write([row()], table)
    before = table.read_bytes()

    def stopped(*_: object) -> Iterator[Resources]:
        yield needs(CASES[0], 90)
        raise KeyboardInterrupt

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    if where == "measuring":
        monkeypatch.setattr(gate, "measure_all", stopped)
    else:
        monkeypatch.setattr(gate.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        gate.main(["region_norm", "--csv", str(table)])
    assert table.read_bytes() == before
    assert list(tmp_path.iterdir()) == [table]


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_has_each_kernel_on_each_architecture() -> None:
    rows = [row(sm=sm, triton=triton) for sm in (80, 90) for triton in ("3.6.0", "3.7.1")]
    rows += [row("3.6.0", "half C=128 D=64 fwd", registers=255, spilled=32, serialised=1, loop_instructions=575)]
    rows += [row("3.10.0", "half C=128 D=64 fwd", loop_instructions=555)]
    text = gate.page(rows)
    assert "by Triton 3.6.0 / 3.7.1 / 3.10.0." in text
    assert "## Compute capability 8.0 (A100): at most 163 KiB of shared memory" in text
    assert "Compute capability 12.0" not in text
    assert "| bain_attention_fwd_kernel | 1 / 1 / 0 | 168 / 168 / - | 56.0 / 56.0 / - | 0 | 0 | 400 / 400 / 0 |" in text
    assert (
        "| bain_attention_fwd_kernel | 2 / 1 / 1 | 255 / 168 / 168 | 56.0 | 32 / 0 / 0 | 1 / 0 / 0 "
        "| 400-575 / 400 / 555 |" in text
    )
    assert "| kernel | 64 channels | 128 channels |" in text
    assert "| fwd | 400 / 400 / - | 575 / - / 555 |" in text


def test_the_page_is_written_from_the_table_alone(tmp_path: Path) -> None:
    gate.write([row()], tmp_path / "table.csv")
    assert gate.main(["--csv", str(tmp_path / "table.csv"), "--page", str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text() == gate.page([row()])


# --- another Triton, and mistakes -------------------------------------------------------------------------------------


def another_triton(folder: Path, version: str) -> Path:
    (folder / "triton").mkdir(parents=True)
    (folder / "triton" / "__init__.py").write_text(f"__version__ = {version!r}\n")
    return folder


def test_another_triton_is_found_first(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One that the kernels refuse, so that nothing is compiled; the other options reach the process."""
    folder = another_triton(tmp_path / "old", "3.5.0")
    assert gate.main(["region_norm", f"--triton={folder}", "--sm", "90"]) == 2
    assert capfd.readouterr().err == "error: Triton 3.5.0 is installed, 3.6 to 3.9 is needed\n"
    (tmp_path / "bad.csv").write_text("a,b\n")
    another_triton(tmp_path / "new", "3.6.0")
    assert gate.main(["--triton", str(tmp_path / "new"), "--csv", str(tmp_path / "bad.csv")]) == 2
    assert "bad.csv: no table of resources (wanted the columns triton, kernel, " in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--triton", "{tmp}"], "error: {tmp} holds no Triton: pip install --no-deps --target {tmp} triton==3.6.0"),
        (["--triton", "/nowhere"], "error: /nowhere holds no Triton: "),
        (["region_norms"], "error: no operation region_norms: there are bain_attention, "),
        (
            ["--only", "no such thing"],
            "error: --only 'no such thing': no configuration of these has it in its name",
        ),
        (["--page", "{tmp}/page.md"], "error: --page is made from a table: add --csv FILE, "),
        (["--page", "{tmp}/page.md", "--csv", "{tmp}/none.csv"], "error: {tmp}/none.csv: cannot be read (No such file"),
        (["--page", "{tmp}/no/page.md", "--csv", "{tmp}/good.csv"], "error: [Errno 2] No such file or directory: "),
        (["--csv", "{tmp}/no/table.csv"], "error: --csv {tmp}/no/table.csv: there is no folder {tmp}/no"),
        (["--csv", "{tmp}/bad.csv"], "error: {tmp}/bad.csv: no table of resources (invalid literal for int() "),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gate.write([row()], tmp_path / "good.csv")
    (tmp_path / "bad.csv").write_text((tmp_path / "good.csv").read_text().replace("168", "many"))
    assert gate.main([argument.format(tmp=tmp_path) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(said.format(tmp=tmp_path))
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sm", "75"], "argument --sm: invalid choice: 75 (choose from "),
        (["--sm", "x"], "argument --sm: invalid int value: 'x'"),
        (["--jobs", "0"], "argument --jobs: wanted a number of processes, 1 or more, not '0'"),
        (["--jobs", "many"], "argument --jobs: wanted a number of processes, 1 or more, not 'many'"),
        (["--tritons", "x"], "unrecognized arguments: --tritons"),
    ],
)
def test_a_value_that_is_none(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        gate.main(arguments)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err
