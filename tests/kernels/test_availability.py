"""`scsco_fast.kernels`: importing it is free, and it says why the kernels cannot serve."""

import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from scsco_fast import kernels
from scsco_fast.ops import backend


@pytest.fixture(autouse=True)
def forget() -> None:
    kernels.no_triton.cache_clear()
    kernels._no_device.cache_clear()


def test_import_loads_neither_torch_nor_triton() -> None:
    program = (
        "import importlib.util, sys; spec = importlib.util.spec_from_file_location('kernels', sys.argv[1]); "
        "spec.loader.exec_module(importlib.util.module_from_spec(spec)); "
        "print({'torch', 'triton'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", program, kernels.__file__]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


def test_missing_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "Triton cannot be imported" in str(kernels.unavailable())


@pytest.mark.parametrize("version", ["3.5.1", "3.10.0", "4.0.0", "2.3.0", "3.10+git1a2b", "4.0", "nightly"])
def test_other_triton(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(triton, "__version__", version)
    assert kernels.unavailable() == f"Triton {version} is installed, 3.6 to 3.9 is needed"


@pytest.mark.parametrize("version", ["3.5.1", "4.0.0", "3.10.0+git1a2b"])
def test_auto_goes_on_without_another_triton(
    version: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(triton, "__version__", version)
    monkeypatch.setattr(backend, "_told", set())
    with FakeTensorMode(), caplog.at_level("INFO", logger="scsco_fast"):
        assert backend.choose("auto", "region_norm", torch.empty(1, 4, 4, 4, device="cuda")) == "eager"
    reason = f"Triton {version} is installed, 3.6 to 3.9 is needed"
    assert f"backend triton is not used for region_norm: {reason}" in caplog.text


@pytest.mark.parametrize("version", ["3.6.0", "3.7.1+git0", "3.8+git1a2b", "3.9.0"])
@pytest.mark.parametrize(("capability", "served"), [((7, 5), False), ((8, 0), True), ((9, 0), True), ((12, 0), True)])
def test_compute_capability(
    monkeypatch: pytest.MonkeyPatch, version: str, capability: tuple[int, int], served: bool
) -> None:
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(triton, "__version__", version)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    reason = kernels.unavailable()
    assert (reason is None) == served
    assert served or "compute capability 7.5, 8.0 or newer is needed" in str(reason)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_device() -> None:
    pytest.importorskip("triton")
    assert "no CUDA device" in str(kernels.unavailable())
