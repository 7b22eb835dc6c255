"""Two gloo processes train as one does, resume bit for bit, and stop, skip and fail together."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import EQUAL, launch
from tiny_runs import SETTINGS, Pictures, differing
from torch import Tensor

from scsco_fast.errors import ScscoError
from scsco_fast.train import checkpoint
from scsco_fast.train.config import TrainConfig
from scsco_fast.train.engine import train
from scsco_fast.train.loader import StepOrder
from scsco_fast.train.processes import start_processes
from scsco_fast.train.report import read_rows

pytestmark = pytest.mark.filterwarnings("ignore:VGG-16 has RANDOM weights")
Tiny = Callable[..., TrainConfig]
BAD = {3, 12, 13, 14, 15}


def last(folder: Path) -> dict[str, Any]:
    return checkpoint.load_checkpoint(folder / "checkpoints" / "last.pt")


def vector(folder: Path, which: str = "model") -> Tensor:
    return torch.cat([value.double().flatten() for value in last(folder)["training"][which].values()])


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder and the outputs of ranks.py's `everything`."""
    folder = tmp_path_factory.mktemp("two")
    return folder, launch("everything", folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["equal", "equal_parts"])
def test_two_processes_equal_one(two: tuple[Path, list[str]], tmp_path: Path, name: str) -> None:
    """With bad samples that leave the processes unlike shares, and none to one of them.

    Rounding differs in how many images a sum runs over at a time. Four steps of Adam keep it within some units in the
    last place of the weights' vector.
    """
    one = train(TrainConfig(**{**SETTINGS, **EQUAL, "output": str(tmp_path / "one")}), Pictures(bad=BAD))
    start = train(TrainConfig(**{**SETTINGS, **EQUAL, "steps": 1, "output": str(tmp_path / "a")}), Pictures(bad=BAD))
    for which in ("model", "ema"):
        ours, theirs = vector(two[0] / name, which), vector(one, which)
        moved = torch.linalg.norm(theirs - vector(start, which))
        assert torch.linalg.norm(ours - theirs) <= 1e-6 * torch.linalg.norm(theirs) < 0.01 * moved
    rows, wanted = (read_rows(folder / "metrics.csv") for folder in (two[0] / name, one))
    for row, other in zip(rows, wanted, strict=True):
        terms = [key for key in other if not key.endswith(("_ms", "_mib", "_second"))]
        assert len(terms) >= 10
        assert [row[key] for key in terms] == pytest.approx([other[key] for key in terms], rel=1e-5)
    assert last(two[0] / name)["bad_samples"] == last(one)["bad_samples"]


@pytest.mark.slow
def test_resumed_run_of_two_processes_is_the_same_run(two: tuple[Path, list[str]]) -> None:
    """6 steps = 3 steps, SIGTERM to one process, resume, 3 steps, bit for bit, with two parts, dropout and averages."""
    folder, (first, second) = two
    whole, stopped = last(folder / "whole"), last(folder / "stopped")
    for name in ("step", "training", "rng", "bad_samples", "best"):
        assert differing(whole[name], stopped[name]) == [], name
    assert len(whole["rng"]) == 2
    assert differing(whole["rng"][0], whole["rng"][1]) != []  # each draws its own dropout
    assert whole["training"]["skips"].tolist() == [1, 0, 0]
    assert f"resumed from {folder / 'stopped' / 'checkpoints' / 'last.pt'} at step 3" in first
    assert "stopped by a signal" in first
    others = ("RANDOM weights", "VGG16Features", "[Gloo] Rank")  # the last are torch 2.10's
    spoken = [line for line in second.splitlines() if not any(other in line for other in others)]
    assert spoken == []  # one process speaks for all


@pytest.mark.slow
def test_three_processes_resume_bit_for_bit_where_deterministic(tmp_path: Path) -> None:
    """Otherwise DDP's buckets, sorted anew after the first step of each piece, change the order of a sum of three."""
    outputs = launch("three", tmp_path, world_size=3)
    assert "last.pt at step 2" in outputs[0]
    assert differing(last(tmp_path / "whole")["training"], last(tmp_path / "stopped")["training"]) == []


@pytest.mark.slow
def test_nan_on_one_process_skips_the_step_on_all(two: tuple[Path, list[str]]) -> None:
    folder, (output, _) = two
    state = last(folder / "nan")["training"]
    assert state["skips"].tolist() == [1, 0, 1]
    assert all(torch.isfinite(value).all() for value in state["model"].values())
    assert {int(moments["step"]) for moments in state["optimizer"]["state"].values()} == {3}
    assert [row["skipped_steps"] for row in read_rows(folder / "nan" / "metrics.csv")] == [1, 1]
    # Samples 8 to 11 are the first process's: only the samples of the one that found a NaN are named.
    names = ", ".join(f"picture{index}.jpg" for index in range(12, 16))
    assert f"warning: step 2: the loss or gradient was not finite with the samples {names}; skipped, 1 steps" in output


@pytest.mark.slow
def test_errors_of_one_process_stop_all_with_the_same_line(two: tuple[Path, list[str]]) -> None:
    one, other = (json.loads((two[0] / f"errors_{rank}.json").read_text()) for rank in range(2))
    assert one == other
    assert "step 4: the loss or gradient was not finite for 2 steps in a row" in one["limit"]
    assert "picture28.jpg, picture29.jpg, picture30.jpg, picture31.jpg" in one["limit"]
    assert "2 samples cannot be used (bad_sample_limit 1), the last is picture6.jpg" in one["bad"]
    assert "batch_size 3 cannot be shared by 2 processes in 1 parts each; wanted a multiple of 2" in one["batch"]
    assert "exists already" in one["again"]
    assert "cuda_graph is set for 2 processes on cpu" in one["graph"]
    assert "no space" in one["full"]
    assert "another run is writing to this folder" in one["held"]
    assert not any("\n" in message for message in one.values())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signal_to_one_process_saves_and_ends_all(tmp_path: Path, number: signal.Signals) -> None:
    def interrupt() -> None:
        rows = tmp_path / "signalled" / "metrics.csv"
        for _ in range(1200):
            if rows.exists() and len(read_rows(rows)) >= 3:
                os.kill(int((tmp_path / "pid_1").read_text()), number)
                return
            time.sleep(0.1)

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    outputs = launch("signalled", tmp_path)
    watcher.join()
    assert all("ended" in output for output in outputs)
    assert last(tmp_path / "signalled")["step"] == len(read_rows(tmp_path / "signalled" / "metrics.csv")) >= 3


def test_shares_of_processes_are_the_batch() -> None:
    whole = list(StepOrder(10, 6, 2, 9, shuffle=True, seed=3))
    for size in (1, 2, 3, 6):
        shares = [StepOrder(10, 6, 2, 9, shuffle=True, seed=3, rank=rank, world_size=size) for rank in range(size)]
        assert [[index for share in step for index in share] for step in zip(*shares, strict=True)] == whole


def test_without_a_launcher_the_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    processes = start_processes()
    rows = torch.ones(2, 3)
    assert (processes.rank, processes.world_size, processes.all_gather_integers([3])) == (0, 1, [[3]])
    assert processes.gather_rows(rows, [2]) is rows
    assert processes.all_reduce(rows) is rows
    with pytest.raises(ScscoError, match="mine"), processes.together():
        raise ScscoError("mine")


def test_one_gpu_for_all_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ScscoError, match="cuda:1"):
        start_processes("cuda:1")


def test_missing_accelerate_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ScscoError, match=r"needs accelerate: pip install \"scsco-fast\[train\]\""):
        start_processes("cpu")
