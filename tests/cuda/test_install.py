"""Installing: with nvcc the wheel holds the library, without it or without torch the package is pure Python."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from compiled import TINY, needs_nvcc

from scsco_fast.cuda import build, compilers

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = f"scsco_fast/cuda/built/{build.LIBRARY['cuda']}"
CALL = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the repository, with the tiny library as csrc/."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("scsco_fast", "kernels", "train", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "built"))
    shutil.copytree(TINY, folder / "csrc")
    return folder


def package(
    checkout: Path, what: str, cuda: str | None = "13.0", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Call a hook of the build backend, as pip does without build isolation; the result is in checkout/out.

    The torch that it sees says of itself that it was built with this version of CUDA. None: it is a CPU build.
    """
    (checkout / "out").mkdir()
    variables = {"SCSCO_BUILD_CUDA": "auto", "TORCH_CUDA_ARCH_LIST": "8.0", "MAX_JOBS": "1", **environment}
    variables["PYTHONPATH"] = str(torch_of(checkout.parent / "torches", cuda))
    command = [sys.executable, "-c", CALL, what, "out"]
    return subprocess.run(
        command, cwd=checkout, env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )


def torch_of(folder: Path, cuda: str | None) -> Path:
    """A folder with headers and libraries of the installed torch under another version.py; enough to build with."""
    torch = folder / "torch"
    torch.mkdir(parents=True)
    (torch / "__init__.py").write_text("raise ImportError('nothing may import torch to build')\n")
    (torch / "version.py").write_text(f"cuda: str | None = {cuda!r}\n")
    for name in ("include", "lib"):
        (torch / name).symlink_to(compilers.torch_folder() / name)
    return folder


def wheel_names(checkout: Path, tag: str) -> set[str]:
    (wheel,) = (checkout / "out").glob(f"scsco_fast-*-py3-none-{tag}.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def without_nvcc(tmp_path: Path) -> dict[str, str]:
    """Variables under which no nvcc works: a wrong CUDA_HOME does not hide /usr/local/cuda, a broken nvcc does."""
    folder = tmp_path / "empty" / "bin"
    folder.mkdir(parents=True)
    (folder / "nvcc").write_text("#!/bin/sh\nexit 1\n")
    (folder / "nvcc").chmod(0o755)
    return {"CUDA_HOME": str(folder.parent)}


@needs_nvcc
@pytest.mark.slow
def test_a_wheel_built_without_a_gpu_holds_the_library(checkout: Path) -> None:
    run = package(checkout, "build_wheel")
    assert run.returncode == 0, run.stderr
    assert "compiling 1 files for 8.0, about 1 min, 1 at a time (MAX_JOBS)" in run.stderr
    assert "CPU build" not in run.stderr
    names = wheel_names(checkout, "linux_*")
    facts = f"scsco_fast/cuda/built/{build.FACTS}"
    assert {LIBRARY, facts, "scsco_fast/csrc/double.cu", "scsco_fast/cuda/build.py"} <= names
    (wheel,) = (checkout / "out").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(checkout / "site")
    assert json.loads((checkout / "site" / facts).read_text())["architectures"] == "8.0"
    assert finds(checkout / "site") == str(checkout / "site" / LIBRARY)
    assert not (checkout / "scsco_fast" / "cuda" / "built").exists(), "the checkout stays as it is"


@needs_nvcc
@pytest.mark.slow
def test_one_builds_beside_a_cpu_build_of_torch(checkout: Path) -> None:
    run = package(checkout, "build_wheel", cuda=None, SCSCO_BUILD_CUDA="1")
    assert run.returncode == 0, run.stderr
    said = "scsco-fast: the CUDA library is for other machines: this torch is a CPU build, which cannot load it. "
    assert f"{said}SCSCO_BUILD_CUDA=0 leaves it out\n" in run.stderr
    assert "compiling 1 files for 8.0, about 1 min" in run.stderr
    assert LIBRARY in wheel_names(checkout, "linux_*")


def test_auto_builds_nothing_beside_a_cpu_build_of_torch(checkout: Path) -> None:
    run = package(checkout, "build_wheel", cuda=None)
    assert run.returncode == 0, run.stderr
    (line,) = {line for line in run.stderr.splitlines() if line.startswith("scsco-fast:")}
    assert line == (
        "scsco-fast: the CUDA library is not built: this torch is a CPU build, which cannot load it. "
        "SCSCO_BUILD_CUDA=1 builds it for other machines"
    )
    assert LIBRARY not in wheel_names(checkout, "any")


def finds(folder: Path) -> str:
    """The library that a package in `folder` finds."""
    code = "import torch; from scsco_fast.cuda import library; print(library.find('cuda').path)"
    environment = {**os.environ, "PYTHONPATH": str(folder), "SCSCO_CACHE_DIR": str(folder / "cache")}
    run = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@needs_nvcc
@pytest.mark.slow
def test_an_editable_install_has_the_library_in_the_checkout(checkout: Path) -> None:
    run = package(checkout, "build_editable")
    assert run.returncode == 0, run.stderr
    assert (checkout / LIBRARY).exists()
    assert finds(checkout) == str(checkout / LIBRARY)
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert "scsco_fast/cuda/built/" in ignored
    with (checkout / "csrc" / "double.cu").open("a") as file:
        file.write("// edited\n")
    code = "from scsco_fast.cuda import library; print(library._mismatch(library._libraries('cuda')[0]))"
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    stale = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=True)
    assert stale.stdout == "it was built from other sources\n"


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("choice", ["auto", "1"])
def test_a_compile_error(checkout: Path, choice: str) -> None:
    (checkout / "csrc" / "double.cu").write_text("int broken() { return no_such_name; }\n")
    run = package(checkout, "build_wheel", SCSCO_BUILD_CUDA=choice)
    assert "no_such_name" in run.stderr
    assert (run.returncode == 0) == (choice == "auto")
    if choice == "auto":
        assert LIBRARY not in wheel_names(checkout, "*")
        assert "it is at first use, or by scsco build" in run.stderr


