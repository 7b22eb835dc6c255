"""Photographs out of packages: made-up .deb files, checksums, what is missing, and the table itself."""

import csv
import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from scsco_fast.data.debian import Source, fetch, main, read_sources
from scsco_fast.data.photos import builtin_files, split_names
from scsco_fast.errors import ScscoError

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
PICTURE = b"not decoded here"


def source(**changes: str) -> Source:
    row = {
        "split": "train",
        "name": "holiday-pictures_beach.jpg",
        "package": "holiday-pictures",
        "version": "1.2-3",
        "licence": "CC0-1.0",
        "path": "usr/share/holiday/beach.jpg",
        "sha256": hashlib.sha256(PICTURE).hexdigest(),
    }
    return Source(**{**row, **changes})


def build_deb(debs: Path, copyright_text: str | None = "License: CC0-1.0\n") -> None:
    package = "holiday-pictures"
    tree = debs / f"tree-{package}"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        f"Package: {package}\nVersion: 1.2-3\nArchitecture: all\nMaintainer: n <n@example.org>\nDescription: none\n"
    )
    picture = tree / "usr/share/holiday/beach.jpg"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(PICTURE)
    if copyright_text is not None:
        place = tree / f"usr/share/doc/{package}/copyright"
        place.parent.mkdir(parents=True)
        place.write_text(copyright_text)
    subprocess.run(["dpkg-deb", "-b", tree, debs / f"{package}_1.2-3_all.deb"], check=True, capture_output=True)


@pytest.fixture
def debs(tmp_path: Path) -> Path:
    folder = tmp_path / "debs"
    folder.mkdir()
    build_deb(folder)
    return folder


@needs_dpkg
def test_photographs_their_sources_and_their_copyright_are_written(debs: Path, tmp_path: Path) -> None:
    output = tmp_path / "photographs"
    (found,) = fetch(output, debs, [source(version="1.2-2")])
    assert found.version == "1.2-3"  # the one found: same bytes, so it is as good
    assert (output / "train" / "holiday-pictures_beach.jpg").read_bytes() == PICTURE
    assert (output / "copyright" / "holiday-pictures").read_text() == "License: CC0-1.0\n"
    with (output / "sources.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["licence"], row["version"]) == ("CC0-1.0", "1.2-3")
    before = (output / "train" / "holiday-pictures_beach.jpg").stat().st_mtime_ns
    fetch(output, debs, [source()])
    assert (output / "train" / "holiday-pictures_beach.jpg").stat().st_mtime_ns == before


@needs_dpkg
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": "0" * 64}, "usr/share/holiday/beach.jpg is not that of version 1.2-3"),
        ({"path": "usr/share/holiday/hill.jpg"}, "holds no usr/share/holiday/hill.jpg"),
        ({"package": "no-such-pictures"}, "holds 0 files no-such-pictures_*.deb; wanted one"),
    ],
)
def test_what_is_not_the_tables_is_refused(changes: dict[str, str], message: str, debs: Path, tmp_path: Path) -> None:
    with pytest.raises(ScscoError) as caught:
        fetch(tmp_path / "photographs", debs, [source(**changes)])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "photographs").rglob("*.jpg"))


@needs_dpkg
def test_a_package_without_a_copyright_file_is_refused(tmp_path: Path) -> None:
    build_deb(tmp_path, copyright_text=None)
    with pytest.raises(ScscoError, match="its licences are unknown"):
        fetch(tmp_path / "photographs", tmp_path, [source()])


@needs_dpkg
def test_a_broken_package_is_an_error_of_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in {row.package for row in read_sources()}:
        (tmp_path / f"{package}_1_all.deb").write_bytes(b"!<arch>\n")
    assert main([str(tmp_path / "photographs"), "--debs", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: dpkg-deb -x")


def test_the_table_is_in_order() -> None:
    rows = read_sources()
    assert len({row.name for row in rows}) == len({row.sha256 for row in rows}) == len(rows) > 100
    assert all(len(row.sha256) == 64 and row.licence and row.version for row in rows)
    assert {row.split for row in rows} == {"train", "test"}
    # The demo's test photographs stay unseen by the shipped model as well.
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in builtin_files("test").values()}
    assert digests <= {row.sha256 for row in rows if row.split == "test"}


def test_a_table_with_other_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("name,split\na,train\n")
    with pytest.raises(ScscoError, match="wanted the columns split, name"):
        read_sources(tmp_path / "table.csv")
    with pytest.raises(ScscoError, match=r"none\.csv: cannot be read"):
        read_sources(tmp_path / "none.csv")


def test_folders_named_train_and_test_are_the_split() -> None:
    names = ["test/a.jpg", "train/b.jpg", "train/c.jpg"]
    assert split_names(names, "train") == ["train/b.jpg", "train/c.jpg"]
    assert split_names(names, "test") == ["test/a.jpg"]
    mixed = [*names, "d.jpg"]
    assert sorted([*split_names(mixed, "train"), *split_names(mixed, "test")]) == sorted(mixed)
