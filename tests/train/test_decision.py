"""What is done after which step."""

import dataclasses
from collections.abc import Callable

import pytest

from scsco_fast.train.config import TrainConfig
from scsco_fast.train.decision import Decision, decide

CONFIG = TrainConfig(steps=20, log_every=4, picture_every=6, checkpoint_every=5, validate_every=10)


def steps_with(name: str, config: TrainConfig = CONFIG, *, can_validate: bool = False) -> list[int]:
    """The steps after which `name` is done, in a run that no signal ends."""
    decisions = {
        done: decide(config, done, can_validate=can_validate, stopping=False) for done in range(1, config.steps + 1)
    }
    return [done for done, decision in decisions.items() if getattr(decision, name)]


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("validate", [10, 20]),
        ("log", [4, 5, 8, 10, 12, 15, 16, 20]),  # every 4, and with every checkpoint
        ("picture", [1, 6, 12, 18, 20]),  # the first, every 6, the last
        ("save_last", [5, 10, 15, 20]),
        ("save_numbered", [5, 10, 15, 20]),
        ("save_best", []),  # only a validation can tell
        ("stop", [20]),
    ],
)
def test_each_is_done_at_its_steps(name: str, steps: list[int]) -> None:
    assert steps_with(name, can_validate=True) == steps


def test_the_last_step_does_everything_but_a_numbered_checkpoint_between_two() -> None:
    config = dataclasses.replace(CONFIG, steps=13)
    everything = Decision(validate=True, log=True, picture=True, save_last=True, save_numbered=False, stop=True)
    assert decide(config, 13, can_validate=True, stopping=False) == everything


def test_a_signal_saves_logs_and_stops_and_does_nothing_else() -> None:
    assert decide(CONFIG, 7, can_validate=True, stopping=False) == Decision()
    assert decide(CONFIG, 7, can_validate=True, stopping=True) == Decision(log=True, save_last=True, stop=True)


@pytest.mark.parametrize("can_validate", [True, False])
def test_a_validation_needs_its_interval_and_held_out_composites(can_validate: bool) -> None:
    never = dataclasses.replace(CONFIG, validate_every=None)
    assert steps_with("validate", never, can_validate=can_validate) == []
    assert bool(steps_with("validate", can_validate=can_validate)) == can_validate


def test_a_validation_is_logged_with_its_step() -> None:
    config = dataclasses.replace(CONFIG, validate_every=3, log_every=100, checkpoint_every=100)
    assert steps_with("log", config, can_validate=True) == [3, 6, 9, 12, 15, 18, 20]
    assert steps_with("log", config) == [20]


def test_a_run_of_one_step(tiny: Callable[..., TrainConfig]) -> None:
    decision = decide(tiny(steps=1, checkpoint_every=1), 1, can_validate=False, stopping=False)
    assert decision == Decision(log=True, picture=True, save_last=True, save_numbered=True, stop=True)
