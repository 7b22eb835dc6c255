"""When the host may look at a tensor's values."""

import torch
from torch import Tensor

from scsco_fast.system.devices import may_read_values


def answer(tensor: Tensor) -> Tensor:
    return tensor + float(may_read_values(tensor))


def test_values_are_read_on_a_cpu_and_neither_elsewhere_nor_in_a_compiled_graph() -> None:
    assert answer(torch.zeros(1)).item() == 1
    assert not may_read_values(torch.zeros(1, device="meta"))
    assert torch.compile(answer, backend="eager", fullgraph=True)(torch.zeros(1)).item() == 0
