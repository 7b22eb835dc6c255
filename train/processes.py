"""The processes of a run, and what they exchange; the methods have the names of torch.distributed."""

import atexit
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from scsco_fast.errors import ScscoError
from scsco_fast.system.extras import require


class Processes:
    """One process alone; `start_processes` gives the ones that a launcher started, with the same methods.

    Attributes:
        rank: number of this process, from 0.
        world_size: how many there are.
        device: the device that the launcher's environment gives this process; None: the configuration decides.
    """

    rank = 0
    world_size = 1
    device: torch.device | None = None

    def all_gather_integers(self, numbers: Sequence[int]) -> list[list[int]]:
        """Every process's `numbers` (as many on each), from host to host: no device is waited for."""
        return [list(numbers)]

    def all_gather_object(self, value: Any) -> list[Any]:
        """Every process's `value`, by rank."""
        return [value]

    def all_reduce(self, values: Tensor) -> Tensor:
        """The sum of every process's `values`, on the device."""
        return values

    def gather_rows(self, tensor: Tensor, counts: Sequence[int]) -> Tensor:
        """Every process's rows in one tensor, of which process r has counts[r]; stays on the device."""
        return tensor

    def wrap(self, module: nn.Module, deterministic: bool) -> nn.Module:
        """The module whose backward averages gradients over the processes."""
        return module

    def no_sync(self, module: nn.Module) -> AbstractContextManager[None]:
        """Within it, backward only adds to this process's own gradients."""
        return nullcontext()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Every process runs the block; a `ScscoError` on any of them is then raised on all.

        Without it the others would wait for ever, at their next exchange, for the process that has left.
        """
        error: ScscoError | None = None
        try:
            yield
        except ScscoError as raised:
            error = raised
        messages = self.all_gather_object(None if error is None else str(error))
        if error is not None:
            raise error
        for message in messages:
            if message is not None:
                raise ScscoError(message)

    def agree(self, value: Any, what: str) -> None:
        """Refuse to go on where processes have different values, as without a shared file system."""
        values = self.all_gather_object(value)
        if any(other != values[0] for other in values):
            found = ", ".join(f"{rank}: {other}" for rank, other in enumerate(values))
            raise ScscoError(f"processes have a different {what} ({found}); they need one file system and one command")


class LaunchedProcesses(Processes):
    """The processes that torchrun or `accelerate launch` started: gloo between CPUs, NCCL between GPUs.

    Args:
        cpu: do not use GPUs.

    Raises:
        ScscoError: accelerate is missing, or the processes do not find each other.
    """

    def __init__(self, cpu: bool) -> None:
        require("training in several processes", "train", "accelerate")
        import torch.distributed as dist
        from accelerate import Accelerator

        try:
            self.accelerator = Accelerator(cpu=cpu or not torch.cuda.is_available(), mixed_precision="no")
            self.hosts = dist.new_group(backend="gloo")  # beside NCCL: numbers that are on the host anyway
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ScscoError(
                f"the processes of this run cannot reach each other ({reason}); see the launcher"
            ) from error
        self.rank, self.world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.device = self.accelerator.device

    def all_gather_integers(self, numbers: Sequence[int]) -> list[list[int]]:
        import torch.distributed as dist

        own = torch.tensor(numbers, dtype=torch.int64)
        found = [torch.empty_like(own) for _ in range(self.world_size)]
        dist.all_gather(found, own, group=self.hosts)
        return [row.tolist() for row in found]

    def all_gather_object(self, value: Any) -> list[Any]:
        import torch.distributed as dist

        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, value, group=self.hosts)
        return found

    def all_reduce(self, values: Tensor) -> Tensor:
        total: Tensor = self.accelerator.reduce(values, reduction="sum")
        return total

    def gather_rows(self, tensor: Tensor, counts: Sequence[int]) -> Tensor:
        largest = max(counts)
        padded = tensor.new_zeros((largest, *tensor.shape[1:]))
        padded[: len(tensor)] = tensor
        gathered: Tensor = self.accelerator.gather(padded)
        return torch.cat([part[:count] for part, count in zip(gathered.split(largest), counts, strict=True)])

    def wrap(self, module: nn.Module, deterministic: bool) -> nn.Module:
        from accelerate import DistributedDataParallelKwargs

        # Unless it looks for unused parameters, DDP sorts its buckets anew after the first step, which changes the
        # order of a sum over three or more processes: a resumed run would then differ in the last bit.
        self.accelerator.ddp_handler = DistributedDataParallelKwargs(
            broadcast_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=deterministic
        )
        with warnings.catch_warnings():
            # torch 2.13 renames broadcast_buffers; accelerate, and torch before it, know only this name.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            wrapped: nn.Module = self.accelerator.prepare_model(module, device_placement=False)
        return wrapped

    def no_sync(self, module: nn.Module) -> AbstractContextManager[None]:
        return self.accelerator.no_sync(module)


def start_processes(device: str = "auto") -> Processes:
    """This process among those that a launcher started with `WORLD_SIZE` above 1, or alone.

    Raises:
        ScscoError: the processes do not find each other, or `device` names one GPU for all of them.

    Examples:
        >>> processes = start_processes("cpu")
        >>> processes.rank, processes.world_size
        (0, 1)
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    if device not in ("auto", "cpu", "cuda"):
        raise ScscoError(f"device is {device!r} for {os.environ['WORLD_SIZE']} processes; wanted auto, cpu or cuda")
    processes = LaunchedProcesses(cpu=device == "cpu")
    atexit.register(_leave)
    return processes


def _leave() -> None:
    """Close the process group before the interpreter goes: its threads, if still alive then, end some runs by abort."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
