"""What the machine is, whether every operation runs on it, and the start of the CUDA library's build."""

import importlib.metadata
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import torch

import scsco_fast as sf
from scsco_fast import cuda
from scsco_fast.benchmarks import rows
from scsco_fast.benchmarks.gpu_pass import tools
from scsco_fast.benchmarks.gpu_pass.items import Item, Phase, Record
from scsco_fast.benchmarks.gpu_pass.plan import Plan
from scsco_fast.benchmarks.gpu_pass.problems import BATCH, OTHERS, matmul_precision, problem, ragged
from scsco_fast.benchmarks.timing import captures_backward
from scsco_fast.info import doctor
from scsco_fast.ops._transfer_color import TRANSFERS

SECONDS = 25.0
TOOLS = ("nvcc", "ncu", "compute-sanitizer", "cuobjdump")
PACKAGES = ("torch", "triton", "numpy", "safetensors", "tensorboard", "scikit-image", "matplotlib", "ninja")
# The build shares the cores with the kernels' compilation of the next stage.
BUILD = "from scsco_fast.cuda import build; build.build(build.plan({target!r}))"


def phases(plan: Plan) -> list[Phase]:
    """All at once: each operation compiles up to ten kernels."""
    items = [
        Item("cuda library", SECONDS, partial(start_build, plan)),
        Item("machine", SECONDS, partial(machine, plan)),
        Item("doctor", SECONDS, lambda: iter([{"report": doctor()}])),
        *(Item(name, SECONDS, partial(launch, plan, name)) for name in ("bain_norm", "bain_attention", *OTHERS)),
        *(Item(f"transfer_color {method}", SECONDS, partial(recolor, plan, method)) for method in TRANSFERS),
        Item("a backward in a CUDA graph", SECONDS, partial(captured, plan)),
    ]
    return [Phase(items, together=True)]


def machine(plan: Plan) -> Iterator[Record]:
    yield {"machine": rows.machine(plan.device), "python": sys.version.split()[0], "system": platform.platform()}
    yield {"packages": {name: _version(name) for name in PACKAGES}, "backends": sf.ops.backends()}
    yield {"tools": {name: tools.find(name) for name in TOOLS}}
    if plan.device == "cuda":
        facts = torch.cuda.get_device_properties(0)
        names = ("name", "major", "minor", "total_memory", "multi_processor_count", "L2_cache_size")
        yield {"device properties": {name: getattr(facts, name, None) for name in names}}
        tool = shutil.which("nvidia-smi")
        report = subprocess.run([tool], capture_output=True, text=True, check=False).stdout if tool else "not there"
        yield {"nvidia-smi": report}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def start_build(plan: Plan) -> Iterator[Record]:
    """Begin to compile csrc/ unless a library for this GPU was carried along; the stage `cuda` waits for its end."""
    from scsco_fast.cuda import library

    target = "emulated" if cuda.emulated() else "cuda"
    found = library.find(target)
    if found is None:
        log = plan.cache / "build.log"
        with log.open("w") as file:
            command = ["nice", sys.executable, "-c", BUILD.format(target=target)]
            # A session of its own: it goes on when this stage's processes are ended. In a folder that stays, as well.
            subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True, cwd=plan.cache)
        yield {"library": f"its build has begun, log in {log}"}
    else:
        yield {"library": str(found.path)}


def launch(plan: Plan, name: str) -> Iterator[Record]:
    """One forward and backward; right or wrong is the next stage's business, but nothing may be NaN."""
    kind, (size, keys, channels) = ("float16" if plan.rehearsing else "bfloat16"), plan.norm[0]
    found = problem(name, kind, channels, size, keys, plan.device)
    with matmul_precision(kind):
        results = found.compute(ragged(size, plan.device, BATCH), "triton")
    finite = {result: bool(torch.isfinite(t).all()) for result, t in zip(found.results, results, strict=True)}
    yield {"finite": finite, "passed": all(finite.values())}


def recolor(plan: Plan, method: str) -> Iterator[Record]:
    picture = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)).to(plan.device)
    result = sf.ops.transfer_color(picture, picture.flip(0), method, backend="triton")
    finite = bool(torch.isfinite(result).all())
    yield {"finite": finite, "passed": finite}


def captured(plan: Plan) -> Iterator[Record]:
    """Whether backwards are timed in CUDA graphs; by events their times would include launching."""
    if plan.device != "cuda":
        yield {"note": "there are no CUDA graphs on a CPU"}
        return
    reason = captures_backward(plan.device)
    yield {"reason": reason, "passed": reason is None}
