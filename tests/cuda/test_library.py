"""`scsco_fast.cuda`: which library is used, what loading it does, and why it cannot serve."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from compiled import TINY, needs_cxx

import scsco_fast as sf
from scsco_fast import cuda
from scsco_fast.cuda import build, compilers, library
from scsco_fast.ops import backend

GPU = torch.version.cuda is not None and torch.cuda.is_available()


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable set, nothing remembered, nothing built ahead of time, the tiny sources instead of csrc/."""
    for name in ("SCSCO_BUILD_CUDA", "SCSCO_CUDA_EMULATION", "SCSCO_BACKEND", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    for module, name in ((cuda, "_unavailable"), (cuda, "_failed"), (library, "_loaded")):
        monkeypatch.setattr(module, name, {})
    monkeypatch.setattr(library, "AHEAD_OF_TIME", tmp_path / "built")
    monkeypatch.setattr(build, "source_folder", lambda: TINY)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch that sees one GPU of compute capability 9.0 under a driver for CUDA 13."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=0: (9, 0))
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: 13000, raising=False)


def write_library(folder: Path, target: str = "cuda", **facts: str) -> Path:
    """A file where a library would be, and its facts."""
    folder.mkdir(parents=True)
    path = folder / build.LIBRARY[target]
    path.write_text("no library")
    usual = {
        "target": target,
        "architectures": "8.0 9.0+PTX",
        "compiler": "nvcc 13.0.88 with g++ 12.2.0",
        "torch": "2.13.0",
        "sources": build.source_digest(target, TINY),
    }
    (folder / build.FACTS).write_text(json.dumps({**usual, **facts}))
    return path


def emulate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCSCO_CUDA_EMULATION", "1")


