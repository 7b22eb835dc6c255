"""The configuration table and its candidates: read and written, screened without a GPU, timed, the fastest taken."""

import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

import torch

from scsco_fast.benchmarks import rows, tuning
from scsco_fast.benchmarks.tuning import Trial, row_of, set_winner, tune, winner
from scsco_fast.errors import ScscoError
from scsco_fast.kernels.bain_attention import candidates
from scsco_fast.kernels.bain_attention import table as tables
from scsco_fast.kernels.bain_attention.candidates import Candidate, as_line, problems, timed
from scsco_fast.kernels.bain_attention.table import CHANNELS, KEYS, TABLE, Config, Line

KEY = (90, "half", 64, 64)
START = Config(128, 64, 64, 64, 8, 2)
OTHER, BEST = START._replace(stages=3), START._replace(warps=4)


def test_table_has_every_line_and_reads_back(tmp_path: Path) -> None:
    kinds = ("half", "tf32", "ieee")
    assert set(TABLE) == {
        (sm, kind, c, d) for sm in (80, 86, 90, 100) for kind in kinds for c in CHANNELS for d in KEYS
    }
    path = shutil.copy(tables.PATH, tmp_path / "table.txt")
    tables.write(TABLE, Path(path))
    assert Path(path).read_text() == tables.PATH.read_text()
    assert tables.read(Path(path)) == TABLE
    assert [file.name for file in tmp_path.iterdir()] == ["table.txt"]


def test_candidates_are_of_lines_of_the_table_and_read_back(tmp_path: Path) -> None:
    listed = candidates.read()
    assert len(listed) == len({candidate[:3] for candidate in listed})
    assert {candidate.key for candidate in listed} <= set(TABLE)
    assert {candidate.fits for candidate in listed} <= {"yes", "no"}, (
        "run python -m scsco_fast.kernels.bain_attention.candidates"
    )
    path = Path(shutil.copy(candidates.PATH, tmp_path / "candidates.txt"))
    candidates.write(listed, path)
    assert path.read_text() == candidates.PATH.read_text()
    assert [file.name for file in tmp_path.iterdir()] == ["candidates.txt"]


def test_the_table_s_own_configuration_is_timed_first_and_only_what_fits() -> None:
    own = TABLE[KEY].configs["fwd"]
    listed = [Candidate(KEY, "fwd", config, fits) for config, fits in ((START, "yes"), (own, "yes"), (OTHER, "no"))]
    listed += [Candidate(KEY, "none", OTHER, "yes"), Candidate((80, "half", 64, 64), "fwd", OTHER, "yes")]
    found = timed(KEY, listed)
    assert found["fwd"] == [own, START]
    assert set(found) == set(TABLE[KEY].configs)


def test_a_line_is_changed_within_the_block_alone() -> None:
    before = dict(TABLE)
    with as_line(KEY, "fwd", START):
        changed = dict(TABLE)
    assert before == TABLE
    assert changed == {**before, KEY: Line(before[KEY].by, {**before[KEY].configs, "fwd": START})}


def test_screening_names_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = next(name for name in tables.KERNELS if name not in TABLE[KEY].configs)
    assert problems(Candidate(KEY, missing, START, "-")) == [f"the line 90 half 64 64 has no {missing}"]

    class Found:
        def __init__(self, case: object, sm: int) -> None:
            self.sm = sm

        def problems(self) -> list[str]:
            from scsco_fast.kernels.bain_attention import launch as bain_attention

            block = bain_attention.plan(*KEY).configs["fwd"].block_m
            return [f"{block} rows spill on sm_{self.sm}"]

    monkeypatch.setattr("scsco_fast.kernels.resources.measure", Found)
    assert set(problems(Candidate(KEY, "fwd", START, "-"))) == {"128 rows spill on sm_90"}


@pytest.mark.slow
def test_screening_compiles_and_rewrites_the_file(tmp_path: Path) -> None:
    """One candidate that fits and one whose accumulators cannot."""
    path = tmp_path / "candidates.txt"
    wide = Config(128, 64, 64, 64, 4, 4)._replace(block_n=128)
    path.write_text("# a comment\n" + " ".join(candidates.COLUMNS) + "\n")
    candidates.write([Candidate(KEY, "fwd", START, "-"), Candidate(KEY, "dkv", wide, "-")], path)
    command = [sys.executable, "-m", "scsco_fast.kernels.bain_attention.candidates", "--jobs", "1", "--file", str(path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [candidate.fits for candidate in candidates.read(path)] == ["yes", "no"], run.stdout
    assert path.read_text().startswith("# a comment\n")
    assert "1 of 2 fit" in run.stdout


def test_the_fastest_wins_if_it_is_faster_by_more_than_noise() -> None:
    """By the quantiles, not by a share of the time; and only beside what was timed in the same way."""
    own, near = Trial("dq", START, None, 1.0, 0.995, 1.01), Trial("dq", OTHER, None, 0.992, 0.98, 0.996)
    best = Trial("dq", BEST, None, 0.993, 0.99, 0.994)
    assert winner([own, near]) == START
    assert winner([own, near, best]) == BEST
    assert winner([own._replace(events="no capture"), near, best]) == START
    assert winner([own, near, best._replace(events="no capture")]) == START
    assert winner([own._replace(ms=None), near]) == OTHER
    assert winner([own._replace(ms=None)]) is None


def test_a_winner_is_written_and_the_rest_of_the_table_stays(tmp_path: Path) -> None:
    path = tmp_path / "table.txt"
    set_winner(KEY, "fwd", BEST, path, tables.PATH)
    set_winner(KEY, "dq", START, path, tables.PATH)
    found = tables.read(path)
    assert found[KEY].by == "timed"
    assert found[KEY].configs == {**TABLE[KEY].configs, "fwd": BEST, "dq": START}
    assert {key: line for key, line in found.items() if key != KEY} == {
        key: line for key, line in TABLE.items() if key != KEY
    }
    with pytest.raises(ScscoError, match="tune an editable install"):
        set_winner(KEY, "fwd", BEST, tmp_path / "missing" / "table.txt", tables.PATH)


def test_tuning_needs_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scsco_fast.kernels.unavailable", lambda: "no CUDA device")
    with pytest.raises(ScscoError, match="--tune times the Triton kernels on a GPU: no CUDA device"):
        tune(1.0, tmp_path, print)


@pytest.mark.gpu
def test_a_candidate_is_held_to_float64_and_timed() -> None:
    where = tuning.Where("cuda", torch.bfloat16, 2, 16)
    for kernel, config in TABLE[KEY].configs.items():
        found = tuning.trial(KEY, kernel, config, where)
        assert found.ms, found
        assert found.error, found
    huge = Config(128, 128, 64, 64, 4, 4)._replace(block_n=4096)
    assert tuning.trial(KEY, "fwd", huge, where).ms is None


def test_a_trial_is_a_row() -> None:
    where = {"suite": "tune", **rows.machine("cpu")}
    trial = Trial("dkv", START, 0.01, 0.5)
    row = row_of(KEY, trial, where)
    assert (row.mode, row.ms, row.error, row.gate) == ("backward", 0.5, 0.01, 6e-2)
    assert (row.detail, row.batch, row.size) == ("90 half 64 64 dkv 128,64,64,64,8,2", 16, 128)
    wrong = row_of(KEY, trial._replace(ms=None, error=math.nan, reason="wrong"), where)
    assert (wrong.ms, wrong.error, wrong.note) == (None, None, "wrong")
