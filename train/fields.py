"""The check of one setting: its value has the field's type, or can be made it, and lies within the field's bounds."""

import math
import os
import types
import typing
from typing import Any, Literal

from scsco_fast.architecture import IN_CHANNELS
from scsco_fast.errors import ScscoError

_WRONG = object()


def _at_least(least: float) -> tuple[Any, str]:
    return (lambda value: value >= least), f"at least {least}"


_POSITIVE = ((lambda value: value > 0), "a number above 0")
_FRACTION = ((lambda value: 0 <= value < 1), "at least 0 and below 1")
_NOT_EMPTY = ((lambda value: len(value) > 0), "at least one")
_BOUNDS: dict[str, tuple[Any, str]] = {
    **dict.fromkeys(
        ("size", "batch_size", "accumulate", "base_channels", "levels", "key_channels", "negatives"), _at_least(1)
    ),
    **dict.fromkeys(("style_every", "style_size", "non_finite_limit"), _at_least(1)),
    **dict.fromkeys(("log_every", "picture_every", "checkpoint_every", "steps"), _at_least(1)),
    **dict.fromkeys(("keep_checkpoints", "validate_every", "validation_count"), _at_least(1)),
    **dict.fromkeys(("workers", "warmup", "bad_sample_limit", "weight_decay", "style_weight", "seed"), _at_least(0)),
    **dict.fromkeys(("lr", "clip_norm", "encoder_lr"), _POSITIVE),
    **dict.fromkeys(("output", "photos", "subsets", "vgg_layers", "vgg_weights", "device"), _NOT_EMPTY),
    "ema_decay": _FRACTION,
    "betas": ((lambda value: all(0 <= beta < 1 for beta in value)), "two numbers at least 0 and below 1"),
    "in_channels": ((lambda value: value in IN_CHANNELS), "3, 4 or 7"),
    "root": _NOT_EMPTY,
}


def checked(name: str, value: Any, hint: Any) -> Any:
    """`value` as the annotated type of the field `name`; one that does not fit is a `ScscoError` that names the field.

    Examples:
        >>> checked("betas", [0, 0.5], tuple[float, float])
        (0.0, 0.5)
    """
    converted = _convert(value, hint)
    if converted is _WRONG:
        raise ScscoError(f"{name} is {value!r}; wanted {_describe(hint)}")
    if name in _BOUNDS and converted is not None:
        accepts, wanted = _BOUNDS[name]
        if not accepts(converted):
            raise ScscoError(f"{name} is {value!r}; wanted {wanted}")
    return converted


def _convert(value: Any, hint: Any) -> Any:
    """`value` as the annotated type (lists from JSON become tuples, integers become floats), or `_WRONG`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        choices = (_convert(value, choice) for choice in arguments)
        return next((choice for choice in choices if choice is not _WRONG), _WRONG)
    if origin is Literal:
        return value if isinstance(value, str) and value in arguments else _WRONG
    if origin is tuple:
        return _convert_tuple(value, arguments)
    if hint is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return float(value) if number else _WRONG
    if hint is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    return value if type(value) is hint else _WRONG


def _convert_tuple(value: Any, arguments: tuple[Any, ...]) -> Any:
    if not isinstance(value, (list, tuple)):
        return _WRONG
    hints = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
    if len(hints) != len(value):
        return _WRONG
    items = tuple(_convert(item, hint) for item, hint in zip(value, hints, strict=True))
    return _WRONG if _WRONG in items else items


def _describe(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return " or ".join(_describe(choice) for choice in arguments)
    if origin is Literal:
        return "one of " + ", ".join(arguments)
    if origin is tuple:
        return f"a list of {_describe(arguments[0]).removeprefix('a ')}s" + ("" if ... in arguments else " (two)")
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "none"}
    return names[hint]
