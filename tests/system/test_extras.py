"""What works without any extra, and the one line that names the extra where one is needed."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image
from small_dataset import write_dataset

from scsco_fast import info
from scsco_fast.errors import ScscoError
from scsco_fast.system.extras import PACKAGES, install_line, module_of, require

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FOLDERS = ("scsco_fast", "train", "benchmarks", "kernels")
SOURCES = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
MODULES = {"pillow": "PIL"}

# Runs each line of arguments where the optional packages cannot be imported, and prints exit codes and errors.
RUN = """
import contextlib, io, json, sys
lines, hidden = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys(hidden))
from scsco_fast.cli import main
results = []
for line in lines:
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        code = main(line)
    results.append((code, output.getvalue(), errors.getvalue()))
print(json.dumps(results))
"""


def without_extras(lines: list[list[str]], folder: Path) -> list[tuple[int, str, str]]:
    given = json.dumps([lines, [module_of(package) for package in PACKAGES]])
    command = [sys.executable, "-c", RUN, given]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert result.returncode == 0, result.stderr
    return [tuple(each) for each in json.loads(result.stdout)]


def names(requirements: list[str]) -> set[str]:
    return {Requirement(text).name.lower().replace("_", "-") for text in requirements}


def brought_by(extra: str) -> set[str]:
    """All packages that an extra installs, those of extras that it names included."""
    found = set()
    for text in PROJECT["optional-dependencies"][extra]:
        requirement = Requirement(text)
        if requirement.name == "scsco-fast":
            found |= {name for other in requirement.extras for name in brought_by(other)}
        else:
            found |= names([text])
    return found


def required() -> Iterator[tuple[str, str, str]]:
    """File, extra and package of every `require(what, extra, package, ...)` that spells them out."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require":
                values: list[Any] = [part.value for part in node.args[1:] if isinstance(part, ast.Constant)]
                for package in values[1:]:
                    yield path.name, values[0], package


def test_commands_that_need_no_extra(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(30, 220, (60, 80, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    mask = np.zeros((60, 80), np.uint8)
    mask[10:40, 20:50] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    write_dataset(tmp_path / "data", 4, side=80)
    (tmp_path / "masks").mkdir()
    for path in (tmp_path / "data/HCOCO/real_images").iterdir():
        inside = np.zeros(np.asarray(Image.open(path)).shape[:2], np.uint8)
        inside[20:50, 20:50] = 255
        Image.fromarray(inside).save(tmp_path / "masks" / f"{path.stem}.png")
    lines = [
        ["harmonize", "--image", "a.png", "--mask", "m.png", "--output", "b.png", "--strip", "s.png"],
        ["prepare", "data", "--check", "--workers", "0"],
        ["prepare", "data", "--output", "store", "--size", "24", "--workers", "0"],
        ["synthesize", "data/HCOCO/real_images", "--masks", "masks", "--output", "made", "--count", "1"],
        ["doctor"],
    ]
    for line, (code, output, errors) in zip(lines, without_extras(lines, tmp_path), strict=True):
        assert code == 0, (line, output, errors)
    assert np.asarray(Image.open(tmp_path / "b.png")).shape == (60, 80, 3)


@pytest.mark.parametrize(
    ("extra", "line"),
    [
        ("train", ["train", "demo", "--output", "run"]),
        ("train", ["train", "demo", "--output", "run", "--verify"]),
        ("train", ["evaluate", "--identity", "--count", "1"]),
        ("train", ["evaluate", "--dataset", "data", "--identity"]),
        ("train", ["synthesize", "builtin", "--output", "made"]),
        ("train", ["synthesize", "photos", "--output", "made", "--workers", "0"]),
        ("demo", ["demo"]),
        ("export", ["export", "--format", "onnx", "--output", "model.onnx"]),
        ("bench", ["bench", "--gate"]),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_missing_extra_is_one_line(extra: str, line: list[str], tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(rng.integers(30, 220, (60, 80, 3), dtype=np.uint8)).save(tmp_path / "photos" / name)
    ((code, output, errors),) = without_extras([line], tmp_path)
    assert code == 2, (output, errors)
    assert errors.startswith("scsco: error: ")
    assert re.search(rf" needs ([\w-]+(, [\w-]+)* and )?[\w-]+: {re.escape(install_line(extra))}\n$", errors)
    assert errors.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"photos"}, "nothing is begun"


def test_require_names_all_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tensorboard", "matplotlib", "skimage"):
        monkeypatch.setitem(sys.modules, module, None)
    for asked, named in (
        (("tensorboard", "h5py"), "tensorboard"),
        (("tensorboard", "h5py", "matplotlib"), "tensorboard and matplotlib"),
        (("tensorboard", "matplotlib", "scikit-image"), "tensorboard, matplotlib and scikit-image"),
    ):
        with pytest.raises(ScscoError) as caught:
            require("training", "train", *asked)
        assert str(caught.value) == f'training needs {named}: pip install "scsco-fast[train]"'
    require("training", "train", "h5py")


def test_the_table_is_what_the_extras_install() -> None:
    for name, package in PACKAGES.items():
        assert name in brought_by(package.extra)
    tools = {"dev", "docs"}
    listed = {extra: brought_by(extra) for extra in PROJECT["optional-dependencies"] if extra not in tools}
    assert set().union(*listed.values()) == set(PACKAGES)
    assert set().union(*listed.values()) <= brought_by("dev")


def test_the_extra_that_a_line_names_brings_what_is_missing() -> None:
    calls = list(required())
    assert len(calls) > 8
    for file, extra, package in calls:
        assert package in brought_by(extra), f"{file}: {extra} does not install {package}"


def test_the_base_is_what_is_imported() -> None:
    base = names(PROJECT["dependencies"])
    assert base == {*info.REQUIRED, "ninja"}
    imported = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module).split(".")[0])
    assert {MODULES.get(name, name) for name in base - {"ninja"}} <= imported
    optional = {module_of(package) for package in PACKAGES}
    assert imported - set(sys.stdlib_module_names) - {MODULES.get(name, name) for name in base} <= {
        *optional,
        "scsco_fast",
        "starlette",  # gradio's
    }


def test_the_page_of_the_installation_says_the_same() -> None:
    page = (ROOT / "docs" / "installation.md").read_text()
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| ")]
    extras = {cells[1].strip(" `"): cells[3] for cells in rows if cells[1].startswith(" `") and len(cells) == 5}
    assert set(extras) == set(PROJECT["optional-dependencies"])
    for extra in set(extras) - {"docs", "dev"}:
        said = set(re.findall(r"[\w-]+", extras[extra].lower().replace("_", "-"))) - set(extras)
        assert said == names([text for text in PROJECT["optional-dependencies"][extra] if "scsco-fast" not in text])
    listed = " ".join(cells[1] for cells in rows if len(cells) == 4)
    assert names(PROJECT["dependencies"]) - {"torch"} <= set(re.findall(r"[\w-]+", listed))
