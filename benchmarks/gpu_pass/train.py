"""One training step of `paper`: the reference, the best of stock PyTorch, and ours, with a CUDA graph and without.

Each variant does its first step from the same weights and is held to the eager backend's in float32; then its time, its
peak memory, and what one step launches and waits for. At last every step of a short training in bfloat16 is compared
with an exact one, by Triton and by the eager backend (train/verify.py).
"""

import dataclasses
import statistics
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import scsco_fast as sf
from scsco_fast.benchmarks import training
from scsco_fast.benchmarks.gpu_pass.items import Item, Phase, Record
from scsco_fast.benchmarks.gpu_pass.journal import code_digest
from scsco_fast.benchmarks.gpu_pass.plan import Plan
from scsco_fast.data.samples import Sample
from scsco_fast.train.config import TrainConfig
from scsco_fast.train.presets import PRESETS
from scsco_fast.train.verify import verify

SECONDS, COMPILED_SECONDS = 60.0, 110.0
CAPTURES = 12  # steps until a CUDA graph of every canvas size of the three batches is captured
VERIFIED_STEPS = 4
LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")


def phases(plan: Plan) -> list[Phase]:
    """What compiles for a minute comes last, and after that what may compile again for each batch that does not fit."""
    names = list(variants(plan))
    items = [
        Item(name, COMPILED_SECONDS if config.get("compile") else SECONDS, partial(step, plan, name))
        for name, config in variants(plan).items()
    ]
    checks = [Item(f"verify {backend}", SECONDS, partial(verified, plan, backend)) for backend in ("triton", "eager")]
    first = names.index("stock-sdpa")
    return [Phase([*items[:first], *checks, *items[first:]])]


def variants(plan: Plan) -> dict[str, dict[str, Any]]:
    """Fields of the configuration that make each variant; those of training.py, and ours without its compilation."""
    known = training.variants(plan.device)
    # On the CPU auto would take Triton's interpreter, and there are no graphs.
    ours = {**known["fast"], "compile": False, **({"backend": "eager"} if plan.rehearsing else {})}
    found = {
        "ours": ours,
        "ours, graph": {**ours, "cuda_graph": not plan.rehearsing},
        "reference": known["reference"],
        "stock-sdpa": known["stock-sdpa"],
        "ours, compiled": {**ours, "compile": known["fast"].get("compile", False)},
        "stock": known["stock"],
    }
    return found


def step(plan: Plan, name: str) -> Iterator[Record]:
    """With the largest batch that fits: halved until it does."""
    base = training.settings(plan.device, smoke=plan.rehearsing)
    config = dataclasses.replace(base, **variants(plan)[name])
    patch = training.sdpa_attention() if name == "stock-sdpa" else nullcontext()
    with patch, sf.use_backend(config.backend):
        while True:
            try:
                worker = training.Worker(config)
                found = worker.first()
                break
            except torch.OutOfMemoryError:
                if config.batch_size == 1:
                    raise
            worker = None  # type: ignore[assignment]
            torch.cuda.empty_cache()
            config = dataclasses.replace(config, batch_size=config.batch_size // 2)
            yield {"note": f"out of memory, tried with batch {config.batch_size}"}
        yield {"batch": config.batch_size, **judged(plan, config, found)}
        for _ in range(CAPTURES if config.cuda_graph else 3):  # other canvas sizes, the optimizer's state
            worker()
        times = [1e3 * worker() for _ in range(plan.steps)]
        yield {"ms": statistics.median(times), "times": times, "peak_mib": peak_mib(worker), "batch": config.batch_size}
        yield account(worker)


def judged(plan: Plan, config: TrainConfig, found: dict[str, Any]) -> Record:
    """How far the loss terms and the gradient of the first step are from those of eager operations in float32."""
    terms, gradient = truth(plan, config.batch_size)
    apart, turned = training.differences(found["terms"], found["gradient"], terms, gradient)
    loss_gate, gradient_gate = training.GATES[config.precision]
    passed = apart <= loss_gate and turned <= gradient_gate
    return {"loss error": apart, "gradient error": turned, "passed": passed}


def truth(plan: Plan, batch: int) -> tuple[dict[str, float], Tensor]:
    """Of a batch of this size; kept in the cache for the other variants' processes."""
    path = plan.cache / f"first-step-{code_digest()}-{plan.device}-{batch}.pt"
    if not path.exists():
        base = training.settings(plan.device, smoke=plan.rehearsing)
        config = dataclasses.replace(base, **training.PLAIN | {"backend": "eager"}, batch_size=batch)
        with sf.use_backend("eager"):
            found = training.Worker(config).first()
        part = path.with_suffix(".part")
        torch.save((found["terms"], found["gradient"]), part)
        part.replace(path)
    terms, gradient = torch.load(path)
    return terms, gradient


def peak_mib(worker: training.Worker) -> float | None:
    """Of one step, all that torch's allocator gave out; the CPU has none that counts."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.reset_peak_memory_stats()
    worker()
    return torch.cuda.max_memory_allocated() / 2**20


def account(worker: training.Worker) -> Record:
    """Launches and waits of one step: CUDA's runtime calls by name, and the kernels that ran.

    `torch_waits` are what torch warns of as waiting for the device; the step's own two synchronisations around its
    time are among the runtime calls only.
    """
    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        if on_gpu:
            torch.cuda.set_sync_debug_mode("warn")
            worker()
            torch.cuda.set_sync_debug_mode("default")
    torch_waits = [str(warning.message)[:120] for warning in seen if "synchroniz" in str(warning.message)]
    with profile(activities=activities) as profiler:
        worker()
    events = profiler.events()
    assert events is not None
    names = Counter(event.name for event in events)
    kernels = sum(event.device_type.name == "CUDA" for event in events)
    return {
        "launches": {name: count for name, count in names.items() if name.startswith(LAUNCHES)},
        "waits": {name: count for name, count in names.items() if name.startswith(WAITS)},
        "torch_waits": torch_waits,
        "on device": kernels,
        "operations": sum(count for name, count in names.items() if name.startswith("aten::")),
    }


class Noise:
    """The benchmark's pictures, one by one, as a data set."""

    def __init__(self, config: TrainConfig) -> None:
        self.composite, self.real, self.mask = training.batch(config, 0)

    def __len__(self) -> int:
        return len(self.mask)

    def __getitem__(self, index: int) -> Sample:
        at = index % len(self)
        return Sample(self.composite[at], self.real[at], self.mask[at], f"noise {at}", "noise")


def verified(plan: Plan, backend: str) -> Iterator[Record]:
    """`scsco train --verify` of a small network in bfloat16, held to the dense operations in float64."""
    changed: dict[str, Any] = {"backend": backend}
    if plan.rehearsing:
        changed = {"backend": "eager", "size": 64, "base_channels": 4, "batch_size": 2}
    config = dataclasses.replace(
        PRESETS["demo"],
        **changed,
        output=str(plan.cache / f"verify-{backend}"),
        device=plan.device,
        precision="bfloat16",
        vgg_weights="random",
        workers=0,
    )
    result = verify(config, VERIFIED_STEPS, Noise(config))
    for check in result.checks:
        yield {"check": check.name, **check._asdict(), "passed": check.passed}
