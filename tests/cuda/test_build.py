"""build.py: what is chosen, what is compiled once, what is said when it cannot be, and what the result depends on."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from compiled import NEEDED, TINY, declared, missing, needed, needs_cxx, plan_of, torch_functions, undefined, unstable

from scsco_fast import cli
from scsco_fast.cuda import architectures, build, compilers, resources

OTHER_TORCH = Path(os.environ.get("SCSCO_OTHER_TORCH", "not set"))
EVERY = [
    pytest.param(("tiny", "emulated"), id="tiny-emulated"),
    pytest.param(("tiny", "cuda"), id="tiny-cuda", marks=pytest.mark.slow),
    pytest.param(("real", "emulated"), id="emulated", marks=pytest.mark.slow),
    pytest.param(("real", "cuda"), id="cuda", marks=pytest.mark.slow),
]
every_library = pytest.mark.parametrize("compiled", EVERY, indirect=True)
cuda_libraries = pytest.mark.parametrize("compiled", [EVERY[1], EVERY[3]], indirect=True)

USE_TINY = (
    "import sys, torch; torch.ops.load_library(sys.argv[1]); print(torch.ops.scsco_fast_tiny.double(torch.ones(2)))"
)
BUILD_TINY = (
    "import sys; from pathlib import Path; from scsco_fast.cuda import build; "  # which imports no torch: quick
    "print(build.build(build.plan('emulated', sources=Path(sys.argv[1]))))"
)


def script(path: Path, text: str) -> Path:
    """An executable shell script."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def counting_compiler(folder: Path, before: str = "") -> Path:
    """g++ that writes a line into the file `compilations` for each file it compiles."""
    counted = f'case "$*" in *" -c "*) {before} echo "$*" >> {folder}/compilations;; esac'
    return script(folder / "c++", f'{counted}\nexec g++ "$@"')


def start_build(compiler: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILD_TINY, str(TINY)]
    environment = {**os.environ, "CXX": str(compiler)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


# What nvcc of these versions prints for --list-gpu-arch.
CUDA_12_4 = [(5, 0), (5, 2), (6, 0), (7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0)]
CUDA_12_8 = [*CUDA_12_4, (10, 0), (10, 1), (12, 0)]
CUDA_13 = [(7, 5), (8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 3), (11, 0), (12, 0), (12, 1)]


def architectures_for(known: list[tuple[int, int]], text: str | None = None) -> tuple[str, ...]:
    return architectures.chosen_architectures(known, text)[0]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("8.0", "8.0"),
        ("8.0;9.0+PTX", "8.0 9.0+PTX"),
        (" 7.5 8.6, 8.6;12.0 ", "7.5 8.6 12.0"),
        ("9.0a;10.0f", "9.0a 10.0f"),
        ("Hopper", "9.0+PTX"),
        ("Turing;Ampere Ada", "7.5+PTX 8.0 8.6+PTX 8.9+PTX"),
        ("Ampere+Tegra", "8.7"),
        ("Blackwell;Blackwell+Tegra", "10.0 10.3 12.0 12.1+PTX 11.0"),
        ("Ampere;8.6;8.0", "8.0 8.6+PTX"),
    ],
)
def test_architectures(text: str, wanted: str) -> None:
    assert architectures.chosen_architectures(CUDA_13, text) == (tuple(wanted.split()), ())


def test_names_of_architectures_are_those_of_torch() -> None:
    """What they stand for changes from one release to the next; every name that torch's own builds take is one here."""
    source = (compilers.torch_folder() / "utils" / "cpp_extension.py").read_text()
    names = set(re.findall(r"\('([A-Z][a-z]+(?:\+Te[a-z]+)?)', '[0-9.;+PTX]+'\)", source))
    assert {"Turing", "Hopper", "Ampere+Tegra"} <= names
    assert names <= architectures.NAMED_ARCHITECTURES.keys()


