"""Time and peak memory of one training step: the reference configuration against the fast one.

    python -m benchmarks.training [--csv FILE]     # a GPU if there is one: `paper`, batch 16; else the demo's network
    python -m benchmarks.training --smoke          # tiny, on the CPU: does the program work?
    python -m benchmarks.training --flops          # convolutions of the style loss, counted; nothing is computed

Every variant lives in a process of its own, so that its peak memory is its own, and the processes take turns, one step
each, so that whatever else the machine does meets all of them. First each does one step from the same weights, and one
whose loss terms or gradient differ from the reference's gets no time. The median step of each is printed.

    reference   dense operations, VGG-16 on whole pictures, float32, eager mode
    whole       as `fast`, but VGG-16 on whole pictures
    stock       dense operations, VGG-16 on whole pictures, channels last; on a GPU compiled and in bfloat16
    stock-sdpa  the same with BAIN's attention by library SDPA on [v', v'^2] with masked keys
    contiguous  as `fast`, but VGG-16 in contiguous layout
    compiled    as `fast`, but compiled (on a GPU `fast` is)
    fast        what `scsco train` does here; on a GPU compiled and in bfloat16

On a CPU those that start from `fast` also keep the memory that they free, as `scsco train` does.

By default a GPU runs all but `contiguous` and `compiled`, a CPU `reference`, `whole` and `fast`; `scsco bench` too.

The pictures are noise, the masks ellipses whose areas are evenly spaced quantiles of iHarmony4's test set. Dropout and
gradient clipping are off. A variant that runs out of memory is tried with half the batch; rates are per image.
"""

import argparse
import dataclasses
import itertools
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

import scsco_fast as sf
from scsco_fast.benchmarks import rows
from scsco_fast.benchmarks.rows import Row
from scsco_fast.benchmarks.timing import reset_resident_peak, resident, summary
from scsco_fast.errors import ScscoError
from scsco_fast.regions import RegionLevel
from scsco_fast.train.config import TrainConfig
from scsco_fast.train.memory import kept_memory
from scsco_fast.train.presets import PRESETS
from scsco_fast.train.step import TrainingStep

# Share of iHarmony4's 7,404 test pictures, and the foreground ratio below which they lie: 3,831 up to 5 %, 1,955 up to
# 15 %, 1,618 above. What lies below 5 % and above 15 % is spread by guess.
QUANTILES = ((0.0, 0.002), (0.12, 0.01), (0.517, 0.05), (0.781, 0.15), (1.0, 0.6))
# Largest relative difference to the reference: of each loss term, and of the gradient in the Euclidean norm. float32:
# kinks (a difference or an activation that is 0 up to rounding) move single gradients; bfloat16 has eps 2^-8.
GATES = {"float32": (1e-4, 2e-2), "bfloat16": (5e-2, 0.5)}
FAST: dict[str, Any] = {"backend": "auto", "style_crop": True, "channels_last": True}
PLAIN: dict[str, Any] = {"backend": "reference", "style_crop": False, "channels_last": False, "precision": "float32"}
ON_GPU: dict[str, Any] = {"precision": "bfloat16", "compile": True}
DEFAULTS = {
    "cuda": ("reference", "whole", "stock", "stock-sdpa", "fast"),
    "cpu": ("reference", "whole", "fast"),
}


def variants(device: str) -> dict[str, dict[str, Any]]:
    """Fields of the configuration that make each variant."""
    extra = ON_GPU if device == "cuda" else {"precision": "float32"}
    return {
        "reference": PLAIN,
        "whole": {**FAST, **extra, "style_crop": False},
        "stock": {**PLAIN, **extra, "channels_last": True},
        "stock-sdpa": {**PLAIN, **extra, "channels_last": True},
        "contiguous": {**FAST, **extra, "channels_last": False},
        "compiled": {**FAST, **extra, "compile": True},
        "fast": {**FAST, **extra},
    }


