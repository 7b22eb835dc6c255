"""What every registration shares.

Each operation stands behind the dispatcher in two forms. The memory-linear one is opaque (`register_operation`, with a
fake and an explicit backward) and is told its backend. The reference, `<name>_reference`, decomposes into plain
PyTorch, so that autograd derives its backward independently of ours. Both run without autocast, which would round the
operands of every product inside.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor

from scsco_fast.eager.dtypes import accumulate_dtype

NAMESPACE = "scsco_fast"
BODIES: dict[str, Callable[..., Any]] = {}  # what an operation runs, by its name
_library = torch.library.Library(NAMESPACE, "FRAGMENT")


def register_operation(
    name: str, fake: Callable[..., Any], differentiable: bool = True
) -> Callable[[Callable[..., Any]], Any]:
    """Make a function an operation of our namespace, which torch.compile and autograd do not look into; a decorator.

    What `torch.library.custom_op` does, but that one imports torch._dynamo when an operation is first called: a second,
    which a program that compiles nothing would wait for.

    Args:
        name: without the namespace. The schema is read off the function's annotations; nothing is changed in place.
        fake: takes the same arguments and returns uninitialised results, of which shapes, dtypes and strides are those
            of the real ones: it allocates with the functions that the implementations allocate with.
        differentiable: whether `torch.library.register_autograd` follows; otherwise a backward through it is an error.

    Returns:
        The decorator; it returns the operation, a `torch._ops.OpOverload`.
    """

    def register(function: Callable[..., Any]) -> Any:
        schema = torch.library.infer_schema(function, mutates_args=(), op_name=name)

        @wraps(function)
        def body(first: Tensor, *arguments: Any) -> Any:
            with _without_autocast(first):
                return function(first, *arguments)

        _library.define(schema, tags=torch.Tag.pt2_compliant_tag)
        _library.impl(name, body, "CompositeExplicitAutograd")
        BODIES[name] = body
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
        if not differentiable:
            torch.library.register_autograd(f"{NAMESPACE}::{name}", partial(_refuse, name), lib=_library)
        return getattr(getattr(torch.ops, NAMESPACE), name).default

    return register


def _refuse(name: str, ctx: Any, *gradients: Tensor) -> None:
    raise RuntimeError(f"{name} cannot be differentiated")


def register_reference(schema: str, function: Callable[..., Any], like: int | None = None) -> None:
    """Define `schema` in our namespace and let it decompose into `function`, computed in float32 or wider.

    The formulas stay free of dtypes: here their floating inputs are widened and their results rounded.

    Args:
        like: the argument whose dtype the results take; None: they stay as wide as they were computed.
    """
    name = schema.split("(")[0]

    def widened(first: Tensor, *rest: Any) -> Any:
        arguments = (first, *rest)
        dtype = statistics_dtype(*(a for a in arguments if isinstance(a, Tensor) and a.is_floating_point()))
        with _without_autocast(first):
            results = function(*(widen(a, dtype) if isinstance(a, Tensor) else a for a in arguments))
        if like is None:
            return results
        wanted = arguments[like].dtype
        return tuple(r.to(wanted) for r in results) if isinstance(results, tuple) else results.to(wanted)

    _library.define(schema)
    _library.impl(name, widened, "CompositeImplicitAutograd")


def widen(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A floating tensor in `dtype`; masks as they are."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def statistics_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype of sums and distances: float32, or float64 if an input is."""
    return accumulate_dtype(*tensors)


def autocasts(tensor: Tensor) -> bool:
    """True under autocast where `tensor` lives; meta tensors, which have no autocast, are never under it."""
    return not tensor.is_meta and torch.is_autocast_enabled(tensor.device.type)


def _without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Autocast off where `tensor` lives; its state in a backward is that of the caller of `backward`."""
    return torch.autocast(tensor.device.type, enabled=False) if autocasts(tensor) else nullcontext()