def test_without_a_compiler(checkout: Path, tmp_path: Path) -> None:
    run = package(checkout, "build_wheel", **without_nvcc(tmp_path))
    assert run.returncode == 0, run.stderr
    assert "scsco-fast: the CUDA library is not built now, but at first use: " in run.stderr
    names = wheel_names(checkout, "any")
    assert "scsco_fast/csrc/double.cu" in names
    assert LIBRARY not in names


def test_zero_builds_nothing(checkout: Path) -> None:
    run = package(checkout, "build_wheel", SCSCO_BUILD_CUDA="0")
    assert run.returncode == 0, run.stderr
    assert "scsco-fast:" not in run.stderr
    assert LIBRARY not in wheel_names(checkout, "any")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"SCSCO_BUILD_CUDA": "1"}, "scsco-fast: SCSCO_BUILD_CUDA=1: "),
        ({"SCSCO_BUILD_CUDA": "yes"}, "scsco-fast: SCSCO_BUILD_CUDA is 'yes'; wanted auto, 0 or 1"),
    ],
)
def test_one_fails_loudly(checkout: Path, tmp_path: Path, variables: dict[str, str], message: str) -> None:
    run = package(checkout, "build_wheel", **without_nvcc(tmp_path), **variables)
    assert run.returncode != 0
    assert message in run.stderr
    assert "Traceback" not in run.stderr
    assert not list((checkout / "out").iterdir())


def test_without_torch(checkout: Path, tmp_path: Path) -> None:
    import setuptools

    site = Path(setuptools.__file__).parent.parent
    (tmp_path / "path").mkdir()
    for path in (*site.glob("setuptools*"), site / "_distutils_hack"):
        (tmp_path / "path" / path.name).symlink_to(path)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (checkout / "out").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "path"), "PATH": "/usr/bin:/bin"}
    environment.pop("SCSCO_BUILD_CUDA", None)
    command = [tmp_path / "venv" / "bin" / "python", "-c", CALL, "build_wheel", "out"]
    run = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "the CUDA library is not built now, but at first use: torch, whose headers are needed," in run.stderr
    assert LIBRARY not in wheel_names(checkout, "any")


def test_an_old_setuptools_is_named(checkout: Path) -> None:
    code = "import runpy, setuptools; setuptools.__version__ = '65.5.0'; runpy.run_path('setup.py')"
    run = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.startswith("scsco-fast: setuptools 65.5.0 is installed, 77 or newer is needed: pip install -U")
    assert run.stderr.count("\n") == 1


def test_the_source_distribution_holds_the_sources(checkout: Path) -> None:
    for name in ("docs", "tests"):
        (checkout / name).mkdir()
    (checkout / LIBRARY).parent.mkdir()
    (checkout / LIBRARY).write_text("built earlier")
    run = package(checkout, "build_sdist", SCSCO_BUILD_CUDA="0")
    assert run.returncode == 0, run.stderr
    (archive,) = (checkout / "out").glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.split("/", 1)[-1] for name in file.getnames()}
    assert {"csrc/double.cu", "setup.py", "scsco_fast/cuda/build.py"} <= names
    assert LIBRARY not in names