def settings(device: str, smoke: bool) -> TrainConfig:
    """The configuration that all variants share."""
    if smoke:
        small: dict[str, Any] = {
            "base_channels": 4,
            "size": 128,
            "batch_size": 2,
            "negatives": 1,
            "vgg_layers": ("relu2_2",),
        }
        return dataclasses.replace(PRESETS["demo"], **SHARED, **small, device="cpu")
    if device == "cuda":
        return dataclasses.replace(PRESETS["paper"], **SHARED, device="cuda")
    # The demo's network at 256x256 with the style loss of `paper`; the demo's own, at 48x48, is 0.1 s of a step.
    of_paper: dict[str, Any] = {"negatives": 5, "vgg_layers": ("relu4_3",)}
    return dataclasses.replace(PRESETS["demo"], **SHARED, **of_paper, size=256, batch_size=4, device="cpu")


SHARED: dict[str, Any] = {
    "dropout": False,
    "clip_norm": None,
    "vgg_weights": "random",
    "style_every": 1,
    "style_size": None,
}


def batch(config: TrainConfig, index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Composite, real and mask on the CPU."""
    generator = torch.Generator().manual_seed(index)
    count, size = config.batch_size, config.size
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    real = F.interpolate(coarse, size=(size, size), mode="bicubic")
    real = (real + 0.05 * torch.randn(real.shape, generator=generator)).clamp(0, 1)
    mask = torch.stack([ellipse(size, ratio, generator) for ratio in foreground_ratios(count)])
    tone = 0.6 + 0.8 * torch.rand(count, 3, 1, 1, generator=generator)
    return torch.where(mask > 0, (real * tone).clamp(0, 1), real), real, mask


def foreground_ratios(count: int) -> list[float]:
    """Evenly spaced quantiles of `QUANTILES`, log-linear between its points."""
    ratios = []
    for place in ((index + 0.5) / count for index in range(count)):
        (low, start), (high, end) = next(pair for pair in itertools.pairwise(QUANTILES) if place <= pair[1][0])
        ratios.append(start * (end / start) ** ((place - low) / (high - low)))
    return ratios


def ellipse(size: int, ratio: float, generator: torch.Generator) -> Tensor:
    """(1, size, size) mask of this area, at a random place inside the picture, up to twice as high as wide."""
    stretch, across, down = torch.rand(3, generator=generator).tolist()
    half = math.sqrt(ratio / math.pi) * size
    tall, wide = (min(size / 2, half * 2 ** (sign * (stretch - 0.5))) for sign in (1, -1))
    y, x = tall + down * (size - 2 * tall), wide + across * (size - 2 * wide)
    rows, columns = torch.arange(size).reshape(-1, 1) + 0.5 - y, torch.arange(size) + 0.5 - x
    return ((rows / tall).square() + (columns / wide).square() <= 1).float().unsqueeze(0)


# --- one variant, in its process --------------------------------------------------------------------------------------


class Worker:
    """A model that trains as a variant says."""

    def __init__(self, config: TrainConfig) -> None:
        from scsco_fast.train.build import build_loss

        torch.manual_seed(config.seed)
        model = sf.HarmonizationUNet(**config.architecture())
        loss, _ = build_loss(config)
        if config.channels_last and config.backend == "reference":  # stock's network; ours is faster without
            torch.nn.utils.convert_conv2d_weight_memory_format(model, torch.channels_last)
        self.config, self.step = config, TrainingStep(model.to(config.device).train(), loss, config)
        self.batches = [batch(config, index) for index in range(3)]
        self.done = 0

    def __call__(self) -> float:
        """Do one step; its seconds."""
        composite, real, mask = self.batches[self.done % len(self.batches)]
        self._wait()
        start = time.perf_counter()
        boxes = sf.foreground_boxes(mask)
        composite, real, mask = (t.to(self.config.device, non_blocking=True) for t in (composite, real, mask))
        self.step(composite, real, mask, self.done, boxes)
        self._wait()
        self.done += 1
        return time.perf_counter() - start

    def first(self) -> dict[str, Any]:
        """Loss terms and gradient of the first step."""
        self()
        gradients = [p.grad.float().flatten().cpu() for p in self.step.parameters if p.grad is not None]
        return {"terms": self.step.read()["means"], "gradient": torch.cat(gradients)}

    def _wait(self) -> None:
        if self.config.device == "cuda":
            torch.cuda.synchronize()


@contextmanager
def sdpa_attention() -> Iterator[None]:
    """BAIN's attention by `scaled_dot_product_attention` over all pixels, with the foreground masked out as keys."""

    def bain_norm(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        normalised: Tensor,
        level: RegionLevel,
        fg_weight: Tensor,
        fg_bias: Tensor,
        bg_weight: Tensor,
        bg_bias: Tensor,
        scale: float | None,
        eps: float,
    ) -> Tensor:
        is_key = level.background.flatten(2)  # (B, 1, N)
        v = value.flatten(2).float()
        pivot = (v * is_key).sum(2, keepdim=True) / is_key.sum(2, keepdim=True).clamp(min=1)
        centred = ((v - pivot) * is_key).to(query.dtype)
        q, k = (t.flatten(2).transpose(1, 2).unsqueeze(1) for t in (query, key))  # (B, 1, N, D)
        moments = torch.cat([centred, centred.square()], dim=1).transpose(1, 2).unsqueeze(1)
        allowed = is_key.unsqueeze(1).expand(-1, -1, q.shape[2], -1)  # (B, 1, N, N), one row in memory
        found = F.scaled_dot_product_attention(q, k, moments, attn_mask=allowed, scale=scale)
        first, second = found.squeeze(1).transpose(1, 2).float().chunk(2, dim=1)
        use = level.foreground.flatten(2) & is_key.any(2, keepdim=True)
        mean = torch.where(use, first + pivot, 0).reshape(value.shape)
        std = torch.where(use, ((second - first.square()).clamp(min=0) + eps).sqrt(), 1).reshape(value.shape)
        gain, bias = (
            torch.where(level.foreground, inside.reshape(1, -1, 1, 1), outside.reshape(1, -1, 1, 1))
            for inside, outside in ((fg_weight, bg_weight), (fg_bias, bg_bias))
        )
        return ((std * normalised + mean) * gain + bias).to(normalised.dtype)

    with mock.patch("scsco_fast.nn.norm.bain_norm", bain_norm):
        yield


def serve(variant: str, config: TrainConfig) -> None:
    """Answer each line of the standard input with one line of JSON."""
    patch = sdpa_attention if variant == "stock-sdpa" else lambda: sf.use_backend(config.backend)
    memory = kept_memory() if config.device == "cpu" and config.backend != "reference" else nullcontext()
    with patch(), sf.use_backend(config.backend), memory:
        worker = Worker(config)
        for line in sys.stdin:
            command, _, argument = line.strip().partition(" ")
            try:
                print(json.dumps(answer(worker, command, argument)), flush=True)
            except torch.OutOfMemoryError:
                print(json.dumps({"error": "out of memory"}), flush=True)


def answer(worker: Worker, command: str, argument: str) -> dict[str, Any]:
    if command == "first":
        found = worker.first()
        torch.save(found["gradient"], argument)
        worker()  # the optimizer's state, and what a second set of canvases compiles or allocates
        worker()
        return {"terms": found["terms"]}
    on_gpu = worker.config.device == "cuda"
    if command == "peak":
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            reset_resident_peak()
        worker()
        peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else resident("VmHWM") / 2**10
        return {"peak_mib": peak}
    return {"seconds": worker()}


# --- the process that lets them take turns ----------------------------------------------------------------------------


class Variant:
    """The process of one variant."""

    def __init__(self, name: str, config: TrainConfig) -> None:
        self.name, self.config, self.times = name, config, list[float]()
        self.peak_mib = math.nan
        command = [sys.executable, "-m", "scsco_fast.benchmarks.training", "--serve", name, config.to_json()]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, command: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise ScscoError(f"variant {self.name} ended with status {self.process.wait()}; its message stands above")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def start(name: str, config: TrainConfig, gradient: Path) -> tuple[Variant, dict[str, float]]:
    """The variant after its first steps, with the largest batch that fits, and the terms of its first loss."""
    while True:
        variant = Variant(name, config)
        found = variant.ask(f"first {gradient}")
        if "error" not in found:
            return variant, found["terms"]
        variant.close()
        if config.batch_size == 1:
            raise ScscoError(f"variant {name} does not fit into memory with one picture")
        config = dataclasses.replace(config, batch_size=config.batch_size // 2)
        print(f"{name}: out of memory, tried with batch {config.batch_size}", flush=True)


def differences(
    terms: dict[str, float], gradient: Tensor, wanted: dict[str, float], wanted_gradient: Tensor
) -> tuple[float, float]:
    """Largest relative difference of a loss term, and of the gradient."""
    names = ("total", "reconstruction", "self_style", "consistency")
    apart = max(abs(terms[name] / wanted[name] - 1) for name in names)
    return apart, float((gradient - wanted_gradient).norm() / wanted_gradient.norm())


def benchmark(base: TrainConfig, names: Sequence[str], rounds: int, where: dict[str, Any]) -> list[Row]:
    """A row per variant; `where` are its first fields (`rows.machine`, and the suite)."""
    chosen = variants(base.device)
    running: list[Variant] = []
    errors: dict[str, float] = {}
    notes: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        truth: dict[int, tuple[dict[str, float], Tensor]] = {}  # by batch size
        for name in names:
            file = Path(folder) / name
            variant, terms = start(name, dataclasses.replace(base, **chosen[name]), file)
            running.append(variant)
            gradient, size = torch.load(file), variant.config.batch_size
            if size not in truth:
                truth[size] = (terms, gradient) if name == "reference" else true_step(base, chosen, size, folder)
            loss_gate, gradient_gate = GATES[variant.config.precision]
            apart, turned = differences(terms, gradient, *truth[size])
            errors[name] = apart
            notes[name] = f"error of the loss terms to the reference; of the gradient {turned:.1e}; peak of the process"
            print(f"{name}: loss terms off by {apart:.1e}, gradient by {turned:.1e}", flush=True)
            if not (apart <= loss_gate and turned <= gradient_gate):
                raise SystemExit(f"{name} is wrong (allowed {loss_gate}, {gradient_gate}), so no time is shown")
    for variant in running:
        variant.peak_mib = variant.ask("peak")["peak_mib"]
    for _ in range(rounds):
        for variant in running:
            variant.times.append(variant.ask("step")["seconds"])
    for variant in running:
        variant.close()
    return [row_of(variant, errors[variant.name], notes[variant.name], where) for variant in running]


def true_step(
    base: TrainConfig, chosen: dict[str, dict[str, Any]], size: int, folder: str
) -> tuple[dict[str, float], Tensor]:
    """The reference's first step with a batch that it was not run with: eager operations where it does not fit."""
    file = Path(folder) / "truth"
    config = dataclasses.replace(base, **{**chosen["reference"], "backend": "eager"}, batch_size=size)
    variant, terms = start("reference", config, file)
    variant.close()
    if variant.config.batch_size != size:
        raise ScscoError(f"the reference does not fit into memory with batch {size}")
    return terms, torch.load(file)


def row_of(variant: Variant, error: float, note: str, where: dict[str, Any]) -> Row:
    config, timing = variant.config, summary([1e3 * seconds for seconds in variant.times])
    ratios = foreground_ratios(config.batch_size)
    return Row(
        **where,
        op="training_step",
        backend=variant.name,
        mode="step",
        dtype=config.precision,
        batch=config.batch_size,
        channels=config.base_channels,
        size=config.size,
        foreground=sum(ratios) / len(ratios),
        detail=f"{config.negatives} negatives, {' '.join(config.vgg_layers)}",
        ms=timing.ms,
        ms_20=timing.low,
        ms_80=timing.high,
        peak_mib=variant.peak_mib,
        error=error,
        gate=GATES[config.precision][0],
        note=note,
    )


# --- counting ---------------------------------------------------------------------------------------------------------


def count_flops(config: TrainConfig, crop: bool, fixed: bool) -> float:
    """Floating-point operations of the style loss's convolutions, forward and backward, mean of three batches."""
    from torch.utils.flop_counter import FlopCounterMode

    loss = sf.SCSCoLoss(sf.VGG16Features("random", config.vgg_layers).to("meta"), crop=crop)
    total = 0
    for index in range(3):
        composite, real, mask = batch(config, index)
        mosaic = loss.mosaic(sf.foreground_boxes(mask), config.size, config.size, fixed=fixed)
        composite, real, mask = (tensor.to("meta") for tensor in (composite, real, mask))
        negatives = real.unsqueeze(1).expand(-1, config.negatives, -1, -1, -1)
        with FlopCounterMode(display=False) as counter:
            output = composite.clone().requires_grad_()
            loss(output, real, composite, mask, negatives, boxes=mosaic).total.backward()
        counts = counter.get_flop_counts()["Global"]
        total += sum(count for operation, count in counts.items() if "convolution" in str(operation))
    return total / 3


def print_flops() -> None:
    print("style loss of `paper` at 256x256, forward and backward, GFLOP of convolutions per image")
    print("batch   whole   windows         windows, few canvas sizes")
    for size in (1, 2, 4, 8, 16, 32):
        config = dataclasses.replace(PRESETS["paper"], batch_size=size, vgg_weights="random")
        whole, free, fixed = (
            count_flops(config, crop, few) / size / 1e9 for crop, few in ((False, False), (True, False), (True, True))
        )
        print(f"{size:5} {whole:7.0f} {free:7.0f} ({whole / free:.2f}x) {fixed:9.0f} ({whole / fixed:.2f}x)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, help="append the rows to this file, and to its neighbour .jsonl")
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of each variant")
    parser.add_argument("--batch", type=int, help="pictures in a step")
    parser.add_argument("--variants", nargs="+", help="those to run, the reference first")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--flops", action="store_true", help="count the convolutions of the style loss and stop")
    parser.add_argument("--serve", nargs=2, metavar=("VARIANT", "CONFIG"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve[0], TrainConfig.from_json(options.serve[1]))
        return
    if options.flops:
        print_flops()
        return
    device = "cuda" if torch.cuda.is_available() and not options.smoke else "cpu"
    config = settings(device, options.smoke)
    if options.batch:
        config = dataclasses.replace(config, batch_size=options.batch)
    names = options.variants or DEFAULTS[device]
    unknown = set(names) - set(variants(device))
    if unknown:
        raise SystemExit(f"no variant {', '.join(unknown)} on {device}: there are {', '.join(variants(device))}")
    where = {"suite": "training", **rows.machine(config.device)}
    print(f"{where['device']}, torch {where['torch']}, {config.size}x{config.size}, base width {config.base_channels}")
    found = benchmark(config, names, 2 if options.smoke else options.rounds, where)
    print("variant      batch  s per step (20 % to 80 %)  images/s  speedup  peak MiB")
    for row in found:
        print(line_of(row, found[0]))
    if options.csv:
        rows.append(found, options.csv)


def line_of(row: Row, first: Row) -> str:
    assert row.ms is not None
    assert first.ms is not None
    band = f"{row.ms / 1e3:8.3f} ({(row.ms_20 or 0) / 1e3:.3f} to {(row.ms_80 or 0) / 1e3:.3f})"
    rate = row.batch / row.ms * 1e3
    speedup = rate / (first.batch / first.ms * 1e3)
    return f"{row.backend:<12} {row.batch:5}  {band:>25}  {rate:8.2f} {speedup:7.2f}x  {row.peak_mib:8.0f}"


if __name__ == "__main__":
    main()