@pytest.mark.parametrize(
    ("known", "text", "wanted", "left_out"),
    [
        (CUDA_13, "6.0 7.0 7.5 8.0", "7.5 8.0", ["6.0 7.0 of {}: the kernels need 7.5 or newer"]),
        (CUDA_12_4, "Pascal;Volta;Ampere", "8.0 8.6+PTX", ["6.0 6.1+PTX 7.0+PTX of {}: the kernels need 7.5 or newer"]),
        (CUDA_12_4, "9.0;12.0+PTX", "9.0", ["12.0+PTX of {}: this nvcc does not know it"]),
        (CUDA_12_8, "Blackwell", "10.0 12.0", ["10.3 12.1+PTX of {}: this nvcc does not know it"]),
        (CUDA_12_4, "10.0a;9.0a", "9.0a", ["10.0a of {}: this nvcc does not know it"]),
        (
            CUDA_12_4,
            "5.0;8.0;12.0",
            "8.0",
            ["5.0 of {}: the kernels need 7.5 or newer", "12.0 of {}: this nvcc does not know it"],
        ),
    ],
)
def test_architectures_that_are_left_out(
    known: list[tuple[int, int]], text: str, wanted: str, left_out: list[str]
) -> None:
    reasons = tuple(line.format("TORCH_CUDA_ARCH_LIST left out") for line in left_out)
    assert architectures.chosen_architectures(known, text) == (tuple(wanted.split()), reasons)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Rubin", "has 'Rubin'; wanted capabilities such as '8.0;9.0+PTX', 'Hopper', or 'native'"),
        ("hopper", "has 'hopper'"),
        ("Hopper+PTX", "has 'Hopper+PTX'"),
        ("All", "has 'All'"),
        ("8.0;sm_90", "has 'sm_90'"),
        ("80", "has '80'"),
        ("8.0+ptx", "has '8.0+ptx'"),
        ("", "has ''"),
        ("7.0", "7.0 of TORCH_CUDA_ARCH_LIST left out: the kernels need 7.5 or newer; nothing is left to compile for"),
        (
            "Pascal;13.0",
            "6.0 6.1+PTX of TORCH_CUDA_ARCH_LIST left out: the kernels need 7.5 or newer, "
            "13.0 of TORCH_CUDA_ARCH_LIST left out: this nvcc does not know it; nothing is left to compile for",
        ),
        ("native", "is 'native', but nvidia-smi shows no GPU; name them: '8.0;9.0'"),
    ],
)
def test_bad_architectures(text: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(compilers.BuildError, match=re.escape(message)) as error:
        architectures.chosen_architectures(CUDA_13, text)
    assert "\n" not in str(error.value)


def test_native_is_the_gpus_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    script(tmp_path / "nvidia-smi", "echo 9.0; echo 6.1; echo 8.6; echo 9.0")
    assert architectures_for(CUDA_13, "native;12.0") == ("8.6", "9.0", "12.0")
    assert architectures_for(CUDA_13) == ("8.6", "9.0")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    assert architectures_for(CUDA_13) == ("8.0",)


def test_a_gpu_that_nvcc_does_not_know_gets_ptx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    script(tmp_path / "nvidia-smi", "echo 12.0; echo 9.0; echo 8.0")
    assert architectures_for(CUDA_12_4) == ("8.0", "9.0+PTX")
    script(tmp_path / "nvidia-smi", "echo 10.3; echo 12.1")
    assert architectures_for(CUDA_12_8) == ("10.1+PTX", "12.0+PTX")
    script(tmp_path / "nvidia-smi", "echo 7.5")
    with pytest.raises(compilers.BuildError, match=r"a GPU has compute capability 7\.5, which this nvcc no longer"):
        architectures_for(CUDA_13[1:])


@pytest.mark.parametrize(
    ("known", "wanted"),
    [
        (CUDA_12_4, "7.5 8.0 9.0+PTX"),
        (CUDA_12_8, "7.5 8.0 9.0 10.0 12.0+PTX"),
        (CUDA_13, "7.5 8.0 9.0 10.0 12.0+PTX"),
    ],
)
def test_the_default_is_what_nvcc_knows(
    known: list[tuple[int, int]], wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert architectures.chosen_architectures(known) == (tuple(wanted.split()), ())


@pytest.mark.parametrize(
    ("target", "compiler_version", "small"),
    [
        ("cuda", "nvcc 13.0.88 with g++ 12.2.0", True),
        ("cuda", "nvcc 14.1.0 with g++ 15", True),
        ("cuda", "nvcc 12.9.86 with g++ 12.2.0", False),
        ("cuda", "nvcc of unknown version with g++ 12.2.0", False),
        ("emulated", "g++ 13.2.0", False),
    ],
)
def test_code_is_compressed_where_drivers_can_read_it(
    target: str, compiler_version: str, small: bool, tmp_path: Path
) -> None:
    plan = build.Plan(target, (), "compiler", compiler_version, TINY, tmp_path)
    assert (" --compress-mode=size " in build._ninja_file(plan, [])) == small


def test_what_nvcc_knows(tmp_path: Path) -> None:
    nvcc = script(tmp_path / "nvcc", '[ "$1" = --list-gpu-arch ] && printf "compute_%s\\n" 75 90 100 120')
    assert compilers.known_to(str(nvcc)) == [(7, 5), (9, 0), (10, 0), (12, 0)]
    script(tmp_path / "nvcc", "true")
    with pytest.raises(compilers.BuildError, match="--list-gpu-arch names no architecture: the compiler does not work"):
        compilers.known_to(str(nvcc))


@pytest.mark.parametrize(
    ("text", "cpu_only"),
    [
        ("cuda: Optional[str] = None\nhip: Optional[str] = None\n", True),
        ("cuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n", False),
        ("cuda = None\n", True),
        ("from typing import Optional\n", False),
    ],
)
def test_a_cpu_build_of_torch_is_seen(
    text: str, cpu_only: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilers, "torch_folder", lambda: tmp_path)
    (tmp_path / "version.py").write_text(text)
    assert compilers.torch_is_cpu_only() == cpu_only


def test_torch_says_the_same_of_itself() -> None:
    import torch

    assert compilers.torch_is_cpu_only() == (torch.version.cuda is None)


@pytest.mark.parametrize(
    ("built_for", "capability", "served"),
    [
        ("8.0", (8, 0), True),
        ("8.0", (8, 9), True),
        ("8.6", (8, 0), False),
        ("8.0", (9, 0), False),
        ("8.0+PTX", (9, 0), True),
        ("7.5+PTX", (7, 5), True),
        ("7.5+PTX", (8, 0), False),
        ("9.0+PTX", (8, 0), False),
        ("7.5 9.0+PTX", (12, 0), True),
        ("10.0a", (10, 3), False),
        ("10.0f", (10, 3), True),
        ("10.0", (10, 3), True),
        ("10.0 12.0", (11, 0), False),
        ("10.0 12.0+PTX", (12, 1), True),
    ],
)
def test_which_gpus_a_library_serves(built_for: str, capability: tuple[int, int], served: bool) -> None:
    assert architectures.serves(built_for, capability) == served


def test_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAX_JOBS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16))
    monkeypatch.setattr(build, "_free_memory", lambda: 9 * 2**29)
    assert build.jobs(8) == (4, "16 cores, 4 GiB free memory; MAX_JOBS changes it")
    assert build.jobs(3)[0] == 3
    monkeypatch.setattr(build, "_free_memory", lambda: 2**20)
    assert build.jobs(8)[0] == 1
    monkeypatch.setenv("MAX_JOBS", "5")
    assert build.jobs(8) == (5, "MAX_JOBS")


