"""The benchmark of a training step: its pictures, its stock attention, its gate, and that it runs."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from oracle import make_mask, random

import scsco_fast as sf
from scsco_fast.benchmarks import rows, training
from scsco_fast.nn import norm


def test_masks_have_the_foregrounds_of_iharmony4() -> None:
    config = training.settings("cpu", smoke=False)
    composite, real, mask = training.batch(config, 0)
    ratios = training.foreground_ratios(100)
    assert sum(ratio <= 0.05 for ratio in ratios) == 52
    assert sum(0.05 < ratio <= 0.15 for ratio in ratios) == 26
    wanted = torch.tensor(training.foreground_ratios(len(mask)))
    torch.testing.assert_close(mask.mean(dim=(1, 2, 3)), wanted, rtol=0.05, atol=0)
    assert torch.equal(composite * (1 - mask), real * (1 - mask))
    assert not torch.equal(training.batch(config, 1)[2], mask)


@pytest.mark.parametrize("kind", ["random", "one pixel", "empty", "full", "ragged"])
def test_stock_attention_is_bain(kind: str) -> None:
    bain = sf.BAIN(6).double()
    for parameter in (bain.foreground_gamma, bain.background_beta):
        torch.nn.init.normal_(parameter)
    x, mask = random(3, 6, 8, 8), make_mask(kind, 3, 8, 8)
    results = []
    for patch in (training.sdpa_attention, lambda: sf.use_backend("reference")):
        leaf = x.clone().requires_grad_()
        with patch():
            y = norm.BAIN.forward(bain, leaf, mask)
        results.append((y.detach(), *torch.autograd.grad(y.square().sum(), leaf)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)  # the pivot is float32


def test_gate_sees_a_wrong_gradient() -> None:
    terms = dict.fromkeys(("total", "reconstruction", "self_style", "consistency"), 2.0)
    gradient = torch.arange(10.0)
    assert training.differences(terms, gradient, terms, gradient) == (0, 0)
    apart, turned = training.differences({**terms, "total": 2.2}, -gradient, terms, gradient)
    assert (apart, turned) == (pytest.approx(0.1), 2)


@pytest.mark.slow
def test_program_runs(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    command = [sys.executable, "-m", "scsco_fast.benchmarks.training", "--smoke", "--csv", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = rows.read(file)
    assert [row.backend for row in found] == ["reference", "whole", "fast"]
    assert all(row.op == "training_step" and row.ms for row in found)
