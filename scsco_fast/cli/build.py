"""`scsco build`: the CUDA library."""

import sys
import time
from dataclasses import dataclass

from scsco_fast.cli.parsing import parse


@dataclass(frozen=True)
class BuildOptions:
    """Compile the CUDA library into the cache, unless it is there already; needs nvcc, no GPU. Exit code 1: it failed.

    TORCH_CUDA_ARCH_LIST names the architectures, otherwise this machine's GPUs do; MAX_JOBS limits the compilers that
    run at once; SCSCO_CACHE_DIR is the cache. Beside a CPU build of torch it makes a library for other machines.
    """

    emulated: bool = False
    """The same kernels as C++ for the CPU, with g++: what SCSCO_CUDA_EMULATION=1 uses."""


def command(arguments: list[str]) -> int:
    options = parse(BuildOptions, arguments, "scsco build")
    from scsco_fast.cuda import build, compilers, resources

    start = time.perf_counter()
    target = "emulated" if options.emulated else "cuda"
    try:
        plan = build.plan(target)
        if target == "cuda" and compilers.torch_is_cpu_only():
            print(f"the CUDA library is for other machines: {compilers.CPU_ONLY}")
        library = build.build(plan)
    except compilers.BuildError as error:
        print(f"scsco: error: {error}", file=sys.stderr)
        return 1
    print(f"{library} ({time.perf_counter() - start:.0f} s)")
    kernels = resources.read_log((library.parent / build.LOG).read_text())
    if kernels:
        print(resources.summary(kernels))
    return 0
