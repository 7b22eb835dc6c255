"""What ptxas says each kernel needs, from the log of a build: registers, stack, spills, static shared memory."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Resources:
    """Of one kernel on one architecture.

    Attributes:
        kernel: its mangled name.
        architecture: such as "sm_80".
        registers: per thread.
        stack: bytes of local arrays and calls per thread.
        spilled: bytes of spill stores and loads per thread.
        shared: bytes of static shared memory per block.
    """

    kernel: str
    architecture: str
    registers: int
    stack: int
    spilled: int
    shared: int


def read_log(text: str) -> list[Resources]:
    """Every kernel that the log of a build names (nvcc with -Xptxas=-v)."""
    _, *pieces = re.split(r"Compiling entry function '([^']+)' for '([^']+)'", text)
    return [_resources(*piece) for piece in zip(pieces[::3], pieces[1::3], pieces[2::3], strict=True)]


def _resources(kernel: str, architecture: str, text: str) -> Resources:
    def total(pattern: str) -> int:
        return sum(int(number) for number in re.findall(pattern, text))

    spilled = total(r"(\d+) bytes spill stores") + total(r"(\d+) bytes spill loads")
    used = (total(r"Used (\d+) registers"), total(r"(\d+) bytes stack frame"), spilled, total(r"(\d+) bytes smem"))
    return Resources(kernel, architecture, *used)


def summary(kernels: list[Resources]) -> str:
    """One line: how many kernels, the most registers, and which spill."""
    spilling = sorted(
        {f"{kernel.kernel} ({kernel.architecture})" for kernel in kernels if kernel.spilled or kernel.stack}
    )
    most = max((kernel.registers for kernel in kernels), default=0)
    return f"{len(kernels)} kernels, at most {most} registers, " + (
        f"spilling: {', '.join(spilling)}" if spilling else "no spills"
    )
