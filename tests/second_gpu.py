"""The same computation on the first GPU and on the second, while the first is the current device."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

SECOND = "cuda:1"
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


def assert_same_on_the_second_gpu(compute: Callable[..., Sequence[Tensor]], tensors: Sequence[Tensor]) -> None:
    """Equal bits on both, of results that stay where their inputs are; between unlike GPUs tensor cores may differ."""
    if torch.cuda.get_device_name(0) != torch.cuda.get_device_name(SECOND):
        pytest.skip("needs two GPUs of one kind")
    here = compute(*tensors)
    there = compute(*(tensor.to(SECOND) for tensor in tensors))
    assert torch.cuda.current_device() == 0
    assert {str(tensor.device) for tensor in there} == {SECOND}
    for index, (one, other) in enumerate(zip(here, there, strict=True)):
        assert torch.equal(one, other.to(one.device)), f"result {index} differs"
