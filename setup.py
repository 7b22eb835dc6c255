"""Maps csrc/, kernels/, train/ and benchmarks/ into the package's namespace, and builds csrc/ where it can.

All else is in pyproject.toml. No compiler and no torch are needed: without them the package is pure Python, and its
CUDA library is built at first use. SCSCO_BUILD_CUDA: auto (build now if nvcc, ninja and a torch with CUDA are at hand,
and go on without if that fails), 0 (do not), 1 (build now or fail, beside a CPU build of torch for other machines).
"""

import os
import shutil
import sys
from pathlib import Path

import setuptools
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

if int(setuptools.__version__.split(".")[0]) < 77:  # a new venv of Python 3.11 has 65, which --no-build-isolation takes
    found = f"setuptools {setuptools.__version__} is installed, 77 or newer is needed"
    sys.exit(f"scsco-fast: {found}: pip install -U setuptools, or leave --no-build-isolation out")

from setuptools.command.bdist_wheel import bdist_wheel  # older ones have no such module

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # of these sources, not of an older version that is installed

from scsco_fast.cuda import build, compilers  # noqa: E402, they import no torch

MAPPED = {"scsco_fast.kernels": "kernels", "scsco_fast.train": "train", "scsco_fast.benchmarks": "benchmarks"}
BUILT = "scsco_fast/cuda/built"


def packages_of(name: str, folder: str) -> list[str]:
    """The package `name` that lives in `folder`, and its subpackages."""
    return [name, *(f"{name}.{sub}" for sub in find_packages(folder))]


def say(text: str) -> None:
    sys.stderr.write(f"scsco-fast: {text}\n")


choice = os.environ.get("SCSCO_BUILD_CUDA", "auto") or "auto"
if choice not in ("auto", "0", "1"):
    sys.exit(f"scsco-fast: SCSCO_BUILD_CUDA is {choice!r}; wanted auto, 0 or 1")


class BuildLibrary(build_ext):
    """Compiles csrc/ into scsco_fast/cuda/built: of the wheel, or of the checkout for an editable install."""

    def run(self) -> None:
        self.outputs: list[str] = []
        try:
            if compilers.torch_is_cpu_only():
                say(f"the CUDA library is for other machines: {compilers.CPU_ONLY}. SCSCO_BUILD_CUDA=0 leaves it out")
            plan = build.plan("cuda", sources=ROOT / "csrc")
            temporary = Path(self.build_temp).resolve() / plan.name
            temporary.mkdir(parents=True, exist_ok=True)
            library = build.compile_library(plan, temporary, temporary / build.LOG, say)
        except compilers.BuildError as error:
            if choice == "1":
                sys.exit(f"scsco-fast: SCSCO_BUILD_CUDA=1: {error}")
            say(f"the CUDA library is not built now; it is at first use, or by scsco build. {error}")
            return
        folder = (ROOT if self.inplace else Path(self.build_lib)) / BUILT
        folder.mkdir(parents=True, exist_ok=True)
        for path in (library, temporary / build.FACTS):
            new = folder / f".{path.name}.new"
            shutil.copyfile(path, new)
            new.replace(folder / path.name)  # a process that has the old library loaded keeps it
            self.outputs.append(str(folder / path.name))
        say(f"built {folder / library.name}")

    def get_outputs(self) -> list[str]:
        return list(getattr(self, "outputs", []))

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return []


class Wheel(bdist_wheel):
    """The library needs no Python of its own: any Python 3, this platform."""

    def get_tag(self) -> tuple[str, str, str]:
        *_, platform = super().get_tag()
        return ("py3", "none", "any" if self.root_is_pure else platform)


def wanted() -> bool:
    """Whether this installation builds the library. Decided early: it makes a wheel one of this platform."""
    if choice == "0":
        return False
    try:
        if choice == "auto" and compilers.torch_is_cpu_only():
            say(f"the CUDA library is not built: {compilers.CPU_ONLY}. SCSCO_BUILD_CUDA=1 builds it for other machines")
            return False
        build.plan("cuda", sources=ROOT / "csrc")
    except compilers.BuildError as error:
        if choice == "1":
            sys.exit(f"scsco-fast: SCSCO_BUILD_CUDA=1: {error}")
        say(f"the CUDA library is not built now, but at first use: {error}")
        return False
    return True


setup(
    packages=[
        *find_packages(include=["scsco_fast", "scsco_fast.*"]),
        *(package for name, folder in MAPPED.items() for package in packages_of(name, folder)),
        "scsco_fast.csrc",
    ],
    package_dir={"scsco_fast": "scsco_fast", **MAPPED, "scsco_fast.csrc": "csrc"},
    package_data={
        "scsco_fast": ["py.typed", "data/*.csv", "models/*.safetensors"],
        "scsco_fast.kernels.bain_attention": ["*.txt"],
        "scsco_fast.csrc": ["*.cu", "*.cuh", "*.h"],
    },
    ext_modules=[Extension("scsco_fast.cuda.built", sources=[])] if wanted() else [],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": Wheel},
)
