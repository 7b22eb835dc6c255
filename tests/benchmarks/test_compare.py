"""`scsco bench --compare`: verdicts inside and outside the noise, what is not compared, and input that is no rows."""

import dataclasses
import subprocess
from pathlib import Path
from typing import Any

import pytest

from scsco_fast import cli
from scsco_fast.benchmarks import compare as module
from scsco_fast.benchmarks.compare import compare, load, memory, time
from scsco_fast.benchmarks.rows import Row, append
from scsco_fast.errors import ScscoError

ROW = Row(
    suite="cpu",
    time="2026-01-01T00:00:00",
    git="abc1234",
    device="Some CPU",
    threads=2,
    driver="none",
    torch="2.13.0",
    triton="3.7.1",
    cuda="none",
    op="region_norm",
    backend="eager",
    mode="forward",
    dtype="float32",
    batch=4,
    channels=64,
    size=128,
    foreground=0.2,
    ms=10.0,
    ms_20=9.8,
    ms_80=10.3,
    peak_mib=100.0,
    error=1e-6,
    gate=1e-5,
)


def row(**changes: Any) -> Row:
    return dataclasses.replace(ROW, **changes)


def timed(low: float, median: float, high: float) -> Row:
    return row(ms_20=low, ms=median, ms_80=high)


def said(before: list[Row], after: list[Row], folder: Path) -> tuple[int, list[str]]:
    paths = [folder / "a.csv", folder / "b.csv"]
    for path, rows in zip(paths, (before, after), strict=True):
        append(rows, path)
    lines: list[str] = []
    return compare(*map(str, paths), lines.append), lines


@pytest.mark.parametrize(
    ("after", "word"),
    [
        (timed(9.8, 10.0, 10.3), "within noise"),
        (timed(10.2, 10.9, 11.0), "within noise"),  # the bands meet
        (timed(10.3, 10.9, 11.0), "within noise"),  # they touch
        (timed(10.4, 10.45, 10.5), "within noise"),  # apart by less than the wider band
        (timed(10.4, 11.0, 11.2), "slower"),
        (timed(10.4, 11.0, 11.9), "within noise"),  # apart, but the band is as wide as the medians are apart
        (timed(9.0, 9.2, 9.4), "faster"),
        (timed(0.1, 0.1, 0.1), "faster"),
    ],
)
def test_time_outside_the_noise_only(after: Row, word: str) -> None:
    assert time(ROW, after).word == word


def test_narrow_bands_are_not_trusted_below_three_percent() -> None:
    before = timed(10.0, 10.0, 10.0)
    assert time(before, timed(10.2, 10.2, 10.2)).word == "within noise"
    assert time(before, timed(10.4, 10.4, 10.4)).word == "slower"
    assert time(row(ms_20=None), timed(20, 20, 20)).word == "within noise"  # no band, no verdict


@pytest.mark.parametrize(
    ("before", "after", "word"),
    [
        (100.0, 101.9, "within noise"),
        (100.0, 102.1, "larger"),
        (100.0, 97.0, "smaller"),
        (10.0, 10.9, "within noise"),
        (0.0, 1.5, "larger"),
        (None, 5.0, "within noise"),
    ],
)
def test_memory_has_a_stated_tolerance(before: float | None, after: float | None, word: str) -> None:
    assert memory(row(peak_mib=before), row(peak_mib=after)).word == word


@pytest.mark.parametrize(
    ("before", "after", "word"),
    [
        (ROW, row(error=2e-5, ms=None), "wrong"),
        (ROW, row(ms=None, note="out of memory"), "untimed"),
        (row(error=2e-5, ms=None), ROW, "right"),
        (row(error=2e-5), row(error=3e-5), "within noise"),
        (row(ms=None), row(ms=None), "within noise"),
        (row(ms=None), ROW, "within noise"),
    ],
)
def test_wrong_and_untimed(before: Row, after: Row, word: str) -> None:
    assert time(before, after).word == word


def test_a_slower_row_is_told_with_both_bands(tmp_path: Path) -> None:
    code, lines = said([ROW, row(op="cross_gram")], [timed(11.8, 12.0, 12.2), row(op="cross_gram")], tmp_path)
    assert code == 1
    assert lines[0] == f"{tmp_path}/a.csv: 2 rows of Some CPU, 2 threads, git abc1234, torch 2.13.0, triton 3.7.1"
    assert lines[2:] == [
        "slower by 20.0%: region_norm eager forward float32 (4, 64, 128, 128) 0.2 foreground: "
        "10 ms (9.8 to 10.3) -> 12 (11.8 to 12.2)",
        "1 within noise, 1 slower",
    ]


def test_same_rows_are_no_news_and_new_ones_no_failure(tmp_path: Path) -> None:
    code, lines = said([ROW], [ROW, row(op="cross_gram")], tmp_path)
    assert (code, lines[2:]) == (0, ["1 within noise, 1 new"])


