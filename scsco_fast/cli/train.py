"""`scsco train`: a run, its continuation, and its comparison with the reference operations."""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scsco_fast.cli.parsing import parse
from scsco_fast.cli.shared import check_backend
from scsco_fast.cli.usage import TRAIN_USAGE
from scsco_fast.errors import ScscoError


def command(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(TRAIN_USAGE, end="", file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    from scsco_fast.train import PRESETS

    name, rest = arguments[0], arguments[1:]
    if name == "resume":
        default, program = _resumed(rest)
        rest = rest[1:]
    elif name in PRESETS:
        default, program = PRESETS[name], f"scsco train {name}"
    else:
        raise ScscoError(f"{name!r} is no preset; wanted one of {', '.join(PRESETS)}, or resume RUN")
    options = _parse_train(rest, program, default)
    check_backend()
    if options.verify:
        return _verify(options.settings, options.verify_steps)
    from scsco_fast.train import train

    train(options.settings, profile=options.profile)
    return 0


def _parse_train(arguments: list[str], program: str, default: Any) -> Any:
    """The settings of a run, and what is wanted of this run only."""
    from scsco_fast.train import TrainConfig

    @dataclass(frozen=True)
    class TrainOptions:
        settings: TrainConfig
        profile: bool = False
        """Also write a trace of a few steps, and a table of the ten most expensive operations, to RUN/profile."""
        verify: bool = False
        """Train nothing; compare a few steps with the reference operations and with float64. Exit code 1: too far."""
        verify_steps: int = 20
        """Steps that --verify compares."""

    description = "Train a model; the defaults shown are the preset's."
    return parse(TrainOptions, arguments, program, TrainOptions(default), description)


def _verify(config: Any, steps: int) -> int:
    from scsco_fast.train.verify import verify

    result = verify(config, steps)
    print(result.text())
    print(f"wrote {result.folder / 'differences.csv'}\nwrote {result.folder / 'differences.png'}")
    return 0 if result.passed else 1


def _resumed(rest: list[str]) -> tuple[Any, str]:
    """The configuration saved with a run, set to continue it."""
    from scsco_fast.train.config import load_config

    if not rest or rest[0].startswith("-"):
        raise ScscoError("resume needs the folder of a run: scsco train resume runs/demo")
    config = load_config(Path(rest[0]) / "config.json")
    return dataclasses.replace(config, output=rest[0], resume=True), f"scsco train resume {rest[0]}"
