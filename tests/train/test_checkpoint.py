"""Checkpoints are written whole or not at all, and a damaged one is found, named and passed over."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from scsco_fast.errors import ScscoError
from scsco_fast.train import checkpoint


def state(step: int) -> dict[str, Any]:
    return {
        "step": step,
        "config": {"steps": 10},
        "versions": {"torch": "2"},
        "training": {"model": {"weight": torch.arange(1000.0) + step}},
        "rng": [{"cpu": torch.get_rng_state()}],
        "bad_samples": {"a.jpg": "truncated"},
        "samples": 100,
        "best": None,
    }


def damage(path: Path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    if kind == "truncated":
        content = content[: len(content) // 2]
    elif kind == "empty":
        content = bytearray()
    else:
        place = content.index(torch.arange(1000.0).add(int(kind)).numpy().tobytes()) + 2001
        content[place] ^= 4
    path.write_bytes(content)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    written = state(3)
    checkpoint.save_checkpoint(path, written)
    read = checkpoint.load_checkpoint(path)
    assert torch.equal(read["training"]["model"]["weight"], written["training"]["model"]["weight"])
    assert torch.equal(read["rng"][0]["cpu"], written["rng"][0]["cpu"])
    assert {key: read[key] for key in ("step", "config", "versions", "bad_samples")} == {
        key: written[key] for key in ("step", "config", "versions", "bad_samples")
    }
    assert os.listdir(tmp_path) == ["last.pt"]


@pytest.mark.parametrize("kind", ["truncated", "empty", "3"])
def test_damage_is_one_line_that_names_the_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save_checkpoint(path, state(3))
    damage(path, kind)
    with pytest.raises(ScscoError, match=r"last\.pt.*use an older one") as error:
        checkpoint.load_checkpoint(path)
    assert "\n" not in str(error.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    weights, text, code = tmp_path / "weights.pt", tmp_path / "text.pt", tmp_path / "code.pt"
    torch.save({"weight": torch.ones(3)}, weights)
    text.write_text("hello")
    torch.save({"run": os.system}, code)
    for path in (weights, text, code, tmp_path / "missing.pt"):
        with pytest.raises(ScscoError, match=path.name) as error:
            checkpoint.load_checkpoint(path)
        assert "weights_only" not in str(error.value)  # torch's advice is to run what the file holds
        assert ("code, which is never run" in str(error.value)) == (path == code)


def test_full_disk_leaves_the_older_checkpoint_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save_rotating(tmp_path, state(1))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ScscoError, match=r"last\.pt.*No space left.*older checkpoints are intact"):
        checkpoint.save_rotating(tmp_path, state(2))
    assert checkpoint.load_checkpoint(tmp_path / "last.pt")["step"] == 1
    assert sorted(os.listdir(tmp_path)) == ["last.pt", "step_0000001.pt"]


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from scsco_fast.train import checkpoint
folder, call = Path(sys.argv[1]), sys.argv[2]
state = {"config": {}, "versions": {}, "training": {"w": torch.zeros(1000)}, "rng": [], "bad_samples": {}}
state = {**state, "samples": 1, "best": None}
checkpoint.save_rotating(folder, {"step": 1, **state})
original = getattr(os, call)
def kill(*arguments):
    if call == "fsync":  # in the middle of writing: half of the file is there
        os.ftruncate(arguments[0], os.fstat(arguments[0]).st_size // 2)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(os, call, kill)
checkpoint.save_rotating(folder, {"step": 2, **state})
"""


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_kill_while_saving_leaves_the_older_checkpoint(tmp_path: Path, call: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), call], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(os.listdir(tmp_path)) == 3  # last.pt, step_0000001.pt and what the killed writer left
    warnings: list[str] = []
    found = checkpoint.newest_checkpoint(tmp_path, warnings.append)
    assert found is not None
    assert found[1]["step"] == 1
    assert warnings == []
    checkpoint.remove_temporary_files(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["last.pt", "step_0000001.pt"]


def test_only_the_newest_three_numbered_ones_stay(tmp_path: Path) -> None:
    for step in (90, 100, 1000, 99999999):
        checkpoint.save_rotating(tmp_path, state(step))
    checkpoint.save_rotating(tmp_path, state(100000001), numbered=False)
    assert sorted(os.listdir(tmp_path)) == ["last.pt", "step_0000100.pt", "step_0001000.pt", "step_99999999.pt"]
    assert checkpoint.load_checkpoint(tmp_path / "last.pt")["step"] == 100000001


def test_newest_readable_checkpoint_is_found(tmp_path: Path) -> None:
    assert checkpoint.newest_checkpoint(tmp_path, print) is None
    for step in (1, 2, 3):
        checkpoint.save_rotating(tmp_path, state(step))
    damage(tmp_path / "last.pt", "truncated")
    damage(tmp_path / "step_0000003.pt", "3")
    warnings: list[str] = []
    found = checkpoint.newest_checkpoint(tmp_path, warnings.append)
    assert found is not None
    assert (found[0].name, found[1]["step"]) == ("step_0000002.pt", 2)
    assert ["last.pt" in warnings[0], "step_0000003.pt" in warnings[1], len(warnings)] == [True, True, 2]

    for step in (1, 2):
        damage(tmp_path / f"step_{step:07d}.pt", "empty")
    with pytest.raises(ScscoError, match="none of its 4 checkpoints"):
        checkpoint.newest_checkpoint(tmp_path, warnings.append)


def test_weights_that_do_not_fit_change_nothing() -> None:
    module = torch.nn.Linear(3, 2)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    fitting = {key: value + 1 for key, value in before.items()}
    wrong = [
        {**fitting, "extra": torch.ones(1)},
        {"weight": fitting["weight"]},
        {**fitting, "bias": torch.ones(3)},
    ]
    for weights in wrong:
        with pytest.raises(ScscoError, match=r"a\.pt: 1 weights do not fit"):
            checkpoint.load_strictly(module, weights, "a.pt")
        assert all(torch.equal(module.state_dict()[key], value) for key, value in before.items())
    checkpoint.load_strictly(module, fitting, "a.pt")
    assert torch.equal(module.weight, fitting["weight"])


def test_random_state_comes_back() -> None:
    states = checkpoint.rng_state(torch.device("cpu"))
    first = torch.rand(3)
    checkpoint.restore_rng_state(states, torch.device("cpu"))
    assert torch.equal(torch.rand(3), first)


def test_best_is_the_last_resort_unless_it_is_newer(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoint.save_rotating(tmp_path, state(step))
    checkpoint.save_checkpoint(tmp_path / "best.pt", state(1))

    def newest() -> tuple[str, int]:
        found = checkpoint.newest_checkpoint(tmp_path, lambda text: None)
        assert found is not None
        return found[0].name, found[1]["step"]

    assert newest() == ("last.pt", 2)
    damage(tmp_path / "last.pt", "truncated")
    assert newest() == ("step_0000002.pt", 2)
    damage(tmp_path / "step_0000002.pt", "empty")
    checkpoint.save_checkpoint(tmp_path / "best.pt", state(2))
    assert newest() == ("best.pt", 2)
    (tmp_path / "step_0000001.pt").unlink()
    assert newest() == ("best.pt", 2)


def test_an_earlier_format_is_named(tmp_path: Path) -> None:
    torch.save({"format": 1, "step": 3}, tmp_path / "last.pt")
    with pytest.raises(ScscoError, match=r"last\.pt: written by an earlier version \(format 1, this one reads 2\)"):
        checkpoint.load_checkpoint(tmp_path / "last.pt")
