"""Backend choice: argument over context over environment over automatic, and reasons for each refusal."""

import sys

import pytest
import torch

import scsco_fast as sf
from scsco_fast.ops import backend


def test_every_backend_says_yes_or_why_not() -> None:
    answers = sf.ops.backends()
    assert list(answers) == ["triton", "cuda", "eager", "reference"]
    assert answers["eager"] == answers["reference"] == "yes"
    assert all(answers.values())


def test_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1)
    monkeypatch.delenv("SCSCO_BACKEND", raising=False)
    assert backend.choose("auto", "cross_gram", x) == "eager"
    monkeypatch.setenv("SCSCO_BACKEND", "reference")
    assert backend.choose("auto", "cross_gram", x) == "reference"
    with sf.use_backend("eager"):
        assert backend.choose("auto", "cross_gram", x) == "eager"
        with sf.use_backend("reference"):
            assert backend.choose("auto", "cross_gram", x) == "reference"
        assert backend.choose("reference", "cross_gram", x) == "reference"
        assert backend.choose("auto", "cross_gram", x) == "eager"
    assert backend.choose("eager", "cross_gram", x) == "eager"


def test_the_chosen_backend_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    original = backend.implementation

    def spy(chosen: str, operation: str) -> object:
        called.append((chosen, operation))
        return original(chosen, operation)

    # The package's attribute of that name is the function; the module is only in sys.modules.
    monkeypatch.setattr(sys.modules["scsco_fast.ops._cross_gram"], "implementation", spy)
    image = torch.ones(1, 1, 2, 2)
    sf.ops.cross_gram(image, image, backend="reference")
    assert called == []
    sf.ops.cross_gram(image, image)
    assert called == [("eager", "cross_gram")]


def test_unknown_and_unavailable_names() -> None:
    with (
        pytest.raises(ValueError, match="'fast' is not one of auto, triton, cuda, eager, reference"),
        sf.use_backend("fast"),
    ):
        pass
    for name, answer in sf.ops.backends().items():
        if answer != "yes":
            with pytest.raises(RuntimeError, match="cannot be used: "):
                backend.choose(name, "cross_gram", torch.zeros(1))


def test_environment_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCSCO_BACKEND", "quick")
    with pytest.raises(ValueError, match="SCSCO_BACKEND 'quick'"):
        backend.choose("auto", "cross_gram", torch.zeros(1))


def test_a_backend_serves_what_it_has_a_module_of() -> None:
    """Asked before anything else: a missing kernel is no matter of this machine."""
    x = torch.zeros(1, 1, 2, 2)
    for name in ("cuda", "eager"):
        assert not backend.implements(name, "sum_of_everything")
        assert backend.refusal(name, "sum_of_everything", x) == f"the {name} backend has no kernel of sum_of_everything"
    assert not backend.implements("reference", "bain_norm")
    assert not backend.implements("eager", "bain_norm")
    assert backend.implements("triton", "bain_norm")
    assert backend.refusal("cuda", "transfer_color", x) == "the cuda backend has no kernel of transfer_color"
    with pytest.raises(RuntimeError, match="'cuda' cannot be used: the cuda backend has no kernel of transfer_color"):
        backend.choose("cuda", "transfer_color", x)
