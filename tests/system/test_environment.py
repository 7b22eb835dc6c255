"""What a result depends on: versions, the revision, the processor; and that asking for them needs no torch."""

import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import scsco_fast
from scsco_fast.system import environment


@pytest.fixture(autouse=True)
def forgotten() -> None:
    """Nothing that an earlier test found."""
    environment.git_revision.cache_clear()
    environment.cpu_name.cache_clear()


def test_versions_name_torch_and_python() -> None:
    found = environment.versions()
    assert {"torch", "python", "numpy", "scsco_fast"} <= found.keys()
    assert found["scsco_fast"] == scsco_fast.__version__


def test_versions_need_no_torch() -> None:
    code = (
        "import sys\nfrom scsco_fast.system.environment import cpu_name, versions\nversions(), cpu_name()\n"
        "print([name for name in ('torch', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_git_revision_names_a_commit() -> None:
    revision = environment.git_revision()
    assert revision == "unknown" or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", revision)
    short = environment.git_revision(short=True)
    assert short == "unknown" or re.fullmatch(r"[0-9a-f]{7,39}\+?", short)


def test_a_copy_in_another_repository_has_no_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    copy = tmp_path / "environment.py"
    copy.write_text("")
    monkeypatch.setattr(environment, "__file__", str(copy))
    assert environment.git_revision() == "unknown"


def test_processor_is_named_and_its_architecture_where_linux_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def reads(text: str) -> None:
        environment.cpu_name.cache_clear()
        monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)

    reads("processor\t: 0\nmodel name\t: AMD EPYC\nmodel name\t: other\n")
    assert environment.cpu_name() == "AMD EPYC"
    reads("processor\t: 0\nCPU part\t: 0xd40\n")
    assert environment.cpu_name() == platform.machine()

    def missing(*_: Any, **__: Any) -> str:
        raise FileNotFoundError

    environment.cpu_name.cache_clear()
    monkeypatch.setattr(Path, "read_text", missing)
    assert environment.cpu_name() == platform.machine()
