"""Finds what compiles csrc/: nvcc, the C++ compiler, ninja and torch's headers, none of which is imported."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

USUAL_NVCC = "/usr/local/cuda/bin/nvcc"
CPU_ONLY = "this torch is a CPU build, which cannot load it"


class BuildError(RuntimeError):
    """A library cannot be built. The first line of the message says why; compiler output may follow it."""

    @property
    def headline(self) -> str:
        return str(self).splitlines()[0]


def torch_folder() -> Path:
    """Where torch is installed; it is not imported."""
    found = importlib.util.find_spec("torch")
    if found is None or not found.submodule_search_locations:
        raise BuildError(
            "torch, whose headers are needed, is not to be seen: install it, and build with --no-build-isolation"
        )
    return Path(found.submodule_search_locations[0])


def torch_version(include: Path) -> str:
    """Of a header folder."""
    header = include / "torch" / "headeronly" / "version.h"
    found = re.search(r'define TORCH_VERSION\s*\\?\s*"([^"]+)"', header.read_text()) if header.exists() else None
    if found is None:
        raise BuildError(f"{include} holds no headers of torch 2.10 or later: pip install 'torch>=2.10'")
    return found[1]


def torch_is_cpu_only() -> bool:
    """Whether the installed torch was built without CUDA, so that it cannot load the library; it is not imported."""
    version = torch_folder() / "version.py"
    found = re.search(r"^cuda\b[^=\n]*=\s*(.*)$", version.read_text(), re.MULTILINE) if version.exists() else None
    return found is not None and found[1].strip() == "None"


def cuda_of(compiler_version: str) -> int:
    """The major version of "nvcc 13.0.88 with g++ 12.2.0"; 0 if it is of unknown version."""
    found = re.match(r"nvcc (\d+)\.", compiler_version)
    return int(found[1]) if found else 0


def ninja_command() -> list[str]:
    """The ninja package of this Python, else the program on the PATH."""
    if importlib.util.find_spec("ninja"):
        return [sys.executable, "-m", "ninja"]
    program = shutil.which("ninja")
    if program is None:
        raise BuildError("ninja is missing: pip install ninja")
    return [program]


def nvcc() -> str:
    """Its path: in CUDA_HOME, in CUDA_PATH, on the PATH, or where it usually is."""
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")):
        if home and os.access(Path(home) / "bin" / "nvcc", os.X_OK):
            return str(Path(home) / "bin" / "nvcc")
    found = shutil.which("nvcc") or shutil.which(USUAL_NVCC)
    if found is None:
        raise BuildError("nvcc is not found: install the CUDA toolkit, or set CUDA_HOME to its folder")
    return found


def cxx(wanted: str | None) -> str:
    """The C++ compiler's path; g++ where none is wanted."""
    found = shutil.which(wanted or "g++")
    if found is None:
        raise BuildError(f"the C++ compiler {wanted or 'g++'} is not found: install it, or set CXX to another")
    return found


def nvcc_version(compiler: str) -> str:
    """Of nvcc, and of the C++ compiler that it calls."""
    return f"nvcc {_version(compiler, '--version', r'V([0-9.]+)')} with {_host_compiler()}"


def _host_compiler() -> str:
    return cxx_version(cxx(os.environ.get("NVCC_CCBIN")))


def cxx_version(compiler: str) -> str:
    """ "g++ 12.2.0"."""
    return f"{Path(compiler).name} {_version(compiler, '-dumpfullversion', r'([0-9.]+)')}"


def _version(program: str, option: str, pattern: str) -> str:
    found = re.search(pattern, _output(program, option))
    return found[1] if found else "of unknown version"


def known_to(nvcc: str) -> list[tuple[int, int]]:
    """The compute capabilities that an nvcc compiles for."""
    found = re.findall(r"compute_(\d+)(\d)\b", _output(nvcc, "--list-gpu-arch"))
    if not found:
        raise BuildError(f"{nvcc} --list-gpu-arch names no architecture: the compiler does not work")
    return sorted((int(major), int(minor)) for major, minor in found)


def _output(program: str, option: str) -> str:
    try:
        return subprocess.run([program, option], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(f"{program} {option} failed ({error}): the compiler does not work") from error
