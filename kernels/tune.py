"""Tuning of the attention's configurations on the device at hand: `scsco bench --tune`, and nothing else, runs it.

For every line of the table that serves this device's architecture, and every kernel of the line, it climbs: it times
the neighbours of the configuration that stands there, takes the fastest and goes on from it until none is faster. A
candidate that would break the resource gate, fails to launch or is wrong against the formulas in float64 is none. The
table is written after each line, so that an interrupted run loses one line at most.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from scsco_fast.kernels import bain_attention, unavailable
from scsco_fast.kernels.bain_attention_table import PATH, TABLE, Config, Key, Line, write
from scsco_fast.kernels.resources import measure

GAIN = 0.98  # a neighbour is taken if it needs less than this share of the time: less than that is noise
BATCH, FOREGROUND = 16, 0.2
SIDES = {64: 128, 128: 64, 256: 32, 512: 16}  # pixels of a map's side by channels, as in the decoder
BLOCKS, WARPS, STAGES = (16, 32, 64, 128), (4, 8), (1, 2, 3, 4)

# Largest error of a result relative to its largest value. TF32 rounds operands to 2^-11, bfloat16 to 2^-9 of a value.
GATE = {"half": 3e-2, "tf32": 1e-2, "ieee": 1e-3}
EPS = 1e-5

Cost = Callable[[str, Config], float]  # of a kernel of the line under a configuration; infinite: it cannot be used


class Trial(NamedTuple):
    """What became of one candidate: `ms` of the forward or the backward, or the reason why it has none."""

    key: Key
    kernel: str
    config: Config
    shape: tuple[int, ...]  # of value
    dtype: str
    error: float | None = None
    ms: float | None = None
    reason: str = ""


def tune(
    minutes: float,
    report: Callable[[str], None],
    path: Path = PATH,
    record: Callable[[list[Trial]], None] | None = None,
) -> int:
    """Time this device's lines for about `minutes`, lines that were never timed first; returns how many were.

    `record` gets the trials of each line before the table is written with what they chose.

    Raises:
        RuntimeError: the kernels cannot run here, or the table cannot be written.
    """
    reason = unavailable()
    if reason is not None or not torch.cuda.is_available():
        raise RuntimeError(f"configurations are timed on a GPU: {reason or 'no CUDA device'}")
    write_or_explain(path)
    sm = bain_attention.architecture(torch.device("cuda", torch.cuda.current_device()))
    keys = sorted((key for key in TABLE if key[0] == sm), key=_urgency)
    deadline, done = time.monotonic() + 60 * minutes, 0
    for key in keys:
        if time.monotonic() > deadline:
            break
        before, trials = TABLE[key], list[Trial]()
        TABLE[key] = tuned(before, device_cost(key, trials.append))
        if record is not None:
            record(trials)
        write_or_explain(path)
        done += 1
        for name, config in TABLE[key].configs.items():
            was = before.configs[name]
            change = "stays" if config == was else f"was {','.join(map(str, was))}"
            report(f"{' '.join(map(str, key))} {name}: {','.join(map(str, config))} ({change})")
    report(f"{done} of {len(keys)} lines of sm_{sm} timed, written to {path}")
    return done


def _urgency(key: Key) -> tuple[bool, int, int]:
    """Lines that were never timed first, of these narrow keys and half precision, which training uses."""
    return TABLE[key].by == "timed", key[3], ("half", "tf32", "ieee").index(key[1])


def write_or_explain(path: Path) -> None:
    try:
        write(TABLE, path)
    except OSError as error:
        raise RuntimeError(
            f"the table {path} cannot be written ({error.strerror}): tune an editable install"
        ) from error


def tuned(line: Line, cost: Cost) -> Line:
    """The line with the fastest configuration of each kernel that climbing finds."""
    return Line("timed", {name: climb(config, partial(cost, name)) for name, config in line.configs.items()})


def climb(start: Config, cost: Callable[[Config], float]) -> Config:
    """Step to the cheapest neighbour while one is cheaper by more than noise; no configuration is tried twice."""
    best, least = start, cost(start)
    seen = {start}
    while True:
        costs = {config: cost(config) for config in neighbours(best) if config not in seen}
        seen |= set(costs)
        nearest = min(costs, key=lambda config: costs[config], default=best)
        if not costs or not costs[nearest] < GAIN * least:
            return best
        best, least = nearest, costs[nearest]


def neighbours(config: Config) -> Iterator[Config]:
    """Configurations that differ in one step of one number, or trade queries for keys."""
    ladders = {"block_m": BLOCKS, "block_n": BLOCKS, "warps": WARPS, "stages": STAGES}
    for field, ladder in ladders.items():
        at = ladder.index(getattr(config, field))
        for step in (at - 1, at + 1):
            if 0 <= step < len(ladder):
                yield config._replace(**{field: ladder[step]})
    for m, n in itertools.product((0.5, 2), repeat=2):
        blocks = int(config.block_m * m), int(config.block_n * n)
        if m != n and set(blocks) <= set(BLOCKS):
            yield config._replace(block_m=blocks[0], block_n=blocks[1])


def device_cost(key: Key, record: Callable[[Trial], object]) -> Cost:
    """Milliseconds of forward or backward with one kernel of the line under a configuration, others as they stand."""
    sm, kind, channels, keys = key
    tensors, order, counts = inputs(kind, channels, keys)
    truth = in_float64(tensors, order, counts)

    def judged(trial: Trial) -> Trial:
        if any(measure(case, sm).problems() for case in bain_attention.cases_of(*key, names=(trial.kernel,))):
            return trial._replace(reason="breaks the resource gate")
        forward, backward = calls(tensors, order, counts)
        run, wanted = (forward, truth[:2]) if trial.kernel == "fwd" else (backward, truth[2:])
        try:
            wrong = error(run(), wanted)
        except (triton.runtime.errors.OutOfResources, triton.compiler.errors.CompilationError) as problem:
            return trial._replace(reason=f"{type(problem).__name__}")
        if not wrong <= GATE[kind]:
            return trial._replace(error=wrong, reason=f"wrong: allowed {GATE[kind]:.0e}")
        ms = triton.testing.do_bench(run, warmup=10, rep=50, return_mode="median")
        return trial._replace(error=wrong, ms=float(ms))

    def cost(name: str, config: Config) -> float:
        trial = Trial(key, name, config, tuple(tensors[2].shape), str(tensors[2].dtype)[6:])
        with as_line(key, name, config), matmul_precision(kind):
            trial = judged(trial)
        record(trial)
        return math.inf if trial.ms is None else trial.ms

    return cost


@contextmanager
def as_line(key: Key, name: str, config: Config) -> Iterator[None]:
    """The table with one kernel's configuration changed."""
    before = TABLE[key]
    TABLE[key] = Line(before.by, {**before.configs, name: config})
    try:
        yield
    finally:
        TABLE[key] = before


