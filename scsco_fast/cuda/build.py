"""Compiles csrc/ into one shared library: ahead of time for setup.py, or into a cache at first use.

The only place of compiler flags. It needs the standard library alone, because setup.py imports it where there is no
torch. Two targets: "cuda" (nvcc) and "emulated" (the same files as C++, for the CPU, which is how the kernels are
tested without a GPU).
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scsco_fast.cuda.architectures import chosen_architectures
from scsco_fast.cuda.compilers import (
    BuildError,
    cuda_of,
    cxx,
    cxx_version,
    known_to,
    ninja_command,
    nvcc,
    nvcc_version,
    torch_folder,
    torch_version,
)

LIBRARY = {"cuda": "libscsco_fast_cuda.so", "emulated": "libscsco_fast_emulated.so"}
FACTS, LOG = "facts.json", "build.log"
SECONDS = 10  # of a core for one source file and one architecture, on average
JOB_MEMORY = 2**30  # bytes per compiler: 0.43 GiB was the peak of any (CUDA 13.0)
LAST_LINES = 30  # of a failed compilation

# The stable ABI of torch 2.10: what is compiled against any later torch runs with all of them.
COMMON = ("-std=c++20", "-DTORCH_TARGET_VERSION=0x020a000000000000")
COMPILE = {
    # Line numbers cost no register: compute-sanitizer and ncu name the lines of csrc/ by them.
    "cuda": (*COMMON, "-O3", "-DUSE_CUDA", "-lineinfo", "-Xptxas=-v", "-Xcompiler=-fPIC,-fvisibility=hidden"),
    # No contraction into fused multiply-adds: what the emulation computes does not depend on the CPU.
    "emulated": (*COMMON, "-x", "c++", "-O2", "-DSCSCO_EMULATED", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off"),
}
# The library is 68 MB without this, for the default architectures, and 10 MB with it; most are line numbers. nvcc knows
# it since 12.8, but only from 13 on can every driver that runs the library read it.
SMALL, SMALL_SINCE = "--compress-mode=size", 13
# libtorch.so brings libtorch_cuda.so where there is one, so a library linked against a CPU build runs on a CUDA build.
# The CUDA runtime is linked statically (nvcc's default): torch may come with another one. The C++ library comes first,
# since the libtorch.so of some builds (2.11 with CUDA) has copies of a few of its functions, which others have not.
LINK = {
    "cuda": ("-shared", "-Xlinker=--no-as-needed", "-lstdc++", "-ltorch", "-ltorch_cpu"),
    "emulated": ("-shared", "-Wl,--no-as-needed", "-Wl,--no-undefined", "-lstdc++", "-ltorch", "-ltorch_cpu"),
}


@dataclass(frozen=True)
class Plan:
    """What would be compiled, with what, for what.

    Attributes:
        target: "cuda" or "emulated".
        architectures: compute capabilities, such as "8.0" or "9.0+PTX"; none for the emulated library.
        compiler: path of nvcc or of the C++ compiler.
        compiler_version: of that compiler, and of nvcc's host compiler.
        sources: folder of the .cu files.
        include: torch's header folder.
        left_out: of TORCH_CUDA_ARCH_LIST, why, one line for each reason.
    """

    target: str
    architectures: tuple[str, ...]
    compiler: str
    compiler_version: str
    sources: Path
    include: Path
    left_out: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Names the folder in the cache. torch's version is no part of it: the library serves every later one."""
        key = (source_digest(self.target, self.sources), *self.architectures, self.compiler_version)
        return f"{self.target}-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}"

    def facts(self) -> dict[str, str]:
        """What is written beside the library."""
        return {
            "target": self.target,
            "architectures": " ".join(self.architectures) or "the CPU",
            "compiler": self.compiler_version,
            "torch": torch_version(self.include),
            "sources": source_digest(self.target, self.sources),
        }


