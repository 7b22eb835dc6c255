"""`scsco bench`: the smoke suite measures every operation, and the report is made of the rows alone."""

import dataclasses
import math
import re
from pathlib import Path

import pytest
from PIL import Image

import scsco_fast as sf
from scsco_fast.benchmarks import plots, report, rows, suites
from scsco_fast.benchmarks.rows import RESULTS
from scsco_fast.cli import main
from scsco_fast.errors import ScscoError

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS = set(sf.ops.__all__) - {"backends", "use_backend"}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the rows of the smoke suite, under a name that the report reads."""
    folder = tmp_path_factory.mktemp("rows")
    assert main(["bench", "--suite", "smoke", "--output", str(folder)]) == 0
    for suffix in (".csv", ".jsonl"):
        (folder / f"smoke{suffix}").rename(folder / f"cpu{suffix}")
    return folder


def checkout(folder: Path) -> Path:
    folder.mkdir()
    (folder / "README.md").write_text(f"before\n\n{report.START}\noutdated\n{report.END}\n\nafter\n")
    return folder


def test_smoke_measures_every_operation_right(smoke: Path) -> None:
    found = rows.read(smoke / "cpu.csv")
    assert {row.op for row in found} == OPERATIONS | {"inference"}
    for op in OPERATIONS - {"transfer_color"}:
        assert {row.mode for row in found if row.op == op} == {"forward", "backward", "forward+backward"}
    for row in found:
        assert row.ms, row
        assert row.error is not None, row
        assert row.error < 1e-4, row
        assert row.copy_gbs, row
        assert row.share, row
    assert {row.backend for row in found if row.op == "bain_attention"} == {"eager", "reference", "SDPA", "SDPA padded"}


def test_report_is_made_of_rows_and_of_nothing_else(smoke: Path, tmp_path: Path) -> None:
    root, texts = checkout(tmp_path / "root"), []
    for _ in range(2):
        written = report.report(root, smoke, say=lambda line: None)
        assert {path.name for path in written} >= {"performance.md", "README.md", "bench_cpu_roofline.png"}
        texts.append([(root / page).read_text() for page in ("README.md", report.PAGE)])
    assert texts[0] == texts[1]
    readme, page = texts[0]
    for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page):
        with Image.open(root / "docs" / target) as picture:
            assert min(picture.size) > 200
    assert readme.startswith(f"before\n\n{report.START}")
    assert readme.endswith(f"{report.END}\n\nafter\n")
    assert "outdated" not in readme
    assert "**GPU**: no rows yet." in readme
    assert "## GPU\n\nNo rows yet." in page
    found = rows.latest(rows.read(smoke / "cpu.csv"))
    assert sum(line.startswith("| ") and "| shape" not in line for line in page.splitlines()) == len(found)
    assert page.count("`scsco bench --suite smoke`") >= len(OPERATIONS)


def test_rows_that_lose_or_fail_stay(smoke: Path, tmp_path: Path) -> None:
    found = rows.read(smoke / "cpu.csv")
    row = next(row for row in found if row.op == "bain_attention" and row.backend == "SDPA" and row.mode == "forward")
    wins = dataclasses.replace(row, ms=1e-3, ms_20=1e-3, ms_80=1e-3)
    fails = dataclasses.replace(row, backend="FlexAttention", ms=None, error=None, note="failed: no such thing")
    rows.append([*found, wins, fails], tmp_path / "cpu.csv")
    root = checkout(tmp_path / "root")
    report.report(root, tmp_path, say=lambda line: None)
    page = (root / report.PAGE).read_text()
    assert re.search(r"\| SDPA \| forward \| 0.001 \(.*?\) \| \*\*fastest\*\*", page)
    assert "| FlexAttention | forward | failed: no such thing |" in page
    assert "**0.001**" in (root / "README.md").read_text()


def test_report_says_what_is_missing(smoke: Path, tmp_path: Path) -> None:
    with pytest.raises(ScscoError, match="no checkout"):
        report.report(tmp_path, smoke)
    root = checkout(tmp_path / "root")
    with pytest.raises(ScscoError, match=r"has no rows .* run scsco bench"):
        report.report(root, tmp_path)
    (root / "README.md").write_text("no place")
    with pytest.raises(ScscoError, match="once each"):
        report.report(root, smoke, say=lambda line: None)
    assert (root / "README.md").read_text() == "no place"


@pytest.mark.skipif(not (RESULTS / "cpu.csv").exists(), reason="no committed rows")
def test_committed_page_and_readme_are_those_of_the_committed_rows(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text((ROOT / "README.md").read_text())
    report.report(tmp_path, RESULTS, say=lambda line: None)
    for page in ("README.md", report.PAGE):
        assert (tmp_path / page).read_text() == (ROOT / page).read_text(), "run scsco bench --report"


def test_slope_is_the_exponent() -> None:
    assert plots.slope([(x, 3 * x**1.5) for x in (2.0, 8.0, 100.0)]) == pytest.approx(1.5)
    assert math.isnan(plots.slope([(1.0, 1.0)]))


def test_gpu_suite_needs_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["bench", "--suite", "gpu"]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize("suite", suites.SUITES)
def test_plans_hold_the_cases_that_the_report_needs(suite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: suite == "gpu")
    plan = suites.plan_of(suite)
    assert set(plan.outputs) <= set(plan.maps)
    assert set(plan.compiled) <= set(plan.maps)
    assert plan.device == ("cuda" if suite == "gpu" else "cpu")
    assert min(plan.ratios[1]) <= 0.1
    assert max(plan.ratios[1]) == 0.5
