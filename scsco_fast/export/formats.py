"""The formats that `export` writes, and whether one can be written here; without torch, so at once."""

import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

from scsco_fast.errors import ScscoError
from scsco_fast.system.files import check_writable

Format = Literal["pt2", "onnx", "aoti"]
SUFFIXES: dict[Format, str] = {"pt2": ".pt2", "onnx": ".onnx", "aoti": ".pt2"}


def check(path: str | Path, format: Format, size: tuple[int, int] | None = None) -> None:
    """Whether `scsco_fast.export.program.export` can write this format to `path`, without doing it.

    Raises:
        ScscoError: as `export`.

    Examples:
        >>> check("model.onnx", "pt2")
        Traceback (most recent call last):
        scsco_fast.errors.ScscoError: model.onnx: the format pt2 has the suffix .pt2; name a .pt2 file
    """
    if format not in get_args(Format):
        raise ScscoError(f"the format is {format!r}; wanted one of {', '.join(get_args(Format))}")
    if Path(path).suffix != SUFFIXES[format]:
        raise ScscoError(
            f"{path}: the format {format} has the suffix {SUFFIXES[format]}; name a {SUFFIXES[format]} file"
        )
    if size is not None and min(size) < 1:
        raise ScscoError(f"the size is {size[0]}x{size[1]} (height x width); wanted at least 1 pixel")
    missing = [name for name in ("onnx", "onnxscript") if format == "onnx" and find_spec(name) is None]
    if missing:
        raise ScscoError(f'ONNX needs {" and ".join(missing)}: pip install "scsco-fast[export]"')
    compiler = os.environ.get("CXX") or "g++"
    if format == "aoti" and shutil.which(compiler) is None:
        raise ScscoError(f"AOTInductor needs a C++ compiler, and {compiler} is not found; install g++, or set CXX")
    check_writable(Path(path).parent)
