"""What the host may do with a tensor, by where the tensor lies."""

import torch
from torch import Tensor


def may_read_values(tensor: Tensor) -> bool:
    """Whether the host can look at a tensor's values at no cost, as to count the rows that some work is needed for.

    On a CPU it can. On another device it would wait until all that was started there is done, and a graph that is
    being compiled would break; there the work is done for all rows.

    Examples:
        >>> may_read_values(torch.zeros(1)), may_read_values(torch.zeros(1, device="meta"))
        (True, False)
    """
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()
