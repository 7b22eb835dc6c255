"""Fixtures: uninitialised memory that holds NaN, and NaN around every input."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

Guard = Callable[[Tensor], Tensor]
GUARD = 128  # elements of NaN before and after a buffer


@pytest.fixture(autouse=True)
def nan_in_new_memory() -> Iterator[None]:
    """Fills what `torch.empty` and its relatives return: a result that was never written shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def guarded() -> Guard:
    """A copy of a tensor, of the same layout, that lies inside a buffer of NaN."""

    def copy(tensor: Tensor) -> Tensor:
        extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        buffer = torch.full((extent + 2 * GUARD,), torch.nan, dtype=tensor.dtype)
        view = buffer.as_strided(tensor.shape, tensor.stride(), GUARD)
        return view.copy_(tensor)

    return copy