def test_import_is_light() -> None:
    program = (
        "import importlib.util, sys; spec = importlib.util.spec_from_file_location('cuda', sys.argv[1]); "
        "spec.loader.exec_module(importlib.util.module_from_spec(spec)); print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program, cuda.__file__], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


def test_a_cpu_torch_is_the_reason(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert cuda.unavailable() == library.NO_CUDA
    assert sf.ops.backends()["cuda"] == library.NO_CUDA
    with pytest.raises(RuntimeError, match="this torch is a CPU build"):
        library.load("cuda")
    assert library.describe()["used"] == f"no: {library.NO_CUDA}"


@pytest.mark.slow
@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
@pytest.mark.parametrize("compiled", [("tiny", "cuda")], indirect=True)
def test_cuda_code_does_not_load_in_a_cpu_torch(compiled: Path) -> None:
    with pytest.raises(OSError, match="Could not load") as error:
        torch.ops.load_library(compiled)
    assert "undefined symbol: aoti_torch_get_current_cuda_stream" in str(error.value.__cause__ or error.value)


def test_gpus_and_drivers(hopper: None, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    write_library(cache / "cuda-1")
    assert library.why_not("cuda") is None
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: 12080, raising=False)
    assert library.find("cuda") is None
    assert "nvcc is of CUDA 13, the driver supports CUDA 12" in library.describe()["used"]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=0: (7, 0))
    assert "a GPU has compute capability 7.0, 7.5 or newer is needed" in str(library.why_not("cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert library.why_not("cuda") == "no CUDA device: torch.cuda.is_available() is False"


def test_a_library_to_be_built_without_code_for_the_gpu(hopper: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """PTX of 7.5 runs on any later GPU, and holds nothing where its kernels need 8.0."""
    plan = SimpleNamespace(facts=lambda: {"target": "cuda", "architectures": "7.5+PTX", "compiler": "nvcc 13.0"})
    monkeypatch.setattr(build, "plan", lambda *_, **__: plan)
    monkeypatch.setattr(library, "_libraries", lambda target: [])
    assert library.why_not("cuda") == "it was built for 7.5+PTX, a GPU has 9.0"


def test_no_library_and_no_compiler(hopper: None, monkeypatch: pytest.MonkeyPatch, cache: Path, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setattr(compilers, "USUAL_NVCC", str(tmp_path / "nvcc"))
    assert str(library.why_not("cuda")).startswith(
        "no library is built, and none can be built: nvcc is not found: install"
    )
    found = library.describe()
    assert found["built"] == "nothing yet"
    assert found["compiler"].startswith("nvcc is not found")
    monkeypatch.setenv("SCSCO_BUILD_CUDA", "0")
    assert "SCSCO_BUILD_CUDA=0 forbids building one at first use" in str(library.why_not("cuda"))
    write_library(cache / "cuda-1")
    assert library.why_not("cuda") is None


def test_which_library_is_found(hopper: None, cache: Path, tmp_path: Path) -> None:
    assert library.find("cuda") is None
    write_library(cache / "cuda-other", sources="another digest")
    write_library(cache / "cuda-ampere", architectures="8.0 8.6")
    write_library(cache / "emulated-1", "emulated")
    (cache / "cuda-unfinished").mkdir()
    assert library.find("cuda") is None
    described = library.describe()["used"]
    assert "it was built f" in described
    assert "another is built at first use, or by scsco build" in described
    old = write_library(cache / "cuda-old")
    os.utime(old, (0, 0))
    assert library.find("cuda").path == old
    new = write_library(cache / "cuda-new")
    assert library.find("cuda").path == new
    ahead = write_library(tmp_path / "built")
    assert library.find("cuda").path == ahead
    assert library.describe() == {
        "built": f"{ahead} (ahead of time)",
        "architectures": "8.0 9.0+PTX",
        "compiler": "nvcc 13.0.88 with g++ 12.2.0",
        "torch": "compiled with the headers of 2.13.0, runs with 2.10 and later",
        "used": "yes",
    }


@needs_cxx
def test_loading_builds_once(monkeypatch: pytest.MonkeyPatch, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    emulate(monkeypatch)
    assert cuda.unavailable() is None
    assert library.describe()["used"] == "yes: built at first use, or by scsco build"
    path = library.load("emulated")
    assert cache in path.parents
    assert "compiling 1 files for the CPU" in caplog.text
    assert torch.ops.scsco_fast_tiny.double(torch.ones(2)).tolist() == [2, 2]
    assert library.load("emulated") == path
    assert library.operations() is torch.ops.scsco_fast_cuda
    assert library.describe()["built"] == f"{path} (in the cache)"
    with pytest.raises(RuntimeError, match="the emulated library is loaded already, and a process can hold one"):
        library.load("cuda")


@needs_cxx
def test_a_build_that_fails_is_a_reason(monkeypatch: pytest.MonkeyPatch, cache: Path, tmp_path: Path) -> None:
    emulate(monkeypatch)
    (tmp_path / "broken.cu").write_text("no C++\n")
    monkeypatch.setattr(build, "source_folder", lambda: tmp_path)
    x = torch.ones(1, 1, 2, 2)
    assert cuda.unavailable() is None, "nothing is built to find out"
    reason = str(cuda.refusal(x))
    assert reason.startswith("the emulated library cannot be built: g++ failed; the whole log: ")
    assert "\n" not in reason
    assert backend.choose("auto", "cross_gram", x) == "eager"
    with pytest.raises(RuntimeError, match="backend 'cuda' cannot be used: the emulated library cannot be built"):
        backend.choose("cuda", "cross_gram", x)
    monkeypatch.setattr(build, "build", lambda *_: pytest.fail("a build that failed is not tried again"))
    assert cuda.refusal(x) == reason


def test_a_library_that_does_not_load_is_a_reason(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    emulate(monkeypatch)
    path = write_library(cache / "emulated-1", "emulated")
    reason = str(cuda.refusal(torch.ones(1, 1, 2, 2)))
    assert reason.startswith("the library cannot be loaded (")
    assert str(path) in reason
    assert "\n" not in reason


def test_inputs_that_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(1, 1, 2, 2)
    assert cuda.refusal(x) == "the inputs are on cpu, the library serves cuda"
    emulate(monkeypatch)
    monkeypatch.setattr(library, "why_not", lambda target: None)
    monkeypatch.setattr(library, "load_failure", lambda: None)
    assert cuda.refusal(x) is None
    reason = "float64 inputs: the CUDA kernels serve float32, bfloat16, float16"
    assert cuda.refusal(x, x.double()) == reason
    assert "65536 images: " in str(cuda.refusal(x.expand(65536, 1, 2, 2)))
    meta = "the inputs are on meta, the library serves cpu under SCSCO_CUDA_EMULATION"
    assert cuda.refusal(x.to("meta")) == meta


def test_the_emulation_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, wanted in {"1": True, "on": True, "0": False, "": False}.items():
        monkeypatch.setenv("SCSCO_CUDA_EMULATION", value)
        assert cuda.emulated() == wanted


def test_the_choice_is_no_graph_break(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    emulate(monkeypatch)
    write_library(cache / "emulated-1", "emulated")  # files are read and a load fails: none of it can be traced

    @torch.compile(fullgraph=True, backend="eager")
    def function(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if backend.refusal("cuda", "cross_gram", x) else x

    assert function(torch.zeros(1, 1, 2, 2)).sum() == 4
