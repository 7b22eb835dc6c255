"""Triton's interpreter, repaired where it must be."""

from typing import Any

from triton.runtime.interpreter import InterpreterBuilder


def repair() -> None:
    """Triton 3.9's interpreter makes int32 of a splat comparison and then refuses it as a mask."""
    for name, place in (("create_masked_load", 1), ("create_masked_store", 2)):
        original = getattr(InterpreterBuilder, name)

        def with_bool_mask(self: Any, *arguments: Any, original: Any = original, place: int = place) -> Any:
            arguments[place].data = arguments[place].data.astype(bool)
            return original(self, *arguments)

        setattr(InterpreterBuilder, name, with_bool_mask)
