"""What a launcher says of its kernels' configurations, so that they can be compiled ahead of time; needs no Triton."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
# The architectures that one line of the attention's configurations serves: shared memory decides.
CLASSES = {80: (80,), 86: (86, 89, 120), 90: (90,), 100: (100,)}
PIPELINED_CHANNELS = 128


@dataclass(frozen=True)
class Case:
    """One configuration of one kernel, as its launcher would compile it.

    Attributes:
        label: what a reader needs to recognise it: channels, key width, dtype.
        kernel: the `@triton.jit` function.
        signature: type of every argument that is not constexpr, by name: "*fp16", "*i64", "i32", "i64", "fp32".
        constexprs: value of every constexpr argument, and of arguments the launcher would specialise to 1.
        needs_tensor_cores: it multiplies matrices in something other than IEEE float32.
        architectures: the compute capabilities (80 = 8.0) that the launcher gives this configuration to.
        aligned: names of arguments divisible by 16; None: all pointers, and integers named "stride..." or "n_...".
        options: further options of the compiler, such as maxnreg.
        core: compiled by the test suite; the others only by `python -m scsco_fast.kernels.resources`.
    """

    label: str
    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    num_warps: int
    num_stages: int
    needs_tensor_cores: bool = False
    architectures: tuple[int, ...] = ARCHITECTURES
    aligned: tuple[str, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    core: bool = True

    @property
    def pipelined(self) -> bool:
        """Its matrix products must overlap: 16-bit operands, and not made for more than `PIPELINED_CHANNELS` alone.

        A kernel with a constant WIDTH is made for that many channels. Wider attention holds more sums than registers
        allow two products in flight for, and TF32 operands pass through registers.
        """
        half = any(kind in ("*fp16", "*bf16") for kind in self.signature.values())
        return self.needs_tensor_cores and half and self.constexprs.get("WIDTH", 0) <= PIPELINED_CHANNELS
