"""What every registration shares.

Each operation stands behind the dispatcher in two forms. The memory-linear one is opaque (`torch.library.custom_op`
with a fake and an explicit backward) and is told its backend. The reference, `<name>_reference`, decomposes into plain
PyTorch, so that autograd derives its backward independently of ours.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from scsco_fast.eager.dtypes import accumulate_dtype

NAMESPACE = "scsco_fast"
_library = torch.library.Library(NAMESPACE, "FRAGMENT")


def register_reference(schema: str, function: Callable[..., Any]) -> None:
    """Define `schema` in our namespace and let it decompose into `function`."""
    _library.define(schema)
    _library.impl(schema.split("(")[0], function, "CompositeImplicitAutograd")


def empty_like(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Contiguous and uninitialised, as the implementations return their results, whatever the layout of `tensor`."""
    return torch.empty_like(tensor, dtype=dtype, memory_format=torch.contiguous_format)


def statistics_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype of sums and distances: float32, or float64 if an input is."""
    return accumulate_dtype(*tensors)


def autocasts(tensor: Tensor) -> bool:
    """True under autocast where `tensor` lives; meta tensors, which have no autocast, are never under it."""
    return not tensor.is_meta and torch.is_autocast_enabled(tensor.device.type)


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Autocast off where `tensor` lives: it would round the operands of every product inside an operation."""
    return torch.autocast(tensor.device.type, enabled=False) if autocasts(tensor) else nullcontext()
