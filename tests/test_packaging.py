"""What is installed, and what importing it costs."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from sources import FOLDERS, ROOT, SOURCES, installed_name

import scsco_fast

# Not before they are used; and not before anything is computed.
LAZY = (
    *("triton", "rich", "skimage", "tifffile", "matplotlib", "tensorboard", "safetensors"),
    *("h5py", "accelerate", "gradio", "onnx", "filelock"),
)
HEAVY = ("torch", "numpy", "PIL", *LAZY)


def run_python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=os.sep)
    assert result.returncode == 0, result.stderr
    return result.stdout


def pinned() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def test_importing_is_light() -> None:
    code = f"import sys, scsco_fast, scsco_fast.cli, scsco_fast.train; print([n for n in {HEAVY} if n in sys.modules])"
    assert run_python(code).strip() == "[]"


def test_using_every_public_name_is_light() -> None:
    code = (
        "import sys, scsco_fast\nfor name in scsco_fast.__all__: getattr(scsco_fast, name)\n"
        f"print([n for n in {LAZY} if n in sys.modules])"
    )
    assert run_python(code).strip() == "[]"


@pytest.mark.parametrize(
    ("package", "name", "home"),
    [
        ("data", "SyntheticComposites", "synthesis"),
        ("export", "export", "export.program"),
        ("export", "export_program", "export.program"),
    ],
)
def test_a_public_name_is_where_it_was(package: str, name: str, home: str) -> None:
    at_home, there = (importlib.import_module(f"scsco_fast.{module}") for module in (home, package))
    assert getattr(there, name) is getattr(at_home, name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = there.nothing


def test_mapped_packages_are_importable_from_anywhere() -> None:
    code = "import scsco_fast.kernels, scsco_fast.train.presets as p; print(sorted(p.PRESETS))"
    assert run_python(code).strip() == "['compact', 'compact-gpu', 'demo', 'paper']"


def test_public_names_exist() -> None:
    assert sorted(scsco_fast.__all__) == sorted(set(scsco_fast.__all__))
    for name in scsco_fast.__all__:
        assert hasattr(scsco_fast, name)
        assert name in dir(scsco_fast)
    assert callable(scsco_fast.harmonize)  # the function, not a module of that name
    with pytest.raises(AttributeError, match="module 'scsco_fast' has no attribute 'harmonise'"):
        scsco_fast.harmonise  # type: ignore[attr-defined]  # noqa: B018


def test_public_names_are_those_that_type_checkers_see() -> None:
    tree = ast.parse((ROOT / "scsco_fast" / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: str(node.module) for node in block.body for alias in node.names}  # type: ignore[attr-defined]
    assert set(seen) == set(scsco_fast.__all__)
    for name, module in seen.items():
        there = importlib.import_module(f"{module}.{name}" if name in ("nn", "ops") else module)
        assert getattr(scsco_fast, name) is (there if name in ("nn", "ops") else getattr(there, name))


@pytest.mark.parametrize("first", ["scsco_fast.nn", "scsco_fast.ops._region_norm", "scsco_fast.harmonizing", "pickle"])
def test_public_names_work_in_any_order(first: str) -> None:
    code = (
        f"import pickle, {first}\nfrom scsco_fast import Regions, harmonize, nn, ops\nimport scsco_fast as sf\n"
        "assert sf.ops is ops and sf.nn.BAIN is sf.BAIN and pickle.loads(pickle.dumps(sf.Regions)) is Regions\n"
        "from scsco_fast import *\nfrom scsco_fast.train import train\nprint(callable(harmonize), callable(train))"
    )
    assert run_python(code).strip() == "True True"


def test_metadata() -> None:
    facts = importlib.metadata.metadata("scsco-fast")
    assert facts["Version"] == scsco_fast.__version__
    assert facts["License-Expression"] == "MIT"
    assert facts["Requires-Python"] == ">=3.11"
    (script,) = importlib.metadata.distribution("scsco-fast").entry_points
    assert (script.name, script.load()) == ("scsco", __import__("scsco_fast.cli").cli.run)


def test_pins_fit_the_requirements_and_are_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    requirements = [Requirement(text) for group in groups for text in group]
    pins = pinned()
    for requirement in requirements:
        if requirement.name != "scsco-fast":
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_triton_is_wanted_on_linux_only() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert not [text for text in project["dependencies"] if text.startswith("triton")], "torch brings it for a GPU"
    (triton,) = [Requirement(text) for text in project["optional-dependencies"]["bench"] if text.startswith("triton")]
    assert triton.marker is not None
    assert triton.marker.evaluate({"platform_system": "Linux"})
    assert not triton.marker.evaluate({"platform_system": "Darwin"})
    # A CUDA build of torch pins its Triton: an upper bound or a pin of ours could contradict it.
    assert {specifier.operator for specifier in triton.specifier} == {">="}


def test_wheel_holds_everything(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in (*FOLDERS, "csrc"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__", "built"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    environment = {**os.environ, "SCSCO_BUILD_CUDA": "0"}  # with it: tests/cuda/test_install.py
    command += ["--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("scsco_fast-*-py3-none-any.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"{installed_name(path).replace('.', '/')}" for path in SOURCES if path.name != "__init__.py"}
    assert {f"{name}.py" for name in wanted} <= names
    assert {f"scsco_fast/csrc/{path.name}" for path in (ROOT / "csrc").iterdir()} <= names
    assert {
        "scsco_fast/models/compact.safetensors",
        "scsco_fast/models/compact-free.safetensors",
        "scsco_fast/data/debian.csv",
    } <= names
    assert {"scsco_fast/py.typed", "scsco_fast/kernels/__init__.py", "scsco_fast/train/presets/__init__.py"} <= names
    assert {name.split("/")[0] for name in names} == {"scsco_fast", f"scsco_fast-{scsco_fast.__version__}.dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_what_is_published_is_whole_and_its_metadata_are_well_formed(tmp_path: Path) -> None:
    source, built = tmp_path / "source", tmp_path / "dist"
    left_out = (
        ".git",
        ".venv",
        "build",
        "runs",
        "dist",
        "*.egg-info",
        "__pycache__",
        "built",
        ".*_cache",
        ".hypothesis",
    )
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*left_out))
    environment = {**os.environ, "SCSCO_BUILD_CUDA": "0"}
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(built)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, env=environment, check=True, capture_output=True)
    (archive,) = built.glob(f"scsco_fast-{scsco_fast.__version__}.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    for folder in (*FOLDERS, "csrc", "docs", "integrations", "tests"):
        wanted = {path.relative_to(source).as_posix() for path in (source / folder).rglob("*") if path.is_file()}
        assert wanted <= names
    assert {"CITATION.cff", "CONTRIBUTING.md", "SECURITY.md", "LICENSE", "Makefile", "mkdocs.yml", ".ci/run"} <= names
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    command += ["--wheel-dir", str(built), str(archive)]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    files = [str(path) for path in built.iterdir()]
    assert len(files) == 2
    checked = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout
    assert checked.stdout.count("PASSED") == 2


def test_the_citation_is_of_this_version() -> None:
    lines = (ROOT / "CITATION.cff").read_text().splitlines()
    assert "cff-version: 1.2.0" in lines
    assert f"version: {scsco_fast.__version__}" in lines
    assert "license: MIT" in lines


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_old_python_is_refused_in_one_line(tmp_path: Path) -> None:
    command = ["make", "-s", "test", "PYTHON=false", f"VENV={tmp_path / 'venv'}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert 'Python 3.11 or newer is needed, "false" is not: make PYTHON=/path/to/python3.11' in result.stderr
    assert not (tmp_path / "venv").exists()


def test_ci_runs_the_linters_the_documentation_and_the_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert re.findall(r"^make \w+", script.read_text(), re.MULTILINE) == ["make lint", "make docs", "make test"]
