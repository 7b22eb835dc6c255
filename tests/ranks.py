"""Programs of a few processes for the tests: `python ranks.py SCENARIO FOLDER`, started once for each rank."""

import fcntl
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

SECONDS = 240


def launch(scenario: str, folder: Path, world_size: int = 2, seconds: float = SECONDS) -> list[str]:
    """Run a scenario of this file on `world_size` processes; their outputs. None outlives the time limit."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    outputs = [folder / f"{scenario}_{rank}.txt" for rank in range(world_size)]
    processes = []
    for rank, output in enumerate(outputs):
        variables = {**common, "RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world_size}
        with output.open("wb") as file:
            command = [sys.executable, str(Path(__file__)), scenario, str(folder)]
            environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
            processes.append(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment))
    try:
        codes = [process.wait(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    texts = [output.read_text() for output in outputs]
    assert codes == [0] * world_size, "\n".join(texts)
    return texts


def tiny(output: Path, **changes: Any) -> Any:
    """A configuration of a run of seconds; keyword arguments replace its fields."""
    from tiny_runs import SETTINGS

    from scsco_fast.train.config import TrainConfig

    return TrainConfig(**{**SETTINGS, "output": str(output), **changes})


STYLE = {"style_weight": 0.1, "negatives": 4, "vgg_weights": "random", "vgg_layers": ("relu1_2",)}
# What the comparison of two processes with one runs with; without dropout, which each process draws for itself.
EQUAL = {**STYLE, "levels": 5, "dropout": False, "lr": 2e-4, "batch_size": 8, "steps": 4, "style_every": 2}
# A whole run and one that stops after three of its six steps.
PARTS = {**STYLE, "batch_size": 8, "accumulate": 2, "steps": 6, "style_every": 2}
STOP_AT = 3 * 8 - 1  # the last sample of the third step, which the last process reads


def no_space(*_: Any, **__: Any) -> None:
    from scsco_fast.errors import ScscoError

    raise ScscoError("no space")


def everything(folder: Path) -> None:
    """All that needs two processes and no signal from outside, in one start of them."""
    from tiny_runs import Pictures

    from scsco_fast.errors import ScscoError
    from scsco_fast.system.locks import LOCK
    from scsco_fast.train import checkpoint
    from scsco_fast.train.engine import train

    samples = Pictures(bad={3, 12, 13, 14, 15})  # one of the first process, in the next step all of the second
    train(tiny(folder / "equal", **EQUAL), samples)
    train(tiny(folder / "equal_parts", **EQUAL, accumulate=2), samples)

    train(tiny(folder / "whole", **PARTS), Pictures(not_finite={3}))
    train(tiny(folder / "stopped", **PARTS), Pictures(not_finite={3}, stop_at=STOP_AT))
    train(tiny(folder / "stopped", **PARTS, resume=True), Pictures(not_finite={3}))

    # Sample 14 is the second process's; step 2 alone is skipped, then all steps from 4 on.
    train(tiny(folder / "nan", batch_size=8, steps=4), Pictures(not_finite={14}))
    errors = {}
    (folder / "held").mkdir(exist_ok=True)
    lock = (folder / "held" / LOCK).open("w")
    if os.environ["RANK"] == "0":
        fcntl.flock(lock, fcntl.LOCK_EX)  # as another run has it
    for name, changes, pictures in [
        ("limit", {"non_finite_limit": 2, "batch_size": 8}, Pictures(not_finite={22, 30})),
        ("bad", {"bad_sample_limit": 1, "batch_size": 8}, Pictures(bad={3, 6})),
        ("batch", {"batch_size": 3}, Pictures()),
        ("again", {"output": str(folder / "nan")}, Pictures()),
        ("graph", {"cuda_graph": True}, Pictures()),
        ("held", {}, Pictures()),
    ]:
        try:
            train(tiny(folder / name, **changes) if "output" not in changes else tiny(folder / "nan"), pictures)
        except ScscoError as error:
            errors[name] = str(error)
    full = tiny(folder / "full", checkpoint_every=2)
    original = checkpoint.save_rotating
    checkpoint.save_rotating = no_space
    try:
        train(full, Pictures())
    except ScscoError as error:
        errors["full"] = str(error)
    checkpoint.save_rotating = original
    rank = os.environ["RANK"]
    (folder / f"errors_{rank}.json").write_text(json.dumps(errors))


def three(folder: Path) -> None:
    """A whole run and one in two pieces, deterministic."""
    from tiny_runs import Pictures

    from scsco_fast.train.engine import train

    changes = {"batch_size": 6, "steps": 4, "base_channels": 16, "deterministic": True}
    train(tiny(folder / "whole", **changes), Pictures())
    train(tiny(folder / "stopped", **changes), Pictures(stop_at=11))
    train(tiny(folder / "stopped", **changes, resume=True), Pictures())


def signalled(folder: Path) -> None:
    """A run that only a signal ends."""
    from tiny_runs import Pictures

    from scsco_fast.train.engine import train

    (folder / f"pid_{os.environ['RANK']}").write_text(str(os.getpid()))
    train(tiny(folder / "signalled", batch_size=4, steps=100_000, log_every=1), Pictures())
    sys.stdout.write("ended\n")


if __name__ == "__main__":
    {"everything": everything, "signalled": signalled, "three": three}[sys.argv[1]](Path(sys.argv[2]))
