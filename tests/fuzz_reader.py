"""Fuzz the reader of picture files, guided by coverage: anything but a picture or a ScscoError is a finding.

    pip install atheris
    python tests/fuzz_reader.py --make CORPUS
    python tests/fuzz_reader.py CORPUS -max_total_time=1800 -rss_limit_mb=3000 -timeout=20

The options are libFuzzer's. A finding is written to the current folder as crash-..., timeout-... or oom-....
"""

import os
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["PIL", "tifffile", "scsco_fast.data", "scsco_fast.harmonizing"]):
    from PIL import Image

    from scsco_fast.data.deep_color import read_deep
    from scsco_fast.data.images import read_picture, stored_orientation, upright_size
    from scsco_fast.data.masks import read_mask
    from scsco_fast.errors import ScscoError
    from scsco_fast.harmonizing.image_files import DeepColorError, read_image, write_image

MOST_PIXELS = 4_000_000
Image.MAX_IMAGE_PIXELS = MOST_PIXELS
FOLDER = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))


def read_every_way(data: bytes) -> None:
    path = FOLDER / "a"
    path.write_bytes(data)
    for read in (read_picture, read_mask, upright_size):
        try:
            read(path)
        except ScscoError as error:
            _check(error)
    stored_orientation(path)
    try:
        _write_all(read_image(path, MOST_PIXELS))
    except DeepColorError:
        try:
            read_deep(path, MOST_PIXELS)
        except ScscoError as error:
            _check(error)
    except ScscoError as error:
        _check(error)


def _write_all(image: Image.Image) -> None:
    for suffix in (".png", ".jpg", ".tif", ".webp"):
        try:
            write_image(image, FOLDER / f"b{suffix}")
        except ScscoError as error:
            _check(error)


def _check(error: ScscoError) -> None:
    assert "\n" not in str(error), str(error)


def _make(corpus: Path) -> None:
    from odd_files import whole_files

    corpus.mkdir(parents=True, exist_ok=True)
    for name, data in whole_files():
        (corpus / name).write_bytes(data)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make"]:
        _make(Path(sys.argv[2]))
    else:
        warnings.simplefilter("ignore")
        atheris.Setup(sys.argv, read_every_way)
        atheris.Fuzz()
