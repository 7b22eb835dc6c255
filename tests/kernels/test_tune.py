"""The configuration table: written and read back, climbed to the cheapest neighbour, changed by --tune alone."""

import math
import shutil
from pathlib import Path

import pytest

pytest.importorskip("triton")

import torch

from scsco_fast.benchmarks import rows
from scsco_fast.benchmarks.tuning import row_of
from scsco_fast.kernels import bain_attention_table as tables
from scsco_fast.kernels.bain_attention_table import CHANNELS, KEYS, TABLE, Config, Line
from scsco_fast.kernels.tune import EPS, Trial, climb, error, in_float64, neighbours, tune, tuned
from scsco_fast.reference.bain_attention import bain_attention as reference

START = Config(64, 64, 64, 64, 4, 2)


def test_table_has_every_line_and_reads_back(tmp_path: Path) -> None:
    kinds = ("half", "tf32", "ieee")
    assert set(TABLE) == {
        (sm, kind, c, d) for sm in (80, 86, 90, 100) for kind in kinds for c in CHANNELS for d in KEYS
    }
    path = shutil.copy(tables.PATH, tmp_path / "table.txt")
    tables.write(TABLE, Path(path))
    assert Path(path).read_text() == tables.PATH.read_text()
    assert tables.read(Path(path)) == TABLE
    assert [file.name for file in tmp_path.iterdir()] == ["table.txt"]


def test_climbing_finds_the_cheapest() -> None:
    best = Config(128, 16, 64, 64, 8, 4)
    tried = []

    def cost(config: Config) -> float:
        tried.append(config)
        return 1 + sum(abs(math.log2(a / b)) for a, b in zip(config, best, strict=True))

    assert climb(START, cost) == best
    assert len(tried) == len(set(tried))


def test_climbing_stays_where_nothing_is_faster_by_more_than_noise() -> None:
    assert climb(START, lambda config: 1.0 if config == START else 0.99) == START
    assert climb(START, lambda config: 1.0 if config == START else math.inf) == START


def test_neighbours_differ_and_are_on_the_ladders() -> None:
    found = list(neighbours(START))
    assert len(found) == len(set(found))
    assert START not in found
    for config in found:
        assert {config.block_m, config.block_n} <= {16, 32, 64, 128}
        assert (config.warps in (4, 8), config.stages in (1, 2, 3, 4)) == (True, True)


def test_a_line_keeps_its_kernels() -> None:
    line = tuned(Line("fit", {"fwd": START, "dkv": START}), lambda name, config: config.warps if name == "fwd" else 1.0)
    assert line == Line("timed", {"fwd": START, "dkv": START})
    line = tuned(Line("fit", {"fwd": START}), lambda name, config: 1 / config.warps)
    assert line.configs["fwd"] == START._replace(warps=8)


def test_tuning_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scsco_fast.kernels.tune.unavailable", lambda: "no CUDA device")
    with pytest.raises(RuntimeError, match="configurations are timed on a GPU: no CUDA device"):
        tune(1.0, print)


@pytest.mark.gpu
def test_a_line_is_timed_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(shutil.copy(tables.PATH, tmp_path / "table.txt"))
    monkeypatch.setattr("scsco_fast.kernels.tune.TABLE", dict(TABLE))
    monkeypatch.setattr("scsco_fast.kernels.bain_attention.TABLE", dict(TABLE))
    said: list[str] = []
    assert tune(0.0, said.append, path) == 0  # no line starts after the last minute
    assert tables.read(path) == TABLE
    assert "0 of 36 lines" in said[-1]


def test_candidates_are_held_to_the_formulas_in_float64() -> None:
    batch, keys, channels, size, n_fg = 2, 4, 6, 5, 7
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, c, size, size) for c in (keys, keys, channels, channels, channels)]
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    order = torch.stack([torch.randperm(size * size, generator=generator) for _ in range(batch)])
    mask = torch.zeros(batch, size * size, dtype=torch.bool).scatter(1, order[:, :n_fg], True)
    counts = torch.tensor([[n_fg, size * size - n_fg]] * batch)
    leaves = [t.double().requires_grad_() for t in tensors[:3]]
    foreground = mask.view(batch, 1, size, size)
    outputs = reference(*leaves, foreground, None, keys**-0.5, EPS)
    wanted = [*outputs, *torch.autograd.grad(outputs, leaves, [t.double() for t in tensors[3:]])]
    truth = in_float64(tensors, order, counts)
    assert error(truth, [t.detach() for t in wanted]) < 1e-12
    assert error([truth[0] * 1.1, truth[1]], truth[:2]) == pytest.approx(0.1)
    assert math.isnan(error([truth[0] * math.nan, truth[1]], truth[:2]))


def test_a_trial_is_a_row() -> None:
    key = (90, "half", 64, 64)
    where = {"suite": "tune", **rows.machine("cpu")}
    trial = Trial(key, "dkv", START, (16, 64, 128, 128), "bfloat16", 0.01, 0.5)
    row = row_of(trial, where, 0.2, {"half": 3e-2})
    assert (row.mode, row.ms, row.error, row.gate) == ("backward", 0.5, 0.01, 3e-2)
    assert row.detail == "90 half 64 64 dkv 64,64,64,64,4,2"
    wrong = row_of(trial._replace(ms=None, error=math.nan, reason="wrong"), where, 0.2, {"half": 3e-2})
    assert (wrong.ms, wrong.error, wrong.note) == (None, None, "wrong")
