"""`scsco prepare`: what it prints, writes and exits with."""

import json
from pathlib import Path

import pytest
from malformed import write_malformed
from small_dataset import write_dataset

from scsco_fast import cli
from scsco_fast.data.packed import PackedDataset

FAST = ("--workers", "0")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_dataset(tmp_path / "data", 6)


def test_check_of_a_good_dataset(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prepare", str(root), "--check", *FAST]) == 0
    written = capsys.readouterr()
    assert "train: 6 samples (IHD_train.txt; composite_images, masks, real_images)" in written.out
    assert "15 files, 15 decoded now, 0 composites in no list" in written.out
    assert "no problem" in written.out
    assert json.loads(Path("runs/check/data.json").read_text())["problems"] == []
    assert cli.main(["prepare", "--root", str(root), "--check", "--report", "new/r.json", "--workers", "2"]) == 0
    assert Path("new/r.files.jsonl").exists()
    capsys.readouterr()
    assert cli.main(["prepare", str(root), "--check", *FAST]) == 0
    assert "15 files, 0 decoded now" in capsys.readouterr().out


def test_check_of_a_malformed_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_malformed(tmp_path / "data", 200)
    report = tmp_path / "report.json"
    assert cli.main(["prepare", str(tmp_path / "data"), "--check", "--report", str(report), *FAST]) == 1
    written = capsys.readouterr()
    counts = json.loads(report.read_text())["counts"]
    assert f"{sum(counts.values())} problems" in written.out
    for kind, count in counts.items():
        lines = [line for line in written.err.splitlines() if line.startswith(f"scsco: {kind}: ")]
        assert len(lines) == min(count, 4)
        assert (f"{count - 3} more in the report" in lines[-1]) == (count > 3)
    assert all(line.startswith("scsco: ") for line in written.err.splitlines())


def test_pack_then_check_the_store(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "IHD_test.txt").write_text((root / "IHD_train.txt").read_text().splitlines()[0])
    arguments = ["prepare", str(root), "--output", "store", "--size", "24", *FAST]
    assert cli.main(arguments) == 0
    written = capsys.readouterr()
    assert "store/train: 6 samples of 3 real pictures, 0 bad, 0 missing" in written.out
    assert "store/test: 1 samples of 1 real pictures, 0 bad, 0 missing" in written.out
    assert "scsco train paper --dataset packed --root store --size 24" in written.out
    assert f"scsco: {root}: IHD_train.txt; composite_images, masks, real_images: 6 train samples\n" in written.err
    assert "scsco: warning: " in written.err
    assert "1 entries are in the list of train and of test" in written.err
    assert (len(PackedDataset("store", "train")), len(PackedDataset("store", "test"))) == (6, 1)
    assert cli.main(arguments) == 0
    assert cli.main(["prepare", "store", "--check"]) == 0
    assert "store/test: no problem" in capsys.readouterr().out
    file = Path("store/train/real-00000.bin")
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    assert cli.main(["prepare", "store", "--check"]) == 1
    written = capsys.readouterr()
    assert "store/train: 1 records have been changed" in written.out
    assert "store/train/real-00000.bin: record 0 (the real picture of c0_" in written.err


def test_what_is_left_out_is_named_and_exits_1(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "HCOCO/masks/c0_0.png").unlink()
    (root / "HCOCO/real_images/c2.jpg").write_bytes(b"")
    assert cli.main(["prepare", str(root), "--output", "store", "--size", "24", *FAST]) == 1
    written = capsys.readouterr()
    assert "store/train: 3 samples of 3 real pictures, 2 bad, 1 missing" in written.out
    assert f"scsco: failed: {root}/HCOCO/masks/c0_0.png: no such file" in written.err
    assert written.err.count(f"scsco: failed: {root}/HCOCO/real_images/c2.jpg: is empty (0 bytes)") == 2


def test_unlisted_pictures_need_the_name_of_a_split(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "IHD_train.txt").unlink()
    arguments = ["prepare", str(root), "--output", "store", *FAST]
    assert cli.main(arguments) == 2
    assert "give --split train or --split test" in capsys.readouterr().err
    assert cli.main([*arguments, "--split", "test", "--size", "24"]) == 0
    assert "no list says which samples are for training" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "missing --root PATH"),
        (["DIR"], "either --check or --output STORE"),
        (["DIR", "--check", "--output", "x"], "either --check or --output STORE"),
        (["/nowhere", "--check"], "/nowhere: no such folder"),
        (["/nowhere", "--output", "x", "--split", "train"], "/nowhere: no such folder"),
        (["DIR", "--output", "x", "--size", "0"], "both must be at least 1"),
        (["DIR", "--check", "--workers", "-1"], "--workers is -1"),
    ],
)
def test_mistakes_are_one_line(
    root: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["prepare", *(str(root) if text == "DIR" else text for text in arguments)]) == 2
    written = capsys.readouterr()
    assert message in written.err
    assert written.err.count("\n") == 1
    assert not Path("x").exists()


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prepare", "--help"]) == 0
    assert "usage: scsco prepare" in capsys.readouterr().out


def test_a_link_that_leads_to_itself_is_no_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert cli.main(["prepare", str(tmp_path / "loop"), "--check", "--report", str(tmp_path / "report.json")]) == 2
    assert "loop: no such folder" in capsys.readouterr().err
    assert cli.main(["prepare", str(tmp_path / "loop"), "--check"]) == 2
    assert cli.main(["synthesize", str(tmp_path / "loop"), "--output", str(tmp_path / "out")]) == 2
    assert cli.main(["synthesize", str(tmp_path), "--output", str(tmp_path / "loop")]) == 2
