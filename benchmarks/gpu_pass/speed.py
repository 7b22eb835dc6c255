"""Times of every operation beside what it has to beat, one variant at a time with nothing else running.

First the attention at the four maps of the decoder, then the other operations, then the network and what torch.compile
makes, of which FlexAttention takes longest. The kernels of a phase are compiled before its first time, by calling the
very function that is timed in many processes at once: only so is the specialisation the same, and the binary found in
Triton's cache.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cache, lru_cache, partial

import torch

from scsco_fast.benchmarks import end_to_end, operations, rows
from scsco_fast.benchmarks.gpu_pass.items import Item, Phase, Record
from scsco_fast.benchmarks.gpu_pass.plan import Plan
from scsco_fast.benchmarks.measure import Session, by_mode
from scsco_fast.benchmarks.operations import Case
from scsco_fast.benchmarks.timing import Ceiling, gradients_of, measure_ceiling
from scsco_fast.benchmarks.truth import outputs_and_gradients
from scsco_fast.ops._transfer_color import TRANSFERS

DTYPE = torch.bfloat16
TURNS = 0.1  # seconds of turns of one mode
ROW, COMPILED_ROW = 15.0, 75.0  # deadlines of a variant's rows: forward, backward and both
# Triton, the dense formula, and library attention on [v', v'^2].
ATTENTION = (
    *("triton", "reference", "SDPA", "SDPA unpadded", "SDPA cuDNN", "SDPA cuDNN unpadded"),
    *("SDPA flash", "SDPA flash unpadded"),
)
OPERATIONS = ("triton", "eager", "reference")
COMPILED = ("reference compiled", "FlexAttention")
Maker = Callable[[], Case]


def phases(plan: Plan) -> list[Phase]:
    first = [item for ratio in plan.ratios for item in attention(plan, ratio)]
    return [Phase(first), Phase(list(others(plan))), Phase(list(compiled(plan)))]


def attention(plan: Plan, ratio: float) -> Iterator[Item]:
    for size, channels in plan.maps:
        make = partial(attention_case, plan, size, channels, ratio)
        # Blocks past the count have an empty loop, so that every ratio runs the same binaries.
        warm = ("triton",) if ratio == plan.ratios[0] else ()
        label = f"bain_attention {size}x{size} C={channels} {ratio:.0%}"
        yield from variants(plan, label, make, ATTENTION, warm)


def others(plan: Plan) -> Iterator[Item]:
    where = (plan.device, dtype_of(plan), plan.batch)
    for size, channels in plan.maps:
        for function in (operations.region_norm, operations.bain_norm):
            make = partial(function, *where, channels, size, plan.ratios[0])
            yield from variants(plan, f"{function.__name__} {size}x{size} C={channels}", make, OPERATIONS)
    for size, channels in plan.vgg:
        for index, name in enumerate(("masked_gram", "cross_gram", "gram_distances", "feature_distances")):
            make = partial(style_case, plan, channels, size, index)
            yield from variants(plan, f"{name} {size}x{size} C={channels}", make, OPERATIONS)
    for method in TRANSFERS:
        make = partial(operations.transfer_color, plan.device, plan.batch, plan.colors, plan.ratios[0], method)
        yield from variants(plan, f"transfer_color {method}", make, OPERATIONS)


def compiled(plan: Plan) -> Iterator[Item]:
    for size in plan.pictures:
        make = partial(network_case, plan, size)
        names = ("triton", "eager", "auto compiled")
        yield from variants(plan, f"network {size}x{size}", make, names, ("triton", "auto compiled"), COMPILED_ROW)
    for name in COMPILED:
        for size, channels in plan.maps:
            make = partial(attention_case, plan, size, channels, plan.ratios[0], compile=True)
            label = f"bain_attention {size}x{size} C={channels}"
            yield from variants(plan, label, make, (name,), (name,), COMPILED_ROW)


def variants(
    plan: Plan, label: str, make: Maker, names: Sequence[str], warm: Sequence[str] = ("triton",), seconds: float = ROW
) -> Iterator[Item]:
    """An item for each variant of a case; the case itself is made when the first is measured."""
    for name in names:
        compiling = call_alone if name in (*COMPILED, "auto compiled") else call
        parts = [partial(compiling, label, make, name)] if name in warm else []
        yield Item(f"{label}: {name}", seconds, partial(measured, plan, label, make, name), parts)


def dtype_of(plan: Plan) -> torch.dtype:
    """The interpreter multiplies bfloat16 wrongly."""
    return torch.float32 if plan.rehearsing else DTYPE


def attention_case(plan: Plan, size: int, channels: int, ratio: float, compile: bool = False) -> Case:
    where = (plan.device, dtype_of(plan), plan.batch)
    return operations.bain_attention(*where, channels, size, ratio, libraries=True, compile=compile)


def style_case(plan: Plan, channels: int, size: int, index: int) -> Case:
    return operations.style_loss(plan.device, dtype_of(plan), plan.batch, channels, size)[index]


def network_case(plan: Plan, size: int) -> Case:
    base_channels, levels, batch = plan.network
    compiled = plan.device == "cuda"
    inference = end_to_end.Inference(base_channels, levels, batch, (size,), compiled)
    return end_to_end.inference_case(inference, plan.device, size, plan.ratios[0])


@lru_cache(maxsize=1)
def case_of(label: str, make: Maker) -> Case:
    """The case at hand: its inputs and its truth are kept for the next variant."""
    with operations.emulated_backends():
        return make()


def call_alone(label: str, make: Maker, name: str) -> None:
    """`call` in one of up to twelve processes that compile at once: each would start one more for every core."""
    import torch._inductor.config as inductor

    with inductor.patch(compile_threads=1):
        call(label, make, name)


def call(label: str, make: Maker, name: str) -> None:
    """One forward and backward of a variant, which compiles what it needs."""
    case = case_of(label, make)
    variant = next((v for v in case.variants if v.name == name), None)
    if variant is None:
        return
    tensors = variant.inputs(0)
    with torch.no_grad():
        outputs, _ = outputs_and_gradients(variant.function, tensors, ())
    if case.backward is not None and not variant.forward_only:
        outputs_and_gradients(variant.function, tensors, gradients_of(outputs, tensors[0].dtype))


def measured(plan: Plan, label: str, make: Maker, name: str) -> Iterator[Record]:
    """The rows of a variant, mode by mode. A row that a library refuses, or that is wrong, says so in its note."""
    case = case_of(label, make)
    variant = next((v for v in case.variants if v.name == name), None)
    if variant is None:
        yield {"note": f"{name} is not there: the backend cannot serve here, or the dense attention does not fit"}
        return
    ours = name in ("triton", "cuda")
    for found in by_mode(replace(case, variants=[variant]), session(plan)):
        for row in found:
            yield {"row": asdict(row), **({"passed": row.ms is not None} if ours else {})}


@cache
def session(plan: Plan) -> Session:
    """Ceilings are measured once for a process."""
    where = {"suite": "gpu_pass", **rows.machine(plan.device)}
    return Session(where, cache(partial(ceiling, plan)), TURNS if plan.device == "cuda" else 0.01)


def ceiling(plan: Plan) -> Ceiling:
    return measure_ceiling(plan.device, [DTYPE, torch.float32], quick=plan.rehearsing)