def plan(
    target: str, *, sources: Path | None = None, include: Path | None = None, architectures: str | None = None
) -> Plan:
    """Find compiler, headers and architectures.

    Args:
        target: "cuda" or "emulated".
        sources: folder of the .cu files; None: this package's.
        include: torch's header folder; None: that of the installed torch.
        architectures: as TORCH_CUDA_ARCH_LIST, which is read if this is None.

    Raises:
        BuildError: something is missing or misspelt.
    """
    if sys.platform != "linux":
        raise BuildError(f"the library is built on Linux only, this is {sys.platform}")
    include = (include or torch_folder() / "include").resolve()
    ninja_command()
    wanted: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    if target == "cuda":
        compiler = nvcc()
        version = nvcc_version(compiler)
        wanted, left_out = chosen_architectures(known_to(compiler), architectures)
    else:
        compiler = cxx(os.environ.get("CXX"))
        version = cxx_version(compiler)
    sources = (sources or source_folder()).resolve()
    if not any(sources.glob("*.cu")):
        raise BuildError(f"{sources} holds no CUDA sources (*.cu)")
    return Plan(target, wanted, compiler, version, sources, include, left_out)


def source_folder() -> Path:
    """csrc/ of this package: beside it when installed, at the top of the repository in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "csrc", package.parent / "csrc"):
        if any(folder.glob("*.cu")):
            return folder
    raise BuildError(f"there are no CUDA sources (*.cu) in {package / 'csrc'}: install scsco-fast again")


def source_digest(target: str, sources: Path) -> str:
    """Hash of this file, with its flags, and of every source: a library with another one is not this package's."""
    digest = hashlib.sha256(target.encode() + Path(__file__).read_bytes())
    for path in sorted(path for path in sources.iterdir() if path.suffix in (".cu", ".cuh", ".h")):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def jobs(files: int) -> tuple[int, str]:
    """How many compilers run at once, and why: MAX_JOBS, else as many as cores and memory allow."""
    asked = os.environ.get("MAX_JOBS", "").strip()
    if asked:
        if not asked.isdecimal() or int(asked) < 1:
            raise BuildError(f"MAX_JOBS is {asked!r}; wanted a whole number, at least 1")
        return int(asked), "MAX_JOBS"
    cores, memory = len(os.sched_getaffinity(0)), _free_memory()
    number = max(1, min(files, cores, memory // JOB_MEMORY))
    return number, f"{cores} cores, {memory / 2**30:.0f} GiB free memory; MAX_JOBS changes it"


def cache_folder() -> Path:
    """SCSCO_CACHE_DIR, else scsco-fast in XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("SCSCO_CACHE_DIR")
    folder = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "scsco-fast"
    return folder.expanduser().absolute()


def build(plan: Plan, say: Callable[[str], object] = print) -> Path:
    """The library of a plan in the cache, compiled unless it is there already.

    Of several processes that ask at once one compiles and the others wait for it. The library takes its place whole or
    not at all.

    Raises:
        BuildError: the compiler's last lines and the log's path, or why the cache cannot be written.
    """
    folder = cache_folder() / plan.name
    library = folder / LIBRARY[plan.target]
    if library.exists():
        return library
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_suffix(".lock"), say):
            if not library.exists():
                _build_in_cache(plan, folder, say)
    except OSError as error:
        where = f"the library's cache {folder.parent} cannot be written ({error.strerror or error})"
        raise BuildError(f"{where}; set SCSCO_CACHE_DIR to another folder") from error
    return library


def compile_library(plan: Plan, folder: Path, log: Path, say: Callable[[str], object] = print) -> Path:
    """Compile and link in `folder`; the library's facts stand beside it."""
    files = sorted(plan.sources.glob("*.cu"))
    number, reason = jobs(len(files))
    facts = plan.facts()
    for line in plan.left_out:
        say(line)
    minutes = max(1, round(SECONDS * len(files) * max(1, len(plan.architectures)) / number / 60))
    work = f"compiling {len(files)} files for {facts['architectures']}, about {minutes} min"
    say(f"{work}, {number} at a time ({reason})")
    say(f"compiler: {plan.compiler} ({plan.compiler_version}), torch {facts['torch']} headers, log: {log}")
    (folder / "build.ninja").write_text(_ninja_file(plan, files))
    command = [*ninja_command(), "-C", str(folder), "-j", str(number)]
    with log.open("w") as written:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        assert process.stdout is not None
        for line in process.stdout:
            written.write(line)
            if line.startswith("["):
                say(line.rstrip())
    if process.wait() != 0:
        lines = log.read_text().splitlines()
        headline = f"the {plan.target} library cannot be built: {Path(plan.compiler).name} failed; the whole log: {log}"
        raise BuildError("\n".join([headline, *_last_lines(lines)]))
    (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n")
    return folder / LIBRARY[plan.target]


def _build_in_cache(plan: Plan, folder: Path, say: Callable[[str], object]) -> None:
    for left_over in folder.parent.glob(f".{plan.name}.*"):  # of a build that was killed; nobody else holds the lock
        shutil.rmtree(left_over, ignore_errors=True)
    log = folder.with_suffix(".log")
    temporary = Path(tempfile.mkdtemp(prefix=f".{plan.name}.", dir=folder.parent))
    try:
        library = compile_library(plan, temporary, log, say)
        done = temporary / "done"
        done.mkdir()
        for path in (library, temporary / FACTS):
            path.rename(done / path.name)
        log.replace(done / LOG)
        done.chmod(0o755)
        done.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _locked(path: Path, say: Callable[[str], object]) -> Iterator[None]:
    """An exclusive lock that the system frees when its holder ends, however it ends."""
    import fcntl

    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process is building {path.stem}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _ninja_file(plan: Plan, files: list[Path]) -> str:
    small = [SMALL] if plan.target == "cuda" and cuda_of(plan.compiler_version) >= SMALL_SINCE else []
    flags = [*COMPILE[plan.target], *small, *_code_flags(plan.architectures), "-isystem", str(plan.include)]
    # Without an architecture nvcc links an empty cubin of its default one into the library.
    link_flags = [f"-L{torch_folder() / 'lib'}", *LINK[plan.target], *_code_flags(plan.architectures)]
    objects = " ".join(f"{path.stem}.o" for path in files)
    lines = [
        *("rule compile", f"  command = {_shell(plan.compiler, *flags)} -c $in -o $out"),
        *("  description = $in", "rule link"),
        f"  command = {_shell(plan.compiler)} $in -o $out {_shell(*link_flags)}",
        "  description = $out",
        *(f"build {path.stem}.o: compile {_ninja_path(path)}" for path in files),
        f"build {LIBRARY[plan.target]}: link {objects}",
        "",
    ]
    return "\n".join(lines)


def _code_flags(architectures: tuple[str, ...]) -> Iterator[str]:
    """nvcc's options for these entries."""
    for entry in architectures:
        number = entry.removesuffix("+PTX").replace(".", "")
        yield f"-gencode=arch=compute_{number},code=sm_{number}"
        if entry.endswith("+PTX"):
            yield f"-gencode=arch=compute_{number},code=compute_{number}"


def _shell(*words: str) -> str:
    return shlex.join(words).replace("$", "$$")


def _ninja_path(path: Path) -> str:
    return re.sub(r"([$ :])", r"$\1", str(path))


def _last_lines(lines: list[str]) -> list[str]:
    """The end of the log without ninja's own words and the command line, which is long."""
    words = ("[", "ninja: Entering", "ninja: build stopped", "ptxas info")
    return [line for line in lines if not line.startswith(words) and " -DTORCH_TARGET_VERSION" not in line][
        -LAST_LINES:
    ]


def _free_memory() -> int:
    """Bytes that processes may still use: the machine's, or the container's limit."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    limits = [int(found[1]) * 1024] if found else [JOB_MEMORY]
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdecimal():
        limits.append(int(text))
    return min(limits)
