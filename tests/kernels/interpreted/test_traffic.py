"""The counter of what kernels load and store sees the lanes that a mask leaves on, and nothing else."""

from collections import Counter

import pytest
import torch
import triton
import triton.language as tl

from scsco_fast.benchmarks.traffic import counted, operations, traffic


@triton.jit
def copy_some_kernel(x_ptr, y_ptr, loaded, stored, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + lane, mask=lane < loaded, other=0.0) + tl.load(x_ptr)
    tl.store(y_ptr + lane, x.to(y_ptr.dtype.element_ty), mask=lane < stored)
    tl.store(y_ptr, 1.0)


def test_lanes_are_counted_by_their_bytes() -> None:
    found = Counter[str]()
    x, y = torch.zeros(16), torch.zeros(16, dtype=torch.float16)
    with counted(found):
        copy_some_kernel[(3,)](x, y, 5, 7, BLOCK=16)
    copy_some_kernel[(1,)](x, y, 5, 7, BLOCK=16)  # no longer counted
    assert found == {"loaded_bytes": 3 * (5 + 1) * 4, "stored_bytes": 3 * (7 + 1) * 2}


@pytest.mark.parametrize("name", ["cross_gram", "feature_distances"])
def test_an_operation_stores_its_results_at_least(name: str) -> None:
    """float32 results forward, and gradients of the maps in their dtype."""
    results = {"cross_gram": 4 * 64 * 64 + 2 * 2 * 64 * 32 * 32, "feature_distances": 4 * 4 + 2 * 5 * 64 * 32 * 32}
    found = traffic(operations()[name])
    assert found["stored_bytes"] >= results[name]
    assert found["loaded_bytes"] > found["stored_bytes"]