def test_a_missing_row_fails_and_time_and_memory_are_both_told(tmp_path: Path) -> None:
    changed = dataclasses.replace(timed(7, 7, 7), peak_mib=200.0)
    code, lines = said([ROW, row(dtype="bfloat16")], [changed], tmp_path)
    assert code == 1
    assert [line.split(":")[0] for line in lines[2:]] == [
        "faster by 30.0%",
        "larger",
        "missing",
        "1 faster, 1 larger, 1 missing",
    ]


def test_every_key_field_tells_rows_apart(tmp_path: Path) -> None:
    others = [row(**{name: value}) for name, value in (("foreground", 0.5), ("detail", "5 others"), ("size", 64))]
    code, lines = said([ROW, *others], [ROW, *others], tmp_path)
    assert (code, lines[2:]) == (0, ["4 within noise"])


def test_the_last_of_equal_rows_counts(tmp_path: Path) -> None:
    """Rows are appended: a file holds the runs of one case in their order."""
    code, lines = said([ROW], [timed(20, 20, 20), ROW], tmp_path)
    assert (code, lines[2:]) == (0, ["1 within noise"])


def test_other_machines_are_not_compared(tmp_path: Path) -> None:
    gpu = row(device="NVIDIA H100", driver="580", threads=8)
    code, lines = said([ROW, gpu], [ROW, row(threads=4, ms=99.0)], tmp_path)
    assert code == 0
    assert [line.split(",")[0].split(" of ")[1] for line in lines if line.endswith("only here, so not compared")] == [
        "NVIDIA H100",
        "Some CPU",  # with another number of threads
    ]
    assert lines[-1] == "1 within noise"


def test_a_gpu_s_rows_do_not_depend_on_the_host_s_threads(tmp_path: Path) -> None:
    gpu = row(device="NVIDIA H100", driver="580", threads=8)
    assert said([gpu], [dataclasses.replace(gpu, threads=16)], tmp_path)[1][-1] == "1 within noise"


def test_no_machine_in_both_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ScscoError, match=r"Some CPU, 2 threads, .*b\.csv of Other CPU, 2 threads: times of different"):
        said([ROW], [row(device="Other CPU")], tmp_path)


def test_json_lines_and_folders_hold_the_same_rows(tmp_path: Path) -> None:
    append([ROW], tmp_path / "a.csv")
    (tmp_path / "of_another_program.csv").write_text("size,ms\n1,2\n")
    assert load(str(tmp_path / "a.jsonl")) == load(str(tmp_path)) == load(str(tmp_path / "a.csv")) == [ROW]


def _bad(folder: Path, name: str, content: bytes | None) -> str:
    if content is not None:
        (folder / name).write_bytes(content)
    return str(folder / name)


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("a.csv", None, "no such file; wanted one that scsco bench wrote, or a git revision"),
        ("a.csv", b"", "is empty"),
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\n", "a line is no row of a benchmark"),
        ("a.jsonl", b'{"suite": "cpu"}\n', "a line is no row of a benchmark"),
        ("a.csv", b"size,ms,speed\n1,2,3\n", "columns unknown speed and missing suite, time, git, ...; wanted rows"),
        ("a.csv", b"\xff\xfe\x00", "is no CSV file"),
        ("no-such-revision", None, "neither a file, nor a folder, nor a git revision of this checkout"),
        ("-q", None, "neither a file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    name: str, content: bytes | None, wanted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = _bad(tmp_path, name, content)
    assert cli.main(["bench", "--compare", source, source]) == 2
    message = capsys.readouterr().err
    assert wanted in message
    assert message.count("\n") == 1


def test_header_without_rows_and_numbers_that_are_none(tmp_path: Path) -> None:
    append([], tmp_path / "a.csv")
    with pytest.raises(ScscoError, match=r"a\.csv: has no rows"):
        load(str(tmp_path / "a.csv"))
    append([ROW], tmp_path / "c.csv")
    (tmp_path / "c.csv").write_text((tmp_path / "c.csv").read_text().replace(",10.0,", ",nan,"))
    with pytest.raises(ScscoError, match=r"c\.csv: ms of row 1 is nan; wanted a number of at least 0, or nothing"):
        load(str(tmp_path / "c.csv"))


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of two revisions with results and one before them."""

    def git(*arguments: str) -> None:
        own = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", tmp_path, *own, *arguments], check=True, capture_output=True)

    git("init")
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks/compare.py").write_text("")
    git("add", ".")
    git("commit", "-m", "none")
    git("tag", "none")
    for tag, one in (("old", ROW), ("new", timed(14, 14, 14))):
        append([one], tmp_path / "benchmarks/results/cpu.csv")
        git("add", ".")
        git("commit", "-m", tag)
        git("tag", tag)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "benchmarks/compare.py"))
    return tmp_path


@pytest.mark.usefixtures("checkout")
def test_revisions_are_read_from_their_committed_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--compare", "old", "new"]) == 1
    assert "slower by 40.0%: region_norm" in capsys.readouterr().out
    assert cli.main(["bench", "--compare", "new", "old"]) == 0
    assert cli.main(["bench", "--compare", "none", "new"]) == 2
    error = capsys.readouterr().err
    assert error == "scsco: error: revision none, benchmarks/results: no file of benchmark rows is there\n"
