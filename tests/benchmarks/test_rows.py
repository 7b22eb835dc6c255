"""Rows: written, read back the same, and refused where the file is another's."""

import dataclasses
from pathlib import Path

import pytest

from scsco_fast.benchmarks import rows
from scsco_fast.benchmarks.rows import COLUMNS, KEY, MEASURED, RESULTS, WHERE, Row
from scsco_fast.errors import ScscoError

ROW = Row(
    **{"suite": "smoke", **rows.machine("cpu")},
    op="bain_attention",
    backend="eager",
    mode="forward",
    dtype="float32",
    batch=1,
    channels=8,
    size=16,
    foreground=0.1875,
    ms=0.1 + 0.2,
    note='a "note", with a comma',
)


def test_groups_are_all_columns() -> None:
    assert (*WHERE, *KEY, *MEASURED) == COLUMNS
    assert {"git", "device", "torch", "triton", "cuda", "driver", "time"} <= set(WHERE)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_rows_are_appended_and_read_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "new" / "rows.csv"
    other = dataclasses.replace(ROW, backend="SDPA", ms=None, error=1e-9, note="")
    rows.append([ROW], path)
    rows.append([other, ROW], path)
    assert rows.read(path.with_suffix(suffix)) == [ROW, other, ROW]


def test_other_columns_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("op,speed\na,1\n")
    before = path.read_text()
    for action in (lambda: rows.append([ROW], path), lambda: rows.read(path)):
        with pytest.raises(ScscoError, match=r"columns differ .* speed"):
            action()
    assert path.read_text() == before
    assert not path.with_suffix(".jsonl").exists()


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_torn_line_is_named(tmp_path: Path, suffix: str) -> None:
    rows.append([ROW], tmp_path / "rows.csv")
    path = tmp_path / f"rows{suffix}"
    with path.open("a") as file:
        file.write(path.read_text().splitlines()[-1][:60])
    with pytest.raises(ScscoError, match="is no row"):
        rows.read(path)


def test_later_rows_take_the_place_of_earlier_ones() -> None:
    again = dataclasses.replace(ROW, ms=5.0, git="later")
    elsewhere = dataclasses.replace(ROW, device="another")
    assert rows.latest([ROW, elsewhere, again]) == [again, elsewhere]
    assert rows.key(ROW) == rows.key(again)
    assert rows.without_backend(ROW) == rows.without_backend(dataclasses.replace(ROW, backend="SDPA"))


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.jsonl")), ids=lambda path: path.stem)
def test_committed_rows_are_the_same_in_both_formats(path: Path) -> None:
    assert rows.read(path) == rows.read(path.with_suffix(".csv"))