@contextmanager
def matmul_precision(kind: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def inputs(kind: str, channels: int, keys: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """query, key, value and both gradients of a decoder level, and its order and counts."""
    side = SIDES[channels]
    dtype = torch.bfloat16 if kind == "half" else torch.float32
    generator = torch.Generator("cuda").manual_seed(0)
    shapes = [(BATCH, keys, side, side)] * 2 + [(BATCH, channels, side, side)] * 3
    tensors = [torch.randn(shape, generator=generator, device="cuda").to(dtype) for shape in shapes]
    pixels = side * side
    n_fg = round(FOREGROUND * pixels)
    order = torch.arange(pixels, device="cuda").expand(BATCH, pixels).contiguous()
    counts = torch.tensor([[n_fg, pixels - n_fg]] * BATCH, device="cuda")
    return tensors, order, counts


def calls(tensors: list[Tensor], order: Tensor, counts: Tensor) -> tuple[Callable[[], list[Tensor]], ...]:
    """The forward, and the backward of what it saved."""
    query, key, value, grad_mean, grad_std = tensors
    scale = query.shape[1] ** -0.5

    def forward() -> list[Tensor]:
        return list(bain_attention.forward(query, key, value, order, counts, scale, EPS))

    _, _, first, variance, lse = forward()
    saved = (first, variance, lse)

    def backward() -> list[Tensor]:
        return list(bain_attention.backward(grad_mean, grad_std, query, key, value, order, counts, *saved, scale, EPS))

    return forward, backward


def in_float64(tensors: list[Tensor], order: Tensor, counts: Tensor) -> list[Tensor]:
    """mean, std and the gradients of query, key and value by the formulas in float64, image by image."""
    images = [
        one_in_float64([t[index].double().flatten(1).T for t in tensors], order[index], int(counts[index, 0]))
        for index in range(len(order))
    ]
    height, width = tensors[0].shape[2:]
    return [torch.stack(parts).transpose(1, 2).unflatten(2, (height, width)) for parts in zip(*images, strict=True)]


def one_in_float64(rows: list[Tensor], order: Tensor, n_fg: int) -> tuple[Tensor, ...]:
    """The same of one image, as rows (pixels, channels); every pixel that is not foreground is background."""
    query, key, value, grad_mean, grad_std = rows
    leaves = [t.clone().requires_grad_() for t in (query, key, value)]
    foreground, background = order[:n_fg], order[n_fg:]
    q, k, v = leaves[0][foreground], leaves[1][background], leaves[2][background]
    weights = torch.softmax(q @ k.T * q.shape[1] ** -0.5, dim=1)
    mean = weights @ v
    centred = v - v.mean(dim=0)
    std = (weights @ centred.square() - (weights @ centred).square() + EPS).sqrt()
    gradients = torch.autograd.grad([mean, std], leaves, [grad_mean[foreground], grad_std[foreground]])
    everywhere = (torch.zeros_like(value).index_copy(0, foreground, mean), torch.ones_like(value))
    std = everywhere[1].index_copy(0, foreground, std)
    return everywhere[0].detach(), std.detach(), *gradients


def error(ours: list[Tensor], truth: list[Tensor]) -> float:
    """Largest difference relative to the largest value, the worst of those results that the truth has."""
    apart = [float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(ours, truth, strict=False)]
    return math.nan if any(value != value for value in apart) else max(apart)
