"""Whole networks: the generator's forward at several sizes, and a step of training."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

import scsco_fast as sf
from scsco_fast.benchmarks import operations
from scsco_fast.benchmarks.baselines import compiled
from scsco_fast.benchmarks.measure import Session, measure
from scsco_fast.benchmarks.operations import Case, Count, Variant, square_level
from scsco_fast.benchmarks.rows import Row

DENSE_LARGEST = 256  # pixels of a picture's side: above, the dense attention of the finest level takes gigabytes


@dataclass(frozen=True)
class Inference:
    """The network and the pictures' sizes."""

    base_channels: int
    levels: int
    batch: int
    sizes: Sequence[int]
    compiled: bool


@dataclass(frozen=True)
class Training:
    """Pictures in a step, and timed steps."""

    batch: int
    rounds: int


def inference(plan: Inference, device: str, session: Session) -> list[Row]:
    """Rows of `HarmonizationUNet`'s forward without gradients, float32, by the backend of its operations."""
    return [row for size in plan.sizes for row in measure(inference_case(plan, device, size), session)]


def inference_case(plan: Inference, device: str, size: int, foreground: float = 0.2) -> Case:
    """Operations: those of the convolutions, as torch counts them. Bytes: weights, composite, mask and output."""
    from torch.utils.flop_counter import FlopCounterMode

    torch.manual_seed(0)
    model = sf.HarmonizationUNet(base_channels=plan.base_channels, levels=plan.levels, head="residual")
    model = model.to(device).eval().requires_grad_(False)
    level, n_fg = square_level(plan.batch, size, foreground, device)
    mask = level.foreground.float()

    @cache
    def inputs(seed: int) -> list[Tensor]:
        generator = torch.Generator(device).manual_seed(seed)
        return [torch.rand(plan.batch, 3, size, size, generator=generator, device=device)]

    def forward(network: Any, backend: str, composite: Tensor) -> Tensor:
        with torch.no_grad(), sf.use_backend(backend):
            return network(composite, mask.to(composite.dtype))

    @cache
    def wanted() -> tuple[list[Tensor], list[Tensor]]:
        double = sf.HarmonizationUNet(**model.config).to(device).eval().double()
        double.load_state_dict(model.state_dict())
        return [forward(double, "eager", inputs(0)[0].double())], []

    names = [name for name in operations.backends(device) if name != "reference" or size <= DENSE_LARGEST]
    variants = [Variant(name, partial(forward, model, name), inputs, wanted) for name in names]
    if plan.compiled:
        fast = compiled(model)
        variants.append(Variant("auto compiled", partial(forward, fast, "auto"), inputs, wanted))
    with FlopCounterMode(display=False) as counter:
        forward(model, "eager", inputs(0)[0])
    flops = counter.get_flop_counts()["Global"]
    convolutions = sum(count for name, count in flops.items() if "convolution" in str(name))
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    count = Count(float(convolutions), float(weights + 4 * 7 * plan.batch * size * size))
    share = n_fg / (size * size)
    return Case("inference", torch.float32, plan.batch, plan.base_channels, size, share, variants, count)


def training(plan: Training, device: str, where: dict[str, Any]) -> list[Row]:
    """Rows of a training step: `scsco_fast.benchmarks.training`, whose variants live in processes of their own."""
    from scsco_fast.benchmarks import training as program

    config = dataclasses.replace(program.settings(device, smoke=False), batch_size=plan.batch)
    try:
        return program.benchmark(config, program.DEFAULTS[device], plan.rounds, where)
    except (Exception, SystemExit) as problem:
        print(f"training step: {problem}", flush=True)
        return []
