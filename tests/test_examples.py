"""Every example in a docstring runs and prints what it says."""

import doctest
import importlib
import os
import pkgutil
from pathlib import Path

import pytest

import scsco_fast
import scsco_fast.kernels
import scsco_fast.train

PACKAGES = (scsco_fast, scsco_fast.kernels, scsco_fast.train)
MODULES = sorted(
    {
        module.name
        for package in PACKAGES
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if not module.name.endswith("__main__")
    }
)


def test_modules_are_found() -> None:
    assert {"scsco_fast.ops._region_norm", "scsco_fast.train.presets.demo"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str, tmp_path: Path) -> None:
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        result = doctest.testmod(importlib.import_module(name), verbose=False)
    finally:
        os.chdir(before)
    assert result.failed == 0
