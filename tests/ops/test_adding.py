"""docs/adding-an-operation.md is followed: its files, in a temporary folder, are an operation that passes its tests."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from pages import ROOT

from scsco_fast.kernels import no_triton

PAGE = ROOT / "docs/adding-an-operation.md"
FILE = re.compile(r'^```py title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
# Folders of the page's files, and the packages that have to look there too.
PACKAGES = {"scsco_fast.reference": "scsco_fast/reference", "scsco_fast.eager": "scsco_fast/eager"}
PACKAGES |= {"scsco_fast.ops": "scsco_fast/ops", "scsco_fast.kernels": "kernels"}
PROGRAM = """
import importlib, sys, pytest
for name, folder in {packages!r}.items():
    importlib.import_module(name).__path__.append(folder)
if {compiles}:
    from scsco_fast.kernels.resources import all_cases, measure
    cases = all_cases(["shrink"])
    assert len(cases) == 6 and measure(cases[0], 90).problems() == []
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-c", {config!r}, "--rootdir", {root!r}, {test!r}]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's files where it says, but below this folder."""
    folder = tmp_path_factory.mktemp("added")
    for name, text in FILE.findall(PAGE.read_text(encoding="utf-8")):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def run(folder: Path, compiles: bool, **environment: str) -> str:
    packages = {name: str(folder / path) for name, path in PACKAGES.items()}
    test = str(folder / "tests/contract/test_shrink.py")
    program = PROGRAM.format(
        packages=packages, compiles=compiles, config=str(ROOT / "pyproject.toml"), root=str(ROOT), test=test
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_the_eager_backend_and_triton_s_compiler(folder: Path) -> None:
    """Twelve shapes and dtypes, layouts, opcheck, an empty batch and errors; the kernels compile without a GPU."""
    assert "16 passed" in run(folder, compiles=no_triton() is None)


@pytest.mark.slow
def test_triton_s_interpreter(folder: Path) -> None:
    """Interpreted, the kernels do the same; the interpreter computes two dtypes."""
    triton = pytest.importorskip("triton")
    if triton.__version__.startswith("3.6.") and numpy.lib.NumpyVersion(numpy.__version__) >= "2.4.0":
        pytest.skip("the interpreter of Triton 3.6 needs numpy older than 2.4")
    assert "10 passed" in run(folder, compiles=False, TRITON_INTERPRET="1")


def test_the_page_names_ten_files_and_they_are_where_it_says() -> None:
    """For an operation that has them all: those of region_norm."""
    names = re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(names) == 10
    for name in names:
        assert (ROOT / name.replace("<op>", "region_norm")).exists(), name


def test_the_page_shows_files_of_its_table() -> None:
    text = PAGE.read_text(encoding="utf-8")
    names = set(re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE))
    shown = {name.replace("shrink", "<op>") for name, _ in FILE.findall(text)}
    assert len(shown) == 6
    assert shown <= names