@pytest.mark.parametrize("value", ["0", "-2", "two", "1.5"])
def test_bad_jobs(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_JOBS", value)
    with pytest.raises(compilers.BuildError, match=f"MAX_JOBS is '{value}'; wanted a whole number, at least 1"):
        build.jobs(8)


def test_free_memory_is_sane() -> None:
    assert 2**20 < build._free_memory() < 2**50


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(target: str = "cuda", **options: Path) -> str:
        with pytest.raises(compilers.BuildError) as error:
            build.plan(target, **{"sources": TINY, **options})
        assert "\n" not in str(error.value)
        return str(error.value)

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(compilers, "USUAL_NVCC", str(tmp_path / "nvcc"))
    assert reason() == "nvcc is not found: install the CUDA toolkit, or set CUDA_HOME to its folder"
    assert reason("emulated") == "the C++ compiler g++ is not found: install it, or set CXX to another"
    script(tmp_path / "nvcc", "exit 1")
    assert "nvcc --version failed" in reason()
    script(tmp_path / "g++", "echo 12.2.0")
    assert reason("emulated", sources=tmp_path) == f"{tmp_path} holds no CUDA sources (*.cu)"
    with pytest.raises(compilers.BuildError, match=r"holds no headers of torch 2\.10 or later"):
        build.plan("emulated", sources=TINY, include=tmp_path).facts()
    monkeypatch.setattr(compilers.importlib.util, "find_spec", lambda name: None)
    assert reason("emulated").startswith("torch, whose headers are needed, is not to be seen")
    assert reason("emulated", include=tmp_path) == "ninja is missing: pip install ninja"
    monkeypatch.setattr(sys, "platform", "win32")
    assert reason() == "the library is built on Linux only, this is win32"


@needs_cxx
def test_what_a_build_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = shutil.copytree(TINY, tmp_path / "csrc")
    (sources / "header.cuh").write_text("")
    (sources / "notes.txt").write_text("")
    names = [build.plan("emulated", sources=sources).name]

    def changed() -> bool:
        names.append(build.plan("emulated", sources=sources).name)
        return names[-1] != names[-2]

    assert not changed()
    (sources / "notes.txt").write_text("no source")
    assert not changed()
    (sources / "header.cuh").write_text("// another")
    assert changed()
    (sources / "second.cu").write_text("")
    assert changed()
    shutil.copy(build.__file__, tmp_path / "build.py")
    monkeypatch.setattr(build, "__file__", str(tmp_path / "build.py"))
    assert not changed()
    with (tmp_path / "build.py").open("a") as file:
        file.write("# another flag\n")
    assert changed()
    monkeypatch.setattr(build, "cxx_version", lambda _: "g++ 99")
    assert changed()
    plan = build.plan("emulated", sources=sources, include=tmp_path)
    assert plan.name == names[-1], "torch's version is no part of it"


def test_flags_stand_in_the_file_that_the_digest_reads() -> None:
    """Elsewhere a changed flag would leave the library of the old one in use."""
    files = Path(build.__file__).parent.glob("*.py")
    assert [path.name for path in files if "-gencode" in path.read_text()] == [Path(build.__file__).name]


@needs_cxx
def test_a_build_is_made_once(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAX_JOBS", raising=False)
    monkeypatch.setenv("CXX", str(counting_compiler(tmp_path)))
    said: list[str] = []
    plan = plan_of("tiny", "emulated")
    library = build.build(plan, said.append)
    assert build.build(plan, said.append) == library
    assert len((tmp_path / "compilations").read_text().splitlines()) == 1
    assert said[0].startswith("compiling 1 files for the CPU, about 1 min, 1 at a time (")
    assert sorted(path.name for path in library.parent.iterdir()) == [build.LOG, build.FACTS, library.name]
    assert sorted(path.name for path in cache.iterdir()) == [plan.name, f"{plan.name}.lock"]
    facts = json.loads((library.parent / build.FACTS).read_text())
    assert facts == plan.facts()
    assert facts["torch"].split("+")[0] == compilers.torch_version(compilers.torch_folder() / "include").split("+")[0]
    run = subprocess.run([sys.executable, "-c", USE_TINY, library], capture_output=True, text=True, check=True)
    assert run.stdout == "tensor([2., 2.])\n"


@needs_cxx
def test_two_processes_make_one_build(cache: Path, tmp_path: Path) -> None:
    compiler = counting_compiler(tmp_path, "sleep 2;")
    both = [start_build(compiler) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert outputs[0].splitlines()[-1] == outputs[1].splitlines()[-1]
    assert len((tmp_path / "compilations").read_text().splitlines()) == 1
    assert sum("another process is building" in output for output in outputs) == 1


@needs_cxx
def test_a_killed_build_leaves_nothing_half_done(cache: Path, tmp_path: Path) -> None:
    slow = start_build(counting_compiler(tmp_path, "sleep 2;"))
    until = time.monotonic() + 30
    while not list(cache.glob(".emulated-*/build.ninja")) and time.monotonic() < until:
        time.sleep(0.05)
    slow.send_signal(signal.SIGKILL)
    slow.communicate()
    assert list(cache.glob(".emulated-*"))
    assert not list(cache.glob("emulated-*/*"))
    again = start_build(counting_compiler(tmp_path))
    output, _ = again.communicate(timeout=60)
    assert again.returncode == 0, output
    assert len(list(cache.glob("emulated-*/*.so"))) == 1
    assert not list(cache.glob(".emulated-*")), "what the killed build left is gone"


@pytest.mark.parametrize(
    "target", ["emulated", pytest.param("cuda", marks=[pytest.mark.slow, pytest.mark.skipif("missing('cuda')")])]
)
@needs_cxx
def test_a_compile_error_is_readable(target: str, cache: Path, tmp_path: Path) -> None:
    sources = shutil.copytree(TINY, tmp_path / "csrc")
    with (sources / "double.cu").open("a") as file:
        file.write("int broken() { return no_such_name; }\n")
    with pytest.raises(compilers.BuildError) as error:
        build.build(build.plan(target, sources=sources, architectures="8.0"), lambda _: None)
    lines = str(error.value).splitlines()
    (log,) = cache.glob("*.log")
    compiler = {"emulated": "g++", "cuda": "nvcc"}[target]
    assert lines[0] == f"the {target} library cannot be built: {compiler} failed; the whole log: {log}"
    assert error.value.headline == lines[0]
    assert any("no_such_name" in line for line in lines[1:])
    assert len(lines) <= 1 + build.LAST_LINES
    assert not any("-DTORCH_TARGET_VERSION" in line for line in lines)
    assert "-DTORCH_TARGET_VERSION" in log.read_text(), "the log has the command"
    assert not list(cache.glob(f"*{target}*/")), "neither a folder nor a temporary one"


@needs_cxx
def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SCSCO_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(compilers.BuildError) as error:
        build.build(plan_of("tiny", "emulated"))
    message = f"the library's cache {tmp_path / 'file'} cannot be written (File exists); set SCSCO_CACHE_DIR"
    assert str(error.value).startswith(message)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SCSCO_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert build.cache_folder() == tmp_path / ".cache" / "scsco-fast"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert build.cache_folder() == tmp_path / "xdg" / "scsco-fast"
    monkeypatch.setenv("SCSCO_CACHE_DIR", "~/mine")
    assert build.cache_folder() == tmp_path / "mine"


@needs_cxx
def test_paths_with_odd_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCSCO_CACHE_DIR", str(tmp_path / "a $b: 'c'"))
    sources = shutil.copytree(TINY, tmp_path / "s $x: y")
    assert build.build(build.plan("emulated", sources=sources), lambda _: None).exists()


@needs_cxx
def test_the_command(cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(build, "source_folder", lambda: TINY)
    assert cli.main(["build", "--emulated"]) == 0
    assert "libscsco_fast_emulated.so (" in capsys.readouterr().out
    monkeypatch.setenv("MAX_JOBS", "none")
    assert cli.main(["build", "--emulated"]) == 0, "nothing is compiled"
    shutil.rmtree(cache)
    assert cli.main(["build", "--emulated"]) == 1
    assert capsys.readouterr().err == "scsco: error: MAX_JOBS is 'none'; wanted a whole number, at least 1\n"


@pytest.mark.parametrize("cpu_only", [True, False])
def test_the_command_beside_a_cpu_build_of_torch(
    cpu_only: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = build.Plan("cuda", ("6.0",), "nvcc", "nvcc 13.0", TINY, tmp_path)
    monkeypatch.setattr(build, "plan", lambda target: plan)
    monkeypatch.setattr(compilers, "torch_is_cpu_only", lambda: cpu_only)
    monkeypatch.setattr(build, "build", lambda plan: tmp_path / "library")
    (tmp_path / build.LOG).write_text("")
    assert cli.main(["build"]) == 0
    first, *_ = capsys.readouterr().out.splitlines()
    said = "the CUDA library is for other machines: this torch is a CPU build, which cannot load it"
    assert (first == said) == cpu_only


@needs_cxx
def test_what_is_left_out_is_said(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    reason = "6.0 of TORCH_CUDA_ARCH_LIST left out: the kernels need 7.5 or newer"
    build.build(replace(plan_of("tiny", "emulated"), left_out=(reason,)), said.append)
    assert said[0] == reason


def test_the_time_is_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It grows with files and architectures, and shrinks with jobs."""
    for name in "abcd":
        (tmp_path / f"{name}.cu").write_text("")
    monkeypatch.setattr(build, "SECONDS", 60)
    monkeypatch.setattr(build, "jobs", lambda files: (2, "two cores"))
    monkeypatch.setattr(build, "torch_version", lambda include: "2.13.0")
    monkeypatch.setattr(build, "ninja_command", lambda: ["false"])
    said: list[str] = []
    plan = build.Plan("cuda", ("8.0", "9.0", "10.0"), "nvcc", "nvcc 13.0", tmp_path, tmp_path)
    with pytest.raises(compilers.BuildError, match="nvcc failed"):
        build.compile_library(plan, tmp_path, tmp_path / "log", said.append)
    assert said[0] == "compiling 4 files for 8.0 9.0 10.0, about 6 min, 2 at a time (two cores)"


@every_library
def test_only_stable_symbols_are_used(compiled: Path) -> None:
    symbols = undefined(compiled)
    assert torch_functions(symbols)
    assert unstable(symbols) == set()
    assert {name for name in needed(compiled) if not NEEDED.fullmatch(name)} == set()
    assert "libtorch.so" in needed(compiled), "it brings libtorch_cuda.so"
    assert ("aoti_torch_get_current_cuda_stream" in symbols) == (compiled.name == build.LIBRARY["cuda"])


def test_the_audit_finds_unstable_symbols() -> None:
    bad = {
        *("_ZN3c1010TensorImplD1Ev", "_ZN2at4_ops5empty4callEv", "_ZN5torch7LibraryC1Ev", "_ZNK3c104Type3strEv"),
        *("PyObject_Call", "_Py_NoneStruct", "cudaLaunchKernel", "_ZTIN3c105ErrorE", "_ZSt9terminatev", "THPVariable"),
    }
    good = {"aoti_torch_get_numel", "torch_call_dispatcher", "malloc@GLIBC_2.2.5", "_ZSt9terminatev@GLIBCXX_3.4"}
    assert unstable(bad | good) == bad


@cuda_libraries
def test_no_kernel_spills(compiled: Path) -> None:
    kernels = resources.read_log((compiled.parent / build.LOG).read_text())
    architectures = json.loads((compiled.parent / build.FACTS).read_text())["architectures"].split()
    assert {kernel.architecture for kernel in kernels} == {f"sm_{name.replace('.', '')}" for name in architectures}
    assert [kernel for kernel in kernels if kernel.spilled or kernel.stack] == []
    assert all(kernel.registers > 0 for kernel in kernels)
    assert "no spills" in resources.summary(kernels)


def test_spills_are_found() -> None:
    log = """\
ptxas info    : Compiling entry function '_Z1av' for 'sm_80'
ptxas info    : Function properties for _Z1av
    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 1024 bytes smem, 376 bytes cmem[0]
ptxas info    : Compiling entry function '_Z1bv' for 'sm_90'
ptxas info    : Function properties for _Z1bv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 0 barriers
"""
    first, second = resources.read_log(log)
    assert first == resources.Resources("_Z1av", "sm_80", registers=255, stack=8, spilled=28, shared=1024)
    assert second == resources.Resources("_Z1bv", "sm_90", registers=10, stack=0, spilled=0, shared=0)
    assert resources.summary([first, second]) == "2 kernels, at most 255 registers, spilling: _Z1av (sm_80)"


@cuda_libraries
def test_the_facts_are_those_of_the_binary(compiled: Path) -> None:
    triton = pytest.importorskip("triton", reason="cuobjdump is in Triton's wheel")
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not program.exists():
        pytest.skip("this Triton has no cuobjdump")
    listed = subprocess.run([program, "--list-elf", compiled], capture_output=True, text=True, check=True).stdout
    facts = json.loads((compiled.parent / build.FACTS).read_text())
    built = {f"{number[:-1]}.{number[-1]}" for number in re.findall(r"\.sm_(\d+)\.cubin", listed)}
    assert built == set(facts["architectures"].split()) >= {"8.0", "9.0"}


@pytest.mark.skipif(
    not (OTHER_TORCH / "torch" / "include").exists(),
    reason="needs another torch's headers: SCSCO_OTHER_TORCH, see docs/cuda.md",
)
class TestOtherTorch:
    """SCSCO_OTHER_TORCH is a folder that holds another release's torch/include, or that whole torch."""

    include = OTHER_TORCH / "torch" / "include"

    @every_library
    def test_functions_are_declared_there(self, compiled: Path) -> None:
        assert torch_functions(undefined(compiled)) - declared(self.include) == set()

    @pytest.mark.slow
    @pytest.mark.parametrize("which", ["tiny", "real"])
    @pytest.mark.parametrize("target", ["emulated", "cuda"])
    def test_its_headers_are_enough(self, which: str, target: str, cache: Path) -> None:
        if reason := missing(target):
            pytest.skip(reason)
        library = build.build(plan_of(which, target, self.include), lambda _: None)
        assert unstable(undefined(library)) == set()
        if target == "emulated":
            load = "import sys, torch; torch.ops.load_library(sys.argv[1])"
            subprocess.run([sys.executable, "-c", load, library], check=True)

    @pytest.mark.skipif(not (OTHER_TORCH / "torch" / "lib").exists(), reason="SCSCO_OTHER_TORCH holds headers only")
    @every_library
    def test_it_loads_the_library(self, compiled: Path) -> None:
        code = "import sys, torch; torch.ops.load_library(sys.argv[1]); print(torch.version.cuda)"
        environment = {**os.environ, "PYTHONPATH": str(OTHER_TORCH)}
        command = [sys.executable, "-c", code, compiled]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        wanted = compiled.name == build.LIBRARY["emulated"] or run.stdout.strip() != "None"
        assert run.returncode == 0 or not wanted, run.stderr
