"""What a GPU would be given, counted without one: everything runs on meta tensors, which have shapes and no values.

`Account` sees every operation that the dispatcher gives to the device. An operation of ours is carried out by its
backend's own module, so that what it launches is counted by its launchers and nothing is written down by hand.
"""

import gc
import traceback
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.optim import optimizer
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from scsco_fast import kernels
from scsco_fast.errors import ScscoError
from scsco_fast.ops.registration import BODIES

ROOT = Path(__file__).resolve().parents[1]
META = torch.device("meta")

# They allocate or describe memory and start nothing on the device. Views are told by their schema.
NO_LAUNCH = frozenset(
    f"aten::{name}"
    for name in (
        *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "empty_permuted", "resize_"),
        *("_unsafe_view", "_reshape_alias", "detach", "detach_", "alias", "lift", "lift_fresh", "set_"),
        *("is_same_size", "sym_size", "sym_stride", "sym_numel", "sym_storage_offset"),
    )
)


def waits(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """What the host would wait for if the meta tensors among the arguments were a GPU's, or None.

    A value or a size that is read back (`item`, `nonzero`, an index by a mask), a copy to the host, and a copy from
    the host that is not `non_blocking`.
    """
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    name = func.name().split(".")[0]
    if name in ("aten::_to_copy", "aten::copy_") and tensors:
        source = tensors[-1].device
        target = torch.device(kwargs.get("device") or tensors[0].device)
        non_blocking = kwargs.get("non_blocking") or (name == "aten::copy_" and len(args) > 2 and args[2])
        if META in (source, target) and source != target and (source == META or not non_blocking):
            return f"{name} from {source} to {target}"
        return None
    on_meta = [tensor for tensor in tensors if tensor.is_meta]
    if not on_meta:
        return None
    if name.startswith("aten::index"):  # tagged as of dynamic size, which only an index by a mask has
        return f"{name} by a mask" if any(t.dtype in (torch.bool, torch.uint8) for t in _indices(args)) else None
    tags = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
    return name if tags & set(func.tags) else None


def _indices(args: tuple[Any, ...]) -> list[Tensor]:
    found = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else []
    return [index for index in found if isinstance(index, Tensor)]


def nbytes(tensors: Any) -> int:
    """Bytes of the tensors in a tree: their elements', or their storage's where that is less (an expanded tensor)."""
    leaves = [leaf for leaf in tree_leaves(tensors) if isinstance(leaf, Tensor)]
    return sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in leaves)


