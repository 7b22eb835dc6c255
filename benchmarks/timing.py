"""Time and memory of functions that take turns, and what this machine reaches: its ceilings.

A `Work` is one function in one mode with several sets of inputs. Works of one case take turns, so that whatever else
the machine does, and however warm it is, meets all of them; each turn takes the next set of inputs, so that no cache
holds the answer. On a GPU a work is captured in a CUDA graph over all its sets, which takes launching out of the time;
what cannot be captured is timed by events after the cache was overwritten, and its timing says why.
"""

import copy
import itertools
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scsco_fast.eager.products import product

CACHE = {"cuda": 2 * 50 * 2**20, "cpu": 64 * 2**20}  # bytes that the sets of inputs should have together
ROUNDS = (3, 40)  # turns of each work, at least and at most
SLOW_MS = 500.0  # a first turn of this length counts: the gate and the memory have warmed it up
TURN_MS = 1.0  # on a GPU a turn lasts at least this long: events resolve half a microsecond


@dataclass(frozen=True)
class Timing:
    """Median, 20 % and 80 % quantile in milliseconds."""

    ms: float
    low: float
    high: float
    events: str = ""  # why a GPU's work was timed by events, launching included, and not in a CUDA graph


@dataclass(frozen=True)
class Ceiling:
    """What this machine reaches: bytes read and written per second by a copy, operations per second by a matmul."""

    copy: float
    matmul: Mapping[torch.dtype, float]


class Work:
    """`function` on each of `sets` of inputs, in a mode: forward, backward, or both.

    A backward has random gradients of the outputs, the same for every function that computes the same.
    """

    def __init__(self, function: Callable[..., Any], sets: Sequence[list[Tensor]], mode: str) -> None:
        self.function, self.sets, self.mode = function, sets, mode
        self.held: tuple[Tensor, ...] = ()
        self.gradients = [] if mode == "forward" else gradients_of(self.forward(0), sets[0][0].dtype)

    def forward(self, index: int) -> tuple[Tensor, ...]:
        outputs = self.function(*self.sets[index])
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def with_new_leaves(self, count: int) -> "Work":
        """The same work on the first sets, whose tensors share memory with these and have no history."""
        other = copy.copy(self)
        other.sets = [[t.detach().requires_grad_(t.requires_grad) for t in tensors] for tensors in self.sets[:count]]
        other.held = ()
        return other

    def prepare(self, index: int) -> None:
        """What a backward needs and its time does not include."""
        if self.mode == "backward":
            self.held = ()
            self.held = self.forward(index)

    def run(self, index: int, keep: bool = False) -> None:
        """With `keep` what the forward saved stays."""
        outputs = self.held if self.mode == "backward" else self.forward(index)
        if self.mode != "forward":
            self.backward(outputs, index, keep)

    def backward(self, outputs: tuple[Tensor, ...], index: int, keep: bool = False) -> tuple[Tensor, ...]:
        leaves = [tensor for tensor in self.sets[index] if tensor.requires_grad]
        return torch.autograd.grad(outputs, leaves, self.gradients, retain_graph=keep)


