"""Time and peak memory of `bain_attention`, forward and backward, for each backend on this machine.

    python -m benchmarks.bain_attention [--csv FILE]

Every case runs in a process of its own, so that its peak memory is its own. Backends alternate, the median of the
repetitions is printed, and a backend whose result is wrong gets no time. Foreground 20 %, batch 1, float32.
"""

import argparse
import csv
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

import scsco_fast as sf

SHAPES = ((32, 256), (64, 128), (128, 64))  # size, channels
SMOKE_SHAPES = ((16, 32), (32, 32))
FOREGROUND = 0.2
KEY_CHANNELS = 64
BACKENDS = ("eager", "reference")
COLUMNS = ("size", "channels", "backend", "forward_ms", "both_ms", "peak_mib", "error", "speedup")


def inputs(size: int, channels: int) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """Query, key and value with gradients, and a square foreground."""
    generator = torch.Generator().manual_seed(0)
    keys = min(channels, KEY_CHANNELS)
    q, k, v = (torch.randn(1, c, size, size, generator=generator).requires_grad_() for c in (keys, keys, channels))
    mask = torch.zeros(1, 1, size, size)
    side = round((FOREGROUND * size * size) ** 0.5)
    mask[..., :side, :side] = 1
    return (q, k, v), mask


def step(tensors: tuple[Tensor, Tensor, Tensor], mask: Tensor, backend: str) -> tuple[float, float]:
    """Seconds of the forward, and of forward and backward."""
    start = time.perf_counter()
    mean, std = sf.ops.bain_attention(*tensors, mask, backend=backend)
    middle = time.perf_counter()
    torch.autograd.grad(mean.sum() + std.square().sum(), tensors)
    return middle - start, time.perf_counter() - start


def measure(size: int, channels: int, backend: str, repeats: int) -> dict[str, float]:
    """One case in this process: medians in milliseconds, and the peak memory above what importing took."""
    tensors, mask = inputs(size, channels)
    step(*inputs(8, 8), backend)  # imports and thread pools
    before = reset_peak()
    step(tensors, mask, backend)
    peak = resident("VmHWM") - before
    times = [step(tensors, mask, backend) for _ in range(repeats)]
    forward, both = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
    return {"forward_ms": forward, "both_ms": both, "peak_mib": peak / 1024}


def resident(field: str) -> int:
    """KiB of this process (Linux): VmRSS now, or VmHWM at most. `getrusage` starts from the parent's peak instead."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def reset_peak() -> int:
    """Forget the peak so far, and say what is in use."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def error(size: int, channels: int, backend: str) -> float:
    """Largest difference to the float64 reference, of the mean and the deviation, relative to the largest value."""
    tensors, mask = inputs(size, channels)
    with torch.no_grad():
        got = sf.ops.bain_attention(*tensors, mask, backend=backend)
        q, k, v = (t.double() for t in tensors)
        truth = sf.ops.bain_attention(q, k, v, mask, backend="reference")
    return max(float((g - t).abs().max() / t.abs().max()) for g, t in zip(got, truth, strict=True))


def run_case(size: int, channels: int, backend: str, repeats: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.bain_attention", "--case", str(size), str(channels), backend]
    done = subprocess.run([*command, "--repeats", str(repeats)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def benchmark(shapes: tuple[tuple[int, int], ...], repeats: int, rounds: int) -> list[dict[str, object]]:
    """A row per shape and backend; the rounds alternate the backends."""
    rows: list[dict[str, object]] = []
    for size, channels in shapes:
        errors = {backend: error(size, channels, backend) for backend in BACKENDS}
        if max(errors.values()) > 1e-4:
            raise SystemExit(f"{size}x{size}, C = {channels}: a result is wrong, so no time is shown: {errors}")
        found: dict[str, list[dict[str, float]]] = {backend: [] for backend in BACKENDS}
        for _ in range(rounds):
            for backend in BACKENDS:
                found[backend].append(run_case(size, channels, backend, repeats))
        best = {
            backend: {key: statistics.median(case[key] for case in cases) for key in cases[0]}
            for backend, cases in found.items()
        }
        for backend in BACKENDS:
            speedup = best["reference"]["both_ms"] / best[backend]["both_ms"]
            row = {"size": size, "channels": channels, "backend": backend, **best[backend]}
            rows.append({**row, "error": errors[backend], "speedup": speedup})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, help="write the rows to this file")
    parser.add_argument("--smoke", action="store_true", help="small shapes, seconds instead of a minute")
    parser.add_argument("--repeats", type=int, default=5, help="timed repetitions in each process")
    parser.add_argument("--case", nargs=3, metavar=("SIZE", "CHANNELS", "BACKEND"), help="one case, as JSON")
    options = parser.parse_args()
    if options.case:
        size, channels, backend = options.case
        print(json.dumps(measure(int(size), int(channels), backend, options.repeats)))
        return
    print(f"bain_attention, batch 1, {FOREGROUND:.0%} foreground, float32, torch {torch.__version__}")
    print(f"{platform.machine()}, {torch.get_num_threads()} threads")
    print("      map    C    backend    fwd ms  fwd+bwd ms  peak MiB    error  speedup")
    rows = benchmark(SMOKE_SHAPES if options.smoke else SHAPES, options.repeats, rounds=1 if options.smoke else 3)
    for row in rows:
        size, channels, backend, forward, both, peak, wrong, speedup = (row[name] for name in COLUMNS)
        label = f"{size}x{size} {channels:>4} {backend:>10}"
        print(f"{label:>25} {forward:9.1f} {both:11.1f} {peak:9.0f} {wrong:8.1e} {speedup:7.1f}x")
    if options.csv:
        options.csv.parent.mkdir(parents=True, exist_ok=True)
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
