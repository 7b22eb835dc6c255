"""Uninitialised memory that holds NaN, and NaN around every input."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder

# Triton 3.9's interpreter makes int32 of a splat comparison and then refuses it as a mask.
for name, place in (("create_masked_load", 1), ("create_masked_store", 2)):
    original = getattr(InterpreterBuilder, name)

    def with_bool_mask(self: Any, *arguments: Any, original: Any = original, place: int = place) -> Any:
        arguments[place].data = arguments[place].data.astype(bool)
        return original(self, *arguments)

    setattr(InterpreterBuilder, name, with_bool_mask)

GUARD = 128  # elements of NaN before and after a buffer


@pytest.fixture(autouse=True)
def nan_in_new_memory() -> Iterator[None]:
    """Fills what `torch.empty` and its relatives return: a result that was never written shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def guarded() -> Callable[[Tensor], Tensor]:
    """A copy of a tensor, of the same layout, that lies inside a buffer of NaN."""

    def copy(tensor: Tensor) -> Tensor:
        extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        buffer = torch.full((extent + 2 * GUARD,), torch.nan, dtype=tensor.dtype)
        view = buffer.as_strided(tensor.shape, tensor.stride(), GUARD)
        return view.copy_(tensor)

    return copy
