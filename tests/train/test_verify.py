"""The parity harness passes what is right, and fails what is a little wrong."""

import csv
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import scsco_fast.cli
from scsco_fast.eager import bain_attention
from scsco_fast.errors import ScscoError
from scsco_fast.train import verify as module
from scsco_fast.train.config import TrainConfig
from scsco_fast.train.verify import FLOAT32, WEIGHTS, Check, verify

pytestmark = pytest.mark.filterwarnings("ignore:VGG-16 has RANDOM weights")
STYLE = {"style_weight": 0.1, "style_every": 2, "negatives": 2, "vgg_weights": "random", "vgg_layers": ("relu1_2",)}


@pytest.fixture
def config(tiny: Callable[..., TrainConfig]) -> TrainConfig:
    return tiny(levels=5, lr=2e-4, **STYLE)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_eager_backend_passes(config: TrainConfig, pictures: Any, precision: str) -> None:
    result = verify(dataclasses.replace(config, precision=precision), 4, pictures())
    assert result.passed, result.text()
    assert [check.name for check in result.checks][:2] == ["total", "reconstruction"]
    assert {"self_style", "consistency", "weight_norm", WEIGHTS} <= {check.name for check in result.checks}
    assert any(check.candidate > 0 for check in result.checks)  # the sides are not one and the same
    with (result.folder / "differences.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == ["1", "2", "3", "4"]
    assert [bool(row["candidate_total"]) for row in rows] == [True] * 4
    assert [bool(row["candidate_self_style"]) for row in rows] == [True, True, False, False]
    assert (result.folder / "differences.png").read_bytes().startswith(b"\x89PNG")
    assert not Path(config.output).exists()


def test_wrong_attention_fails(config: TrainConfig, pictures: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scale that is off by a thousandth: no loss term shows it within four steps, the weights do."""
    right = bain_attention.forward

    def wrong(query: Tensor, *rest: Any) -> Any:
        return right(query * 1.001, *rest)

    monkeypatch.setattr(bain_attention, "forward", wrong)
    result = verify(config, 4, pictures())
    assert not result.passed
    assert "FAIL  weights" in result.text()


def test_not_a_number_fails() -> None:
    assert not Check("total", float("nan"), 0.0, 1e-6, 1e-3).passed
    assert not Check("total", 0.0, float("nan"), float("nan"), 1e-3).passed


def test_a_bound_in_which_anything_fits_fails_and_says_so() -> None:
    check = Check("total", 1e-6, 0.1, 0.2, FLOAT32**0.5)
    assert not check.passed
    assert "cannot be told" in check.line()


def test_no_steps_are_refused(config: TrainConfig) -> None:
    with pytest.raises(ScscoError, match="at least 1"):
        verify(config, 0)


@pytest.mark.parametrize("passes", [True, False])
def test_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, passes: bool) -> None:
    seen: list[Any] = []

    def found(config: TrainConfig, steps: int) -> module.Verification:
        seen.append((config.output, steps))
        return module.Verification([Check("total", 0.0 if passes else 1.0, 0.0, 1e-6, 1e-3)], tmp_path)

    monkeypatch.setattr(module, "verify", found)
    arguments = ["train", "demo", "--output", str(tmp_path / "a"), "--verify", "--verify-steps", "3"]
    assert scsco_fast.cli.main(arguments) == (0 if passes else 1)
    assert seen == [(str(tmp_path / "a"), 3)]
    assert ("pass  total" if passes else "FAIL  total") in capsys.readouterr().out
