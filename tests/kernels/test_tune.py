"""The configuration table: written and read back, climbed to the cheapest neighbour, changed by --tune alone."""

import math
import shutil
from pathlib import Path

import pytest

pytest.importorskip("triton")

from scsco_fast.kernels import bain_attention_table as tables
from scsco_fast.kernels.bain_attention_table import CHANNELS, KEYS, TABLE, Config, Line
from scsco_fast.kernels.tune import climb, neighbours, tune, tuned

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
