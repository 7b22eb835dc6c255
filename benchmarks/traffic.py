"""Bytes that each operation's Triton kernels load and store, counted lane by lane in Triton's interpreter.

    TRITON_INTERPRET=1 python -m scsco_fast.benchmarks.traffic      # a line of JSON: {case: {quantity: bytes}}

What a kernel's masks switch off is not counted, unlike the `bytes` of `counts.py`, which are whole tensors. Caches are
not modelled: what a kernel loads twice counts twice. float16 maps (1, 64, 32, 32), a fifth of them foreground.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import scsco_fast as sf
from scsco_fast import kernels
from scsco_fast.errors import ScscoError

BATCH, CHANNELS, SIZE, OTHERS = 1, 64, 32, 4
FOREGROUND = 0.2
TIMEOUT = 600  # seconds; it takes about 30 on one core

Traffic = dict[str, dict[str, int]]  # by case and quantity


def operations() -> dict[str, Callable[[], Tensor | tuple[Tensor, ...]]]:
    """A forward of every differentiable operation that has Triton kernels."""
    mask = torch.zeros(BATCH, 1, SIZE, SIZE)
    mask[..., : round(FOREGROUND * SIZE), :] = 1
    ops, regions = sf.ops, sf.Regions(mask)
    generator = torch.Generator().manual_seed(0)

    def maps(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=generator)
        return values.half().requires_grad_()

    def gain() -> Tensor:
        return torch.ones(CHANNELS, requires_grad=True)

    query, key, value, normalised = (maps(BATCH, CHANNELS, SIZE, SIZE) for _ in range(4))
    others = maps(BATCH, OTHERS, CHANNELS, SIZE, SIZE)
    gains = (gain(), gain(), gain(), gain())
    return {
        "bain_attention": lambda: ops.bain_attention(query, key, value, regions),
        "bain_norm": lambda: ops.bain_norm(query, key, value, normalised, regions, *gains),
        "region_norm": lambda: ops.region_norm(value, regions, *gains),
        "masked_gram": lambda: ops.masked_gram(value, regions),
        "cross_gram": lambda: ops.cross_gram(query, key),
        "feature_distances": lambda: ops.feature_distances(value, others),
        "gram_distances": lambda: ops.gram_distances(value, key, others),
    }


@contextmanager
def counted(found: Counter[str]) -> Iterator[None]:
    """Count what kernels load and store within the block into `loaded_bytes` and `stored_bytes`."""
    from triton.runtime.interpreter import InterpreterBuilder

    def counting(name: str, quantity: str, place: int) -> Any:
        original = getattr(InterpreterBuilder, name)

        def method(self: Any, pointers: Any, *arguments: Any) -> Any:
            lanes = int(arguments[place].data.astype(bool).sum())
            found[quantity] += lanes * pointers.get_element_ty().primitive_bitwidth // 8
            return original(self, pointers, *arguments)

        return mock.patch.object(InterpreterBuilder, name, method)

    # Those without a mask call these with a mask of ones.
    with counting("create_masked_load", "loaded_bytes", 0), counting("create_masked_store", "stored_bytes", 1):
        yield


def traffic(operation: Callable[[], Tensor | tuple[Tensor, ...]]) -> dict[str, int]:
    """Loaded and stored bytes of an operation's forward and backward."""
    found = Counter[str](loaded_bytes=0, stored_bytes=0)
    with counted(found), sf.use_backend("triton"):
        out = operation()
        outputs = out if isinstance(out, tuple) else (out,)
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
    return dict(found)


def count() -> Traffic:
    """The traffic of every operation, counted by a process of its own in which Triton interprets.

    Raises:
        ScscoError: that process failed.
    """
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", __name__]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=TIMEOUT)
    if run.returncode:
        raise ScscoError(f"the kernels' traffic cannot be counted: {run.stderr.strip().splitlines()[-1]}")
    return dict(json.loads(run.stdout))


def main() -> int:
    if not kernels.interpreted():
        print("error: TRITON_INTERPRET is not set: set it to 1, traffic is counted in the interpreter", file=sys.stderr)
        return 2
    print(json.dumps({f"{name} triton": traffic(run) for name, run in operations().items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
