"""What every registration shares.

Each operation stands behind the dispatcher in two forms. The memory-linear one is opaque (`register_operation`, with a
fake and an explicit backward) and is told its backend. The reference, `<name>_reference`, decomposes into plain
PyTorch, so that autograd derives its backward independently of ours.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from scsco_fast.eager.dtypes import accumulate_dtype

NAMESPACE = "scsco_fast"
BODIES: dict[str, Callable[..., Any]] = {}  # what an operation runs, by its name
_library = torch.library.Library(NAMESPACE, "FRAGMENT")


def register_operation(name: str, differentiable: bool = True) -> Callable[[Callable[..., Any]], Any]:
    """Make a function an operation of our namespace, which torch.compile and autograd do not look into; a decorator.

    What `torch.library.custom_op` does, but that one imports torch._dynamo when an operation is first called: a second,
    which a program that compiles nothing would wait for.

    Args:
        name: without the namespace. The schema is read off the function's annotations; nothing is changed in place.
        differentiable: whether `torch.library.register_autograd` follows; otherwise a backward through it is an error.

    Returns:
        The decorator; it returns the operation, a `torch._ops.OpOverload`.
    """

    def register(function: Callable[..., Any]) -> Any:
        schema = torch.library.infer_schema(function, mutates_args=(), op_name=name)
        _library.define(schema, tags=torch.Tag.pt2_compliant_tag)
        _library.impl(name, function, "CompositeExplicitAutograd")
        BODIES[name] = function
        if not differentiable:
            torch.library.register_autograd(f"{NAMESPACE}::{name}", partial(_refuse, name), lib=_library)
        return getattr(getattr(torch.ops, NAMESPACE), name).default

    return register


def _refuse(name: str, ctx: Any, *gradients: Tensor) -> None:
    raise RuntimeError(f"{name} cannot be differentiated")


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