class Account(TorchDispatchMode):
    """Counts of what runs on meta tensors within the block.

    Attributes:
        operations: operations of PyTorch given to the device, by name: neither views nor allocations.
        launches: launches of Triton kernels, by name.
        waits: places where the host would wait, by what for and where.
        flops: of the operations that torch.utils.flop_counter has a formula for.
        bytes: input and output of every operation and kernel, each tensor once.
        alive, peak: bytes of storages that the block allocated and that live; the most at once since `restart`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.launches, self.waits = Counter[str](), Counter[str](), Counter[str]()
        self.flops = self.bytes = self.alive = self.peak = 0
        self._known: set[int] = set()

    def restart(self) -> None:
        """Forget the counts; what is alive stays so, and is the peak."""
        for counter in (self.operations, self.launches, self.waits):
            counter.clear()
        self.flops = self.bytes = 0
        self.peak = self.alive

    def counts(self) -> dict[str, int]:
        return {
            "operations": self.operations.total(),
            "kernels": self.launches.total(),
            "waits": self.waits.total(),
            "flops": self.flops,
            "bytes": self.bytes,
            "peak_bytes": self.peak,
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "scsco_fast":
            return self._serve(func, args, kwargs)
        with self:  # below autograd a composite operation (matmul) arrives whole
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        reason = waits(func, args, kwargs)
        if reason is not None:
            self.wait(reason)
        out = self._run(func, args, kwargs)
        name = func.name()
        touched = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor) and leaf.is_meta]
        for tensor in touched:
            self._keep(tensor)
        if touched and not func.is_view and name.split(".")[0] not in NO_LAUNCH:
            self.operations[name] += 1
            self.bytes += nbytes(touched)
            formula = flop_registry.get(func.overloadpacket)
            if formula is not None:
                self.flops += formula(*args, **kwargs, out_val=out)
        return out

    def _serve(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An operation of ours, carried out by its backend: the body of the registered function, not its fake."""
        with self:
            return BODIES[func.name().removeprefix("scsco_fast::")](*args, **kwargs)

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = func.name().split(".")[0]
        if name == "aten::_fused_adamw_":  # in place; it has no form for meta tensors
            return None
        if name == "aten::_local_scalar_dense" and args[0].is_meta:
            return 1  # counted as a wait; any value lets the rest be counted
        if name == "aten::_to_copy" and args[0].is_meta and torch.device(kwargs.get("device") or META) != META:
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        try:
            return func(*args, **kwargs)
        except NotImplementedError as error:
            raise ScscoError(f"{name} at {_place()} cannot be counted: its result's size depends on values") from error

    def wait(self, reason: str) -> None:
        self.waits[f"{reason} at {_place()}"] += 1

    def launch(self, kernel: Any, arguments: tuple[Any, ...]) -> None:
        self.launches[kernel.__name__] += 1
        self.bytes += nbytes(arguments)

    def _keep(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            self._known.add(key)
            size = storage.nbytes()
            self.alive += size
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size


def _place() -> str:
    """The line of this project that called, for a reader to find."""
    own = [
        frame
        for frame in traceback.extract_stack()
        if Path(frame.filename).is_relative_to(ROOT) and "site-packages" not in frame.filename  # .venv lies in ROOT
    ]
    frame = next((frame for frame in reversed(own) if frame.filename != __file__), own[-1])
    return f"{Path(frame.filename).relative_to(ROOT)}:{frame.lineno}"


@contextmanager
def accounting() -> Iterator[Account]:
    """An `Account` under which meta tensors are served as a GPU's: by Triton, with fused and foreach operations.

    Raises:
        ScscoError: Triton interprets its kernels (TRITON_INTERPRET), or is not there: nothing would be launched.
    """
    if kernels.interpreted():
        raise ScscoError("launches are counted where Triton compiles: unset TRITON_INTERPRET")
    try:
        from triton.runtime.jit import JITFunction
    except ImportError as error:
        raise ScscoError(
            f"launches of Triton kernels are counted by Triton, which cannot be imported: {error}"
        ) from error
    account = Account()
    build, build_like = torch.tensor, Tensor.new_tensor

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        account.launch(kernel, (*args, *kwargs.values()))

    # torch.tensor(numbers, device="cuda") copies and waits for the copy; no dispatch mode sees it.
    def tensor(*args: Any, **kwargs: Any) -> Tensor:
        if torch.device(kwargs.get("device") or "cpu") == META:
            account.wait("torch.tensor on a device")
        return build(*args, **kwargs)

    def new_tensor(like: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if like.is_meta:
            account.wait("Tensor.new_tensor on a device")
        return build_like(like, *args, **kwargs)

    patches: list[tuple[Any, str, Callable[..., Any]]] = [
        (kernels, "unavailable", lambda: None),
        (kernels, "interpreted", lambda: True),  # so that any device is served
        (JITFunction, "run", run),
        (torch, "tensor", tensor),
        (Tensor, "new_tensor", new_tensor),
        (_foreach_utils, "_get_foreach_kernels_supported_devices", lambda: ["meta", "cpu"]),
        (optimizer, "_get_fused_kernels_supported_devices", lambda: ["meta", "cpu"]),
    ]
    with ExitStack() as stack:
        for owner, name, replacement in patches:
            stack.enter_context(mock.patch.object(owner, name, replacement))
        gc.collect()
        gc.disable()  # when it runs, and so the peak, would depend on everything before
        stack.callback(gc.enable)
        stack.enter_context(account)
        yield account
