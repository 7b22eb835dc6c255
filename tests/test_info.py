"""`doctor` says what is there, what is not, and why."""

import importlib.metadata
import json

import pytest
import torch

from scsco_fast import info, ops


def test_sections() -> None:
    report = info.doctor()
    assert list(report) == [
        "versions",
        "devices",
        "backends",
        "cuda library",
        "model",
        "vgg weights",
        "optional",
        "environment",
    ]
    assert report["versions"]["torch"] == importlib.metadata.version("torch")
    assert report["backends"] == ops.backends()
    assert "cpu" in report["devices"]
    assert len(report["devices"]) == 1 + torch.cuda.device_count()
    assert all(value for section in report.values() for value in section.values())
    assert json.loads(json.dumps(report)) == report
    assert info.problems(report) == []


def test_text_names_every_finding() -> None:
    report = info.doctor()
    text = info.format_report(report)
    for title, section in report.items():
        assert f"\n{title}\n" in f"\n{text}"
        for name, value in section.items():
            assert any(line.split() == [name, *value.split()] or name in line for line in text.splitlines())
            assert value in text


def test_missing_packages_and_backends_are_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "REQUIRED", ("torch", "no-such-package"))
    monkeypatch.setattr(info, "OPTIONAL", {"no-such-option": ("a wish", "pip install it")})
    monkeypatch.setattr(ops, "backends", lambda: {"eager": "broken"})
    report = info.doctor()
    assert info.problems(report) == ["no-such-package is not installed", "no backend can be used"]
    assert report["optional"]["no-such-option"] == "not installed (would give a wish: pip install it)"


def test_environment_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCSCO_BACKEND", "reference")
    monkeypatch.delenv("SCSCO_DEBUG", raising=False)
    environment = info.doctor()["environment"]
    assert environment["SCSCO_BACKEND"] == "reference"
    assert environment["SCSCO_DEBUG"] == "not set"


@pytest.mark.gpu
def test_driver_and_gpu() -> None:
    report = info.doctor()
    assert report["versions"]["cuda driver"].startswith("supports CUDA ")
    assert "GiB" in report["devices"]["cuda:0"]
