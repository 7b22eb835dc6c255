"""What the tests of the compiled library share: plans, and what a library needs of others (its undefined symbols)."""

import re
import subprocess
from pathlib import Path

import pytest

from scsco_fast.cuda import build, compilers

TINY = Path(__file__).parent / "cuda" / "tiny"
# Two of the default five, because each costs 90 s of a core; benchmarks/cuda_machine_code.csv has all of them.
ARCHITECTURES = "8.0;9.0"


def missing(target: str) -> str | None:
    """Why a library cannot be built on this machine, or None."""
    try:
        build.plan(target, sources=TINY)
    except compilers.BuildError as error:
        return str(error)
    return None


needs_nvcc = pytest.mark.skipif(missing("cuda") is not None, reason=f"builds the CUDA library: {missing('cuda')}")
needs_cxx = pytest.mark.skipif(missing("emulated") is not None, reason=f"compiles C++: {missing('emulated')}")


def plan_of(which: str, target: str, include: Path | None = None) -> build.Plan:
    """The plan of the "tiny" or the "real" library, for those of `ARCHITECTURES` that nvcc knows, or for the CPU."""
    sources = TINY if which == "tiny" else build.source_folder()
    return build.plan(target, sources=sources, include=include, architectures=ARCHITECTURES)


# Of torch only the C functions of the stable ABI; C++ only of the standard library and its runtime.
TORCH = re.compile(r"(aoti_torch|torch)_[a-z0-9_]+")
STANDARD = re.compile(r"_ZN?K?[RO]?(St|Sa|So|Si|Ss)|_ZN[KRO]*(St|S[aoisd])|_ZT[ISV]N?(St|10__cxxabiv1)|_Z(dl|da|nw|na)")
VERSIONED = re.compile(r"@+(GLIBC|GLIBCXX|CXXABI|GCC)_")
LINKER = {"_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "__gmon_start__", "__cxa_finalize"}
NEEDED = re.compile(r"lib(torch|torch_cpu|stdc\+\+|gcc_s|c|m|dl|rt|pthread)\.so[.0-9]*|ld-linux[-_a-z0-9]*\.so[.0-9]*")


def undefined(library: Path) -> set[str]:
    """Names, with @VERSION where the symbol has one."""
    text = subprocess.run(["readelf", "-W", "--dyn-syms", library], capture_output=True, text=True, check=True).stdout
    rows = (line.split() for line in text.splitlines())
    return {row[7] for row in rows if len(row) >= 8 and row[6] == "UND"}


def needed(library: Path) -> list[str]:
    text = subprocess.run(["readelf", "-W", "-d", library], capture_output=True, text=True, check=True).stdout
    return re.findall(r"\(NEEDED\).*\[(.+)\]", text)


def unstable(symbols: set[str]) -> set[str]:
    """Symbols that another torch, or another Python, need not have."""
    return {symbol for symbol in symbols if not _is_stable(symbol)}


def _is_stable(symbol: str) -> bool:
    name = symbol.split("@")[0]
    if name.startswith("_Z"):
        return STANDARD.match(name) is not None and VERSIONED.search(symbol) is not None
    return bool(TORCH.fullmatch(name) or VERSIONED.search(symbol)) or name in LINKER


def torch_functions(symbols: set[str]) -> set[str]:
    return {name for name in (symbol.split("@")[0] for symbol in symbols) if TORCH.fullmatch(name)}


def declared(include: Path) -> set[str]:
    """The C functions that a header folder of torch declares."""
    headers = ["csrc/inductor/aoti_torch/c/shim.h", "csrc/stable/c/shim.h"]
    return {
        name for header in headers for name in re.findall(r"\b(\w+)\s*\(", (include / "torch" / header).read_text())
    }
