"""A check names whatever cannot be used, survives all of it, and goes on where it was interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from malformed import BROKEN, PARTS, mask, noise, write_malformed

from scsco_fast.data.check import CheckReport, check_dataset
from scsco_fast.data.iharmony4 import IHarmony4
from scsco_fast.data.samples import BadSample
from scsco_fast.errors import ScscoError

MALFORMED = 1000


@pytest.fixture(scope="module")
def malformed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    root = tmp_path_factory.mktemp("malformed") / "data"
    return root, write_malformed(root, MALFORMED)


def good(root: Path, count: int = 4) -> Path:
    for part in PARTS:
        (root / part).mkdir(parents=True)
    for number in range(count):
        noise(number).save(root / PARTS[0] / f"c{number}_1_1.png")
        noise(number + 100).save(root / PARTS[2] / f"c{number}.png")
        mask().save(root / PARTS[1] / f"c{number}_1.png")
    (root / "train.txt").write_text("\n".join(f"c{number}_1_1.png" for number in range(count)))
    return root


def kinds(report: CheckReport) -> list[tuple[str, str]]:
    return [(problem.kind, Path(problem.file).name) for problem in report.problems]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_thousand_malformed_inputs_are_each_named(
    malformed: tuple[Path, dict[str, str]], tmp_path: Path, workers: int
) -> None:
    root, expected = malformed
    assert len(expected) == MALFORMED
    assert set(BROKEN) < set(expected.values())
    report = check_dataset(root, tmp_path / "journal.jsonl", workers)
    named = {problem.file for problem in report.problems}
    assert {file: what for file, what in expected.items() if file not in named} == {}
    good_ones = {str(root / PARTS[0] / "c_1_1_1.png"), str(root / PARTS[1] / "c_1_1.png")}
    assert not named & good_ones
    assert named == set(expected)
    for problem in report.problems:
        assert Path(problem.file).name.split("\n")[0] in problem.reason
    report.write(tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text())
    assert len(content["problems"]) == len(report.problems)
    assert content["counts"] == report.counts()
    assert sum(content["counts"].values()) == len(report.problems)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_malformed_samples_are_bad_samples_of_the_dataset_too(malformed: tuple[Path, dict[str, str]]) -> None:
    root, _ = malformed
    dataset = IHarmony4(root, "train", size=16)
    items = [dataset[index] for index in range(60)]
    assert not isinstance(items[0], BadSample)
    assert all(isinstance(item, BadSample) and "\n" not in item.reason for item in items[1:])


def test_a_good_dataset_has_no_problems(tmp_path: Path) -> None:
    report = check_dataset(good(tmp_path / "data"), tmp_path / "journal.jsonl")
    assert report.problems == []
    assert (report.files, report.decoded, report.unlisted) == (12, 12, 0)
    assert report.samples == {"train": 4}
    assert report.dialects == {"train": "train.txt; composite_images, masks, real_images"}
    assert report.coverage == pytest.approx(1 / 16)


def test_what_is_wrong_with_the_lists_is_reported(tmp_path: Path) -> None:
    root = good(tmp_path / "data")
    names = (root / "train.txt").read_text().splitlines()
    (root / "train.txt").write_text("\n".join([*names[:3], names[0], "c9_9_9.png", "nonsense"]))
    (root / "test.txt").write_text(names[1])
    report = check_dataset(root, tmp_path / "journal.jsonl")
    assert kinds(report) == [
        ("name", "train.txt:6"),
        ("missing", "c9_9_9.png"),
        ("repeated", names[0]),
        ("shared", names[1]),
    ]
    assert report.unlisted == 1
    (root / "train.txt").write_bytes(b"\xff\xfe\xfa")
    assert ("list", "data") in kinds(check_dataset(root, tmp_path / "journal.jsonl"))


def test_inverted_masks_are_suspected(tmp_path: Path) -> None:
    root = good(tmp_path / "data")
    for path in (root / PARTS[1]).iterdir():
        mask(value=0, ground=255).save(path)
    report = check_dataset(root, tmp_path / "journal.jsonl")
    assert kinds(report) == [("polarity", "data")]
    assert "cover 94 % of their pictures on average: they are probably inverted" in report.problems[0].reason


def test_pairs_without_real_pictures_are_accepted(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for part in ("composite", "mask"):
        (root / part).mkdir(parents=True)
    noise(0).save(root / "composite" / "a.jpg")
    mask().save(root / "mask" / "a.png")
    report = check_dataset(root, tmp_path / "journal.jsonl")
    assert (report.problems, report.samples) == ([], {"all": 1})


def test_only_what_changed_is_decoded_again(tmp_path: Path) -> None:
    root, journal = good(tmp_path / "data"), tmp_path / "journal.jsonl"
    first = check_dataset(root, journal)
    second = check_dataset(root, journal)
    assert (first.decoded, second.decoded) == (12, 0)
    assert second.problems == first.problems
    assert second.coverage == first.coverage
    changed = root / PARTS[1] / "c2_1.png"
    mask(48).save(changed)
    os.utime(changed, ns=(1, 1))
    third = check_dataset(root, journal)
    assert third.decoded == 1
    assert kinds(third) == [("size", "c2_1.png")]
    assert "48x48 but c2_1_1.png is 24x24" in third.problems[0].reason


def test_a_journal_that_was_cut_short_or_is_nonsense_is_no_harm(tmp_path: Path) -> None:
    root, journal = good(tmp_path / "data"), tmp_path / "journal.jsonl"
    check_dataset(root, journal)
    text = journal.read_text()
    journal.write_text(text[: len(text) // 2])
    half = check_dataset(root, journal)
    assert 4 <= half.decoded <= 8
    journal.write_text('nonsense\n[1, 2]\n{"a": 1}\n[1, [[], 1, 1, false], 1, 1, null, null]\n' + text)
    assert check_dataset(root, journal).decoded == 0
    journal.write_text(text.replace("[2,", "[1,"))  # of the version that took masks of 0 and 1 for empty ones
    assert check_dataset(root, journal).decoded == 12
    journal.write_bytes(np.random.default_rng(0).bytes(300))
    assert check_dataset(root, journal).decoded == 12
    assert journal.read_text() == text


SLOW = """
import sys, time
from scsco_fast.data import check
probe = check.probe
def slow(task):
    time.sleep(0.05)
    return probe(task)
check.probe = slow
check._FLUSH_EVERY = 1
print("begun", flush=True)
check.check_dataset(sys.argv[1], sys.argv[2])
"""


def test_a_killed_check_goes_on_where_it_stopped(tmp_path: Path) -> None:
    root, journal = good(tmp_path / "data", 20), tmp_path / "journal.jsonl"
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(root), str(journal)], stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not journal.exists() or journal.read_text().count("\n") < 10):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    report = check_dataset(root, journal)
    assert 0 < report.decoded <= 50
    assert (report.files, report.problems) == (60, [])


def test_a_folder_without_a_dataset_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ScscoError, match="holds no dataset; composite_images/ and masks/"):
        check_dataset(tmp_path / "empty", tmp_path / "journal.jsonl")
    with pytest.raises(ScscoError, match="no such folder"):
        check_dataset(tmp_path / "nowhere", tmp_path / "journal.jsonl")
    root = good(tmp_path / "data")
    (tmp_path / "file").touch()
    with pytest.raises(ScscoError, match=r"journal\.jsonl: cannot be written"):
        check_dataset(root, tmp_path / "file" / "journal.jsonl")
