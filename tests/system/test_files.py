"""Writing in place of a file, all or nothing; what a file holds."""

from pathlib import Path

import pytest

from scsco_fast.errors import ScscoError
from scsco_fast.system.files import replacing, sha256


def test_appears_only_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    with replacing(target) as temporary:
        temporary.write_text("whole")
        assert temporary.suffix == ".txt"
        assert temporary.parent == target.parent
        assert not target.exists()
    assert target.read_text() == "whole"
    assert list(target.parent.iterdir()) == [target]


def test_an_error_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def write_half() -> None:
        with replacing(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("own error")

    with pytest.raises(RuntimeError, match="own error"):
        write_half()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ScscoError, match=r"file/a\.txt: cannot be written"), replacing(tmp_path / "file" / "a.txt"):
        pass
    (tmp_path / "folder").mkdir()
    with (
        pytest.raises(ScscoError, match="folder: cannot be written"),
        replacing(tmp_path / "folder") as temporary,
    ):
        temporary.write_text("")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_file_is_known_by_its_bytes(tmp_path: Path) -> None:
    """The digest of "abc" that FIPS 180-4 gives as its example."""
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
