"""SIGKILL at random moments: every resume succeeds and loses no completed checkpoint; damage is passed over."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import differing

from scsco_fast.train import checkpoint
from scsco_fast.train.config import TrainConfig

KILLS = 50
STEPS = 240  # more than a fast machine does between all the kills
# One process imports everything once and forks each run: fifty imports of torch would take minutes.
KILLER = """
import json, os, random, select, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)  # no threads yet, so a fork is safe
import rich.console, rich.progress, safetensors.torch, torch._dynamo, torch.utils.tensorboard
from tiny_runs import Pictures
from scsco_fast.system.environment import versions
from scsco_fast.train import checkpoint, engine
from scsco_fast.train.report import Report
from scsco_fast.train.config import TrainConfig

config, kills = TrainConfig.from_json(sys.argv[1]), int(sys.argv[2])
folder = Path(config.output)
versions()  # asks git once
Report.draw = lambda self: None  # a quarter of a second, in which most kills would fall


def run(told):
    save = checkpoint.save_checkpoint
    def saving(path, state):
        save(path, state)
        os.write(told, b"%d\\n" % state["step"])  # this checkpoint is complete
    checkpoint.save_checkpoint = saving
    resumed = TrainConfig.from_dict({**config.to_dict(), "resume": folder.exists()})
    engine.train(resumed, Pictures())


draws, completed, report = random.Random(0), 0, []
for number in range(kills + 1):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            run(writing)
        except BaseException as error:
            print("failed", repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    os.close(writing)
    last = number == kills
    # Some die while they start, some after one or several checkpoints, wherever they are then.
    wanted, told = 0 if last else draws.choice([0, 1, 1, 2, 3]), b""
    while told.count(b"\\n") < wanted or last:
        part = os.read(reading, 64)
        if not part:
            break
        told += part
    if not last:
        time.sleep(draws.uniform(0, 0.08 if wanted else 0.4))
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    while part := os.read(reading, 64):
        told += part
    os.close(reading)
    completed = max([completed, *(int(step) for step in told.split())])
    warnings = []
    found = checkpoint.newest_checkpoint(folder / "checkpoints", warnings.append)
    report.append({
        "killed": os.WIFSIGNALED(status), "code": os.waitstatus_to_exitcode(status), "completed": completed,
        "found": 0 if found is None else found[1]["step"], "warnings": warnings,
        "rest": sorted(path.name for path in folder.rglob(".*.tmp.*")),
    })
whole = {**config.to_dict(), "output": sys.argv[3], "checkpoint_every": 100}
engine.train(TrainConfig.from_dict(whole), Pictures())
print("report", json.dumps(report))
"""


@pytest.mark.slow
def test_fifty_kills_lose_no_completed_checkpoint(tiny: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """And the weights at the end are those of a run that nobody killed."""
    config = tiny(output=str(tmp_path / "killed"), steps=STEPS, checkpoint_every=1, log_every=1)
    whole = tmp_path / "whole"
    command = [sys.executable, "-c", KILLER, config.to_json(), str(KILLS), str(whole)]
    places = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report: list[dict[str, Any]] = json.loads(done.stdout.rpartition("report ")[2])
    *killed, last = report
    assert [trial["code"] for trial in killed] == [-9] * KILLS, done.stderr
    assert (last["code"], last["found"]) == (0, STEPS), done.stderr
    for trial in report:
        assert trial["found"] >= trial["completed"]
        assert trial["warnings"] == []
    # The kills did come at different moments: in the middle of a file, and of a run.
    assert any(trial["rest"] for trial in killed)
    assert len({trial["found"] for trial in killed}) >= 20
    states = [checkpoint.load_checkpoint(path / "checkpoints" / "last.pt") for path in (whole, tmp_path / "killed")]
    for name in ("step", "training", "rng"):
        assert differing(states[0][name], states[1][name]) == [], name
