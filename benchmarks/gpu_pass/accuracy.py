"""Every operation, both ways, against float64; then equal bits: repeated, on a side stream, in CUDA graphs."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

import scsco_fast as sf
from scsco_fast.benchmarks.gpu_pass.items import Item, Phase, Record
from scsco_fast.benchmarks.gpu_pass.plan import Plan
from scsco_fast.benchmarks.gpu_pass.problems import (
    BATCH,
    KINDS,
    OTHERS,
    Problem,
    compare,
    counted,
    matmul_precision,
    oracle,
    problem,
    ragged,
)
from scsco_fast.ops._transfer_color import TRANSFERS
from scsco_fast.regions import Regions

SECONDS = 45.0
COUNTS = (1, 8, 24, 40, 250)
MASKS = ("block", "empty", "full", "one pixel", "random")  # that a captured graph is replayed with
# Largest error of a colour: a Lab or RGB statistic in float32, and a histogram's bin.
COLOR_ERROR = {"reinhard": 2e-4, "gaussian": 2e-5, "histogram": 1 / 256}


def phases(plan: Plan, backend: str = "triton") -> list[Phase]:
    """Every operation in bfloat16 first: training uses that."""
    kinds = ("bfloat16", "float16") if backend == "cuda" else KINDS
    items = [item for kind in kinds for item in of_kind(plan, backend, kind)]
    if backend == "triton":
        items += [
            Item(f"transfer_color {method} {dtype}", SECONDS, partial(color, plan, method, dtype))
            for method in TRANSFERS
            for dtype in ("float32", "bfloat16", "float16")
        ]
    return [Phase(items, together=True)]


def of_kind(plan: Plan, backend: str, kind: str) -> Iterator[Item]:
    device = plan.device

    def item(label: str, regions: Callable[[], Regions], *shape: int, batch: int = BATCH) -> Item:
        name, size, keys, channels = label.split()[0], *shape
        make = partial(problem, name, kind, channels, size, keys, device, batch)
        return Item(
            f"{label} {kind} {size}x{size} D={keys} C={channels}", SECONDS, lambda: accurate(make, regions, backend)
        )

    for size, keys, channels in plan.attention:
        yield item("bain_attention", partial(ragged, size, device), size, keys, channels)
    size = plan.counted[0]
    for label, counts in pairs_of_counts(size).items():
        for keys, channels in plan.counted[1]:
            regions = partial(counted, counts, size, device)
            yield item(f"bain_attention {label}", regions, size, keys, channels, batch=len(counts))
    if backend == "triton":
        for size, keys, channels in plan.norm:
            yield item("bain_norm", partial(ragged, size, device), size, keys, channels)
    for name in OTHERS:
        for channels, size in plan.features:
            yield item(name, partial(ragged, size, device), size, 0, channels)
    names = ("bain_attention", *(["bain_norm"] if backend == "triton" else []), *OTHERS)
    for name in names:
        size, keys, channels = plan.norm[0]
        make = partial(problem, name, kind, channels, size, keys, device)
        yield Item(f"{name} {kind} equal bits", SECONDS, partial(equal_bits, make, size, backend))
        yield Item(f"{name} {kind} graph with changed masks", SECONDS, partial(replayed, make, size, backend))


def pairs_of_counts(size: int) -> dict[str, list[tuple[int, int]]]:
    """Numbers of foreground and background pixels of the images of a batch."""
    pixels = size * size
    return {
        "few foreground": [(count, pixels - count) for count in COUNTS],
        "few background": [(pixels - count, count) for count in COUNTS],
        "few of both": list(zip(COUNTS, reversed(COUNTS), strict=True)),
    }


def accurate(make: Callable[[], Problem], regions: Callable[[], Regions], backend: str) -> Iterator[Record]:
    yield from compare(make(), regions(), backend)


def equal_bits(make: Callable[[], Problem], size: int, backend: str) -> Iterator[Record]:
    """The same inputs again, and on a side stream."""
    found, regions = make(), ragged(size, make().leaves[0].device.type)
    with matmul_precision(found.kind):
        first = found.compute(regions, backend)
        again = found.compute(regions, backend)
        aside = on_side_stream(lambda: found.compute(regions, backend))
    for result, a, b, c in zip(found.results, first, again, aside, strict=True):
        repeated, same_aside = torch.equal(a, b), torch.equal(a, c)
        yield {"result": result, "repeated": repeated, "side stream": same_aside, "passed": repeated and same_aside}


def replayed(make: Callable[[], Problem], size: int, backend: str) -> Iterator[Record]:
    """One captured graph from the mask on, with other masks and inputs copied in, against ordinary calls."""
    found = make()
    mask = oracle.make_mask("ragged", BATCH, size, size).float().to(found.leaves[0].device)

    def compute() -> list[Tensor]:
        return found.compute(Regions(mask), backend)

    with matmul_precision(found.kind):
        outputs, replay = captured(compute)
        for seed, name in enumerate(MASKS):
            mask.copy_(oracle.make_mask(name, BATCH, size, size))
            for leaf in found.leaves:
                leaf.copy_(leaf.roll(seed + 1, -1))
            replay()
            same = [torch.equal(a, b) for a, b in zip(outputs, compute(), strict=True)]
            different = [result for result, equal in zip(found.results, same, strict=True) if not equal]
            yield {"mask": name, "different": different, "passed": not different}


def on_side_stream(compute: Callable[[], list[Tensor]]) -> list[Tensor]:
    """On the CPU, which has no streams, an ordinary call."""
    if not torch.cuda.is_available():
        return compute()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = compute()
    torch.cuda.current_stream().wait_stream(stream)
    return found


def captured(compute: Callable[[], list[Tensor]]) -> tuple[list[Tensor], Callable[[], object]]:
    """The outputs of a CUDA graph, and what replays it; on the CPU, what computes them anew."""
    if not torch.cuda.is_available():
        outputs = compute()
        return outputs, lambda: [old.copy_(new) for old, new in zip(outputs, compute(), strict=True)]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):  # compiles, and lets the allocator have what it needs
            compute()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        outputs = compute()
    return outputs, graph.replay


def color(plan: Plan, method: str, dtype_name: str) -> Iterator[Record]:
    """transfer_color against float64, repeated, and replayed with other masks."""
    dtype: torch.dtype = getattr(torch, dtype_name)
    height, width = (96, 80) if plan.device == "cuda" else (24, 20)
    generator = torch.Generator().manual_seed(0)
    source = (torch.rand(2, 3, height, width, generator=generator) * 0.5 + 0.2).to(dtype).to(plan.device)
    reference = (torch.rand(2, 3, width, height, generator=generator) ** 2).to(dtype).to(plan.device)
    masks = [
        (oracle.make_mask(kind, 2, *t.shape[2:]) > 0.5).to(plan.device)
        for kind, t in (("block", source), ("random", reference))
    ]

    def compute(values: Sequence[Tensor], backend: str) -> list[Tensor]:
        return [sf.ops.transfer_color(values[0], values[1], method, masks[0], backend, masks[1])]

    (ours,), (truth,) = (
        compute(v, b) for v, b in (((source, reference), "triton"), ((source.double(), reference.double()), "eager"))
    )
    error, allowed = float((ours.double() - truth).abs().max()), COLOR_ERROR[method] + torch.finfo(dtype).eps
    yield {"result": "picture", "error": error, "allowed": allowed, "passed": error <= allowed}
    again = compute((source, reference), "triton")[0]
    yield {"result": "picture", "repeated": torch.equal(ours, again), "passed": torch.equal(ours, again)}
    outputs, replay = captured(lambda: compute((source, reference), "triton"))
    for mask in ("empty", "full", "one pixel"):
        masks[0].copy_(oracle.make_mask(mask, 2, height, width) > 0.5)
        source.copy_(source.flip(1))
        replay()
        same = torch.equal(outputs[0], compute((source, reference), "triton")[0])
        yield {"mask": mask, "passed": same}
