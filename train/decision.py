"""What is done after a step, as a pure function of the settings and the step's number."""

from dataclasses import dataclass

from scsco_fast.train.config import TrainConfig


@dataclass(frozen=True)
class Decision:
    """What is done after a step, in this order.

    Attributes:
        validate: measure the averaged model on the held-out composites.
        log: read the losses from the device and write a row of metrics.csv.
        picture: write pictures to TensorBoard.
        save_last: write last.pt and model.safetensors.
        save_numbered: write step_XXXXXXX.pt besides; only with `save_last`.
        save_best: write best.pt and best.safetensors; known only when the validation is done.
        stop: end the run.
    """

    validate: bool = False
    log: bool = False
    picture: bool = False
    save_last: bool = False
    save_numbered: bool = False
    save_best: bool = False
    stop: bool = False


def decide(config: TrainConfig, done: int, *, can_validate: bool, stopping: bool) -> Decision:
    """What is done when `done` steps of the run are (1 after the first).

    Args:
        config: of the run.
        done: steps that are done, from 1 to `config.steps`.
        can_validate: there are held-out composites.
        stopping: a signal asks for the end of the run.

    Examples:
        >>> config = TrainConfig(steps=100, log_every=10, checkpoint_every=50, picture_every=30)
        >>> decide(config, 10, can_validate=False, stopping=False)  # doctest: +NORMALIZE_WHITESPACE
        Decision(validate=False, log=True, picture=False, save_last=False, save_numbered=False, save_best=False,
                 stop=False)
    """
    ended = done == config.steps
    stop = ended or stopping
    save_numbered = done % config.checkpoint_every == 0
    save_last = stop or save_numbered
    every = config.validate_every
    validate = can_validate and every is not None and (ended or done % every == 0)
    return Decision(
        validate=validate,
        # A checkpoint's row is in the table that it goes with, and so is a validation's result.
        log=save_last or validate or done % config.log_every == 0,
        picture=done == 1 or ended or done % config.picture_every == 0,
        save_last=save_last,
        save_numbered=save_numbered,
        stop=stop,
    )