def gradients_of(outputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Random gradients of outputs, on values that `dtype` holds: float64 and lower precision get the same."""
    device = outputs[0].device
    generator = torch.Generator(device).manual_seed(1)
    return [torch.randn(o.shape, generator=generator, device=device).to(dtype).to(o.dtype) for o in outputs]


def sets_that_fill_a_cache(tensors: Sequence[Tensor]) -> int:
    """How many sets of inputs like these are too much for a cache: 1 to 8."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return min(8, max(1, -(-CACHE[tensors[0].device.type] // size)))


def take_turns(works: Mapping[str, Work], seconds: float) -> dict[str, Timing | Exception]:
    """The timing of each work, or why it failed; together about `seconds`, but for at least three turns of each."""
    turns: dict[str, Callable[[int], float]] = {}
    events: dict[str, str] = {}
    found: dict[str, Timing | Exception] = {}
    times: dict[str, list[float]] = {}
    spent = 0.0
    for name, work in works.items():
        try:
            turns[name], events[name] = device_turn(work) if on_gpu(work) else (partial(host_turn, work), "")
            times[name] = [turns[name](0)]
            if times[name][0] < SLOW_MS:  # what took less may still have been warming up
                times[name] = [turns[name](1)]
            spent += times[name][0] / 1e3
        except Exception as problem:  # a row says why: out of memory, an unsupported shape, a library's refusal
            found[name] = problem
            turns.pop(name, None)
        work.held = ()
    rounds = min(ROUNDS[1], max(ROUNDS[0], int(seconds / max(spent, 1e-6))))
    for index, (name, turn) in itertools.product(range(1, rounds), turns.items()):
        times[name].append(turn(index))
        works[name].held = ()
    return found | {name: summary(times[name], events[name]) for name in turns}


def summary(times: Sequence[float], events: str = "") -> Timing:
    ordered = sorted(times)
    fifth = len(ordered) // 5
    return Timing(statistics.median(ordered), ordered[fifth], ordered[-1 - fifth], events)


def note_of(events: str) -> str:
    """What a row says of a time by events; "" where there is no reason for one."""
    return f"timed by events, launching included: {events}" if events else ""


def on_gpu(work: Work) -> bool:
    return work.sets[0][0].is_cuda


def host_turn(work: Work, index: int) -> float:
    """Milliseconds of one run on the CPU."""
    index %= len(work.sets)
    work.prepare(index)
    start = time.perf_counter()
    work.run(index)
    return 1e3 * (time.perf_counter() - start)


def device_turn(work: Work) -> tuple[Callable[[int], float], str]:
    """A function that times one run on the GPU: a graph of all sets, or single runs with an overwritten cache; and why
    it is the latter."""
    for index in range(2):  # what is compiled or loaded at the first call
        work.prepare(index % len(work.sets))
        work.run(index % len(work.sets))
    torch.cuda.synchronize()
    work.held = ()
    before = torch.cuda.current_stream()
    try:
        graph, count = capture(work)
    except Exception as problem:
        torch.cuda.set_stream(before)  # a capture that ends in an error leaves its stream current (torch 2.11)
        torch.cuda.synchronize()
        cache = torch.empty(CACHE["cuda"], dtype=torch.uint8, device=work.sets[0][0].device)
        return partial(event_turn, work, cache), f"{type(problem).__name__}: {' '.join(str(problem).split())[:120]}"
    replays = max(1, int(TURN_MS / max(elapsed(graph.replay), 1e-3)))

    def replay() -> None:
        for _ in range(replays):
            graph.replay()

    def turn(_: int) -> float:
        return elapsed(replay) / (replays * count)

    return turn, ""


def capture(work: Work) -> tuple[torch.cuda.CUDAGraph, int]:
    """A graph that runs the work once for each of the sets, or of as many as memory allows, and their number.

    A backward waits for the stream on which a leaf was first used. So leaves are new here, and used on the capturing
    stream alone: waiting for another, the default one above all, ends a capture with an error.
    """
    count = len(work.sets)
    if work.mode == "backward":
        count = max(1, min(count, int(torch.cuda.mem_get_info()[0] / 8 / max(device_peak(work, 0), 1))))
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    held: list[tuple[Tensor, ...]] = []
    with torch.cuda.stream(stream):
        work = work.with_new_leaves(count)
        for index in range(count):
            if work.mode == "backward":
                held.append(work.forward(index))
                work.backward(held[-1], index, keep=True)
            else:
                work.run(index)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        for index in range(count):
            if work.mode == "backward":
                work.backward(held[index], index, keep=True)
            else:
                work.run(index)
    graph.held = held, work  # type: ignore[attr-defined]  # what a replayed backward reads
    return graph, count


def captures_backward(device: str) -> str | None:
    """Why a backward cannot be captured in a CUDA graph here, so that it would be timed by events; None if it can."""
    tensors = [torch.rand(64, 64, device=device, requires_grad=True) for _ in range(2)]
    work = Work(torch.mm, [tensors], "backward")
    return device_turn(work)[1] or None


def event_turn(work: Work, cache: Tensor, index: int) -> float:
    work.prepare(index % len(work.sets))
    cache.zero_()
    return elapsed(partial(work.run, index % len(work.sets)))


def elapsed(call: Callable[[], object]) -> float:
    """Milliseconds between two CUDA events around the call."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


# --- memory -----------------------------------------------------------------------------------------------------------


def peak_mib(work: Work) -> float:
    """MiB that tensors take at most during one run, above what they took before it."""
    work.prepare(0)
    # The profiler warns of what it did not see allocated: a backward must not free what the forward saved.
    peak = device_peak(work, 0) if on_gpu(work) else host_peak(partial(work.run, 0, keep=work.mode == "backward"))
    work.held = ()
    return peak / 2**20


def device_peak(work: Work, index: int) -> float:
    work.prepare(index)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work.run(index)
    torch.cuda.synchronize()
    work.held = ()
    return torch.cuda.max_memory_allocated() - before


def host_peak(call: Callable[[], object]) -> float:
    """Bytes that torch's allocator for the CPU gave out at most, above what it had: what a profiler writes down.

    Scratch memory that a library takes past the allocator is not seen.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else two lines on stderr each time
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate((event.nbytes() for event in events), initial=0))


def reset_resident_peak() -> int:
    """Forget the peak of this process's resident memory so far, and say what is in use, in KiB (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def resident(field: str) -> int:
    """KiB of this process (Linux): VmRSS now, or VmHWM at most. `getrusage` starts from the parent's peak instead."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


# --- ceilings ---------------------------------------------------------------------------------------------------------


def measure_ceiling(device: str, dtypes: Sequence[torch.dtype], quick: bool = False) -> Ceiling:
    """Copy bandwidth and matmul rates of this machine, now: the best of five turns."""
    gpu = device == "cuda"
    length, side = (2**24, 256) if quick else (2**30, 8192) if gpu else (2**28, 2048)
    target = torch.empty(length, dtype=torch.uint8, device=device)
    with torch.no_grad():
        source = torch.randint(256, (length,), dtype=torch.uint8, device=device)  # zeros copy faster on some GPUs
        copied = fastest(lambda source: target.copy_(source), [source])
        rates = {}
        for dtype in dtypes:
            operands = [torch.randn(side, side, device=device).to(dtype) for _ in range(2)]
            multiply = torch.mm if gpu else _batched_product
            rates[dtype] = 2 * side**3 / fastest(multiply, operands) * 1e3
    return Ceiling(2 * length / copied * 1e3, rates)


def _batched_product(left: Tensor, right: Tensor) -> Tensor:
    """By the faster of the libraries that PyTorch brings on a CPU."""
    return product(left.unsqueeze(0), right.unsqueeze(0))


def fastest(function: Callable[..., Any], tensors: list[Tensor]) -> float:
    """Milliseconds of the fastest of many turns: a ceiling is what the machine can do."""
    work = Work(function, [tensors], "forward")
    turn = device_turn(work)[0] if on_gpu(work) else partial(host_turn, work)
    return min(turn(0) for _ in range(5))
