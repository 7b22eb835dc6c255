"""Time, throughput and memory of every operation on one GPU, against dense, compiled and library attention.

    python -m benchmarks.kernels --out DIR             # the GPU suite, under ten minutes; writes DIR/kernels.csv
    python -m benchmarks.kernels --smoke --out DIR     # tiny shapes on the CPU: does the program work?

Method: a result that is wrong gets no time (its row says so); medians and the 20/80 band of `triton.testing.do_bench`
(on a CPU of repeated calls); the machine's own copy bandwidth and matmul rate are measured in the same run; bytes and
operations are counted by the formulas below. Rows where the library wins stay in. A case that fails is a row with its
reason. Library attention is given rows that are packed and centred already, which is not timed, and value [v', v'^2].
"""

import argparse
import csv
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import scsco_fast as sf
from scsco_fast.ops.transfer_color import TRANSFERS

GPU_MAPS = ((32, 256), (64, 128), (128, 64), (256, 64))  # size, channels
SMOKE_MAPS = ((8, 16),)
FOREGROUNDS = (0.2, 0.05, 0.5)
GATE = {torch.float32: 1e-3, torch.bfloat16: 3e-2}  # largest error of mean and std, relative to the largest value
VGG_MAPS = ((256, 64), (128, 128), (64, 256), (32, 512))  # size, channels of relu1_2 ... relu4_3 at 256x256


@dataclass(frozen=True)
class Row:
    """One measurement; `share` is of the measured copy bandwidth or matmul rate, whichever the formula counts."""

    operation: str
    variant: str
    dtype: str
    batch: int
    size: int
    channels: int
    foreground: float
    mode: str
    ms: float | None = None
    ms_20: float | None = None
    ms_80: float | None = None
    tflops: float | None = None
    gbytes: float | None = None
    share: float | None = None
    peak_mib: float | None = None
    error: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Ceiling:
    """What this machine reaches: bytes read and written per second by a copy, operations per second by a matmul."""

    copy: float
    matmul: dict[torch.dtype, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for kernels.csv")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, on the CPU where there is no GPU")
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="cases that would start later are left out, and named"
    )
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.smoke:
        raise SystemExit("no CUDA device; --smoke runs tiny shapes on the CPU")
    suite(options.out, options.minutes, options.smoke)


def suite(out: Path, minutes: float, smoke: bool) -> None:
    """Measure every case that starts within `minutes` and write out/kernels.csv after each."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ceiling = measure_ceiling(device)
    rows: list[Row] = []
    deadline, left_out = time.monotonic() + 60 * minutes, 0
    for case in cases(device, smoke):
        if time.monotonic() > deadline:
            left_out += 1
            continue
        rows.append(case(ceiling))
        print(describe(rows[-1]), flush=True)
        write(out / "kernels.csv", rows, machine(device, ceiling))
    print(f"{len(rows)} rows in {out / 'kernels.csv'}, {left_out} cases left out for time")


def cases(device: str, smoke: bool) -> Iterator[Callable[[Ceiling], Row]]:
    """The most important first: what runs out of time is left out."""
    batch = 2 if smoke else 16
    for foreground in FOREGROUNDS:
        for size, channels in SMOKE_MAPS if smoke else GPU_MAPS:
            yield from attention_cases(device, batch, size, channels, foreground)
            yield from norm_cases(device, batch, size, channels, foreground)
    for size, channels in SMOKE_MAPS if smoke else VGG_MAPS:
        yield from loss_cases(device, batch, size, channels)
    yield from color_cases(device, batch, 16 if smoke else 256, FOREGROUNDS[0])


def backends(device: str) -> list[str]:
    usable = [name for name, answer in sf.ops.backends().items() if answer == "yes"]
    return usable if device == "cuda" else [name for name in usable if name in ("eager", "reference")]


# --- bain_attention ---------------------------------------------------------------------------------------------------


def attention_cases(
    device: str, batch: int, size: int, channels: int, foreground: float
) -> Iterator[Callable[[Ceiling], Row]]:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    keys = min(channels, 64)
    mask, side = square_mask(batch, size, foreground, device)
    regions = sf.Regions(mask)
    regions.at(size, size)
    n_fg, pixels = side * side, size * size
    shape: dict[str, Any] = {"batch": batch, "size": size, "channels": channels, "dtype": str(dtype)[6:]}
    shape["foreground"] = n_fg / pixels
    # Multiply-adds of logits (D), and of the two moments (2 C); the backward recomputes and has five products.
    forward_ops = 2.0 * batch * n_fg * (pixels - n_fg) * (keys + 2 * channels)
    both_ops = forward_ops + 2.0 * batch * n_fg * (pixels - n_fg) * (3 * keys + 4 * channels)
    modes = (("forward", forward_ops), ("forward+backward", both_ops))

    def inputs(width: torch.dtype = dtype) -> list[Tensor]:
        torch.manual_seed(0)
        q, k = (torch.randn(batch, keys, size, size, device=device) for _ in range(2))
        v = torch.randn(batch, channels, size, size, device=device) + 3
        return [t.to(dtype).to(width).requires_grad_() for t in (q, k, v)]

    variants: dict[str, Callable[..., Any]] = {}
    for name in backends(device):
        if name != "reference" or dense_fits(device, batch, pixels):
            variants[name] = partial(attend, regions, name)
    if "reference" in variants:
        variants["reference compiled"] = torch.compile(variants["reference"], dynamic=False)
    truth = cache(partial(outputs_and_gradients, partial(attend, regions, "eager"), partial(inputs, torch.float64)))
    for variant, function in variants.items():
        check = partial(attention_error, inputs, truth)
        for mode, operations in modes:
            row = Row("bain_attention", variant, mode=mode, **shape)
            yield partial(measure, row, function, inputs, operations=operations, check=check)
    for variant, library in library_attention(device).items():
        for mode, operations in modes:
            row = Row("bain_attention", variant, mode=mode, note="rows packed and centred beforehand", **shape)
            yield partial(measure, row, library, lambda: packed_inputs(inputs(), n_fg), operations=operations)
    for name in backends(device):
        if name != "reference" or dense_fits(device, batch, pixels):
            for mode, operations in modes:
                row = Row("bain_norm", name, mode=mode, **shape)
                function = partial(normalise, regions, name)
                yield partial(measure, row, function, lambda: [*inputs(), inputs()[2]], operations=operations)


def attend(regions: sf.Regions, backend: str, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    return sf.ops.bain_attention(query, key, value, regions, backend=backend)


def normalise(
    regions: sf.Regions, backend: str, query: Tensor, key: Tensor, value: Tensor, normalised: Tensor
) -> Tensor:
    return sf.ops.bain_norm(query, key, value, normalised, regions, backend=backend)


def outputs_and_gradients(function: Callable[..., Any], inputs: Callable[[], list[Tensor]]) -> list[Tensor]:
    """mean and std, and the gradients of their sum."""
    tensors = inputs()
    outputs = function(*tensors)
    gradients = torch.autograd.grad([o.double().sum() for o in outputs], tensors)
    return [*(o.detach() for o in outputs), *gradients]


def attention_error(
    inputs: Callable[[], list[Tensor]], truth: Callable[[], list[Tensor]], function: Callable[..., Any]
) -> float:
    """Largest error against float64 relative to the largest value, over the whole batch; of gradients the half of it.

    They pass through twice as many roundings to the operands' dtype.
    """
    got = outputs_and_gradients(function, inputs)
    errors = [float((g.double() - t).abs().max() / t.abs().max()) for g, t in zip(got, truth(), strict=True)]
    return max(*errors[:2], *(error / 2 for error in errors[2:]))


def library_attention(device: str) -> dict[str, Callable[..., Any]]:
    """Attention of libraries over packed rows (B, 1, n, d) with value [v', v'^2]; query and key padded to its width."""

    def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        wide = v.shape[-1]
        q, k = (F.pad(t, (0, max(0, wide - t.shape[-1]))) for t in (q, k))
        return F.scaled_dot_product_attention(q, k, v, scale=0.125)

    def cudnn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return sdpa(q, k, v)

    found: dict[str, Callable[..., Any]] = {"SDPA": sdpa}
    if device == "cuda":
        from torch.nn.attention.flex_attention import flex_attention

        compiled = torch.compile(flex_attention, dynamic=False)
        found["SDPA cuDNN"] = cudnn
        found["FlexAttention compiled"] = lambda q, k, v: compiled(q, k, v, scale=0.125)
    return found


def packed_inputs(tensors: list[Tensor], n_fg: int) -> list[Tensor]:
    """Any n_fg rows as queries and the others as keys: the time does not depend on which."""
    q, k, v = (t.detach().flatten(2).transpose(1, 2).unsqueeze(1) for t in tensors)
    v = v[:, :, n_fg:] - v[:, :, n_fg:].mean(dim=2, keepdim=True)
    rows = (q[:, :, :n_fg], k[:, :, n_fg:], torch.cat([v, v.square()], dim=3))
    return [t.contiguous().requires_grad_() for t in rows]


# --- the other operations ---------------------------------------------------------------------------------------------


def norm_cases(
    device: str, batch: int, size: int, channels: int, foreground: float
) -> Iterator[Callable[[Ceiling], Row]]:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    regions = sf.Regions(square_mask(batch, size, foreground, device)[0])
    regions.at(size, size)
    shape: dict[str, Any] = {"batch": batch, "size": size, "channels": channels, "dtype": str(dtype)[6:]}
    shape["foreground"] = foreground
    numel = batch * channels * size * size

    def inputs() -> list[Tensor]:
        return [torch.randn(batch, channels, size, size, device=device).to(dtype).requires_grad_()]

    for name in backends(device):
        # Least traffic: forward reads x and writes y; backward reads x and dy and writes dx.
        for mode, passes in (("forward", 2), ("forward+backward", 5)):
            row = Row("region_norm", name, mode=mode, **shape)
            function = partial(sf.ops.region_norm, regions_or_mask=regions, backend=name)
            yield partial(measure, row, function, inputs, nbytes=passes * numel * dtype.itemsize)


def loss_cases(device: str, batch: int, size: int, channels: int) -> Iterator[Callable[[Ceiling], Row]]:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    others = 5
    shape: dict[str, Any] = {"batch": batch, "size": size, "channels": channels, "dtype": str(dtype)[6:]}
    shape["foreground"] = 1.0
    numel = batch * channels * size * size
    gram = 2.0 * batch * channels * channels * size * size

    def one() -> Tensor:
        return torch.randn(batch, channels, size, size, device=device).to(dtype).requires_grad_()

    def several() -> Tensor:
        return torch.randn(batch, others, channels, size, size, device=device).to(dtype)

    # Multiply-adds, or numbers moved, of the forward; of forward and backward.
    counted: dict[str, tuple[Callable[..., Any], Callable[[], list[Tensor]], tuple[float, float], tuple[float, float]]]
    counted = {
        "masked_gram": (sf.ops.masked_gram, lambda: [one()], (gram, 2 * gram), (0, 0)),
        "cross_gram": (sf.ops.cross_gram, lambda: [one(), one()], (gram, 3 * gram), (0, 0)),
        "gram_distances": (
            *(sf.ops.gram_distances, lambda: [one(), one().detach(), several()]),
            *((others * gram, 3 * others * gram), (0, 0)),
        ),
        "feature_distances": (
            *(sf.ops.feature_distances, lambda: [one(), several()]),
            *((0, 0), ((1.0 + others) * numel, (3.0 + 2 * others) * numel)),
        ),
    }
    for operation, (function, inputs, multiply_adds, elements) in counted.items():
        for name in backends(device):
            for mode, m, e in zip(("forward", "forward+backward"), multiply_adds, elements, strict=True):
                row = Row(operation, name, mode=mode, **shape)
                call = partial(function, backend=name)
                yield partial(measure, row, call, inputs, operations=m, nbytes=e * dtype.itemsize)


def color_cases(device: str, batch: int, size: int, foreground: float) -> Iterator[Callable[[Ceiling], Row]]:
    mask = square_mask(batch, size, foreground, device)[0]
    shape: dict[str, Any] = {"batch": batch, "size": size, "channels": 3, "foreground": foreground, "dtype": "float32"}

    def inputs() -> list[Tensor]:
        return [torch.rand(batch, 3, size, size, device=device) for _ in range(2)]

    for method in TRANSFERS:
        for name in backends(device):
            row = Row(f"transfer_color {method}", name, mode="forward", **shape)
            function = partial(sf.ops.transfer_color, method=method, mask=mask, backend=name)
            # Source and reference are read for the statistics; the source again to write the result.
            yield partial(measure, row, function, inputs, nbytes=4.0 * 4 * batch * 3 * size * size)


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(
    row: Row,
    function: Callable[..., Any],
    make_inputs: Callable[[], list[Tensor]],
    ceiling: Ceiling,
    operations: float = 0.0,
    nbytes: float = 0.0,
    check: Callable[[Callable[..., Any]], float] | None = None,
) -> Row:
    """`row` with its figures, or with the reason why there are none."""
    values = asdict(row)
    try:
        error = None if check is None else check(function)
        dtype = getattr(torch, row.dtype)
        if error is not None and not error <= GATE[dtype]:
            return Row(**{**values, "error": error, "note": f"wrong (allowed {GATE[dtype]}): not timed"})
        tensors = make_inputs()

        def call() -> None:
            outputs = function(*tensors)
            if row.mode != "forward":
                outputs = outputs if isinstance(outputs, tuple) else (outputs,)
                leaves = [t for t in tensors if t.requires_grad]
                torch.autograd.grad([o.float().sum() for o in outputs], leaves)

        (ms, low, high), peak = timed(call, tensors[0].device.type)
    except Exception as problem:  # a row says why: out of memory, an unsupported shape, a library's refusal
        return Row(**{**values, "note": f"{type(problem).__name__}: {' '.join(str(problem).split())[:160]}"})
    rate, bandwidth = operations / ms / 1e-3, nbytes / ms / 1e-3
    share = rate / ceiling.matmul[dtype] if operations else bandwidth / ceiling.copy
    found = {"ms": ms, "ms_20": low, "ms_80": high, "share": share, "peak_mib": peak, "error": error}
    found |= {"tflops": rate / 1e12 if operations else None, "gbytes": bandwidth / 1e9 if nbytes else None}
    return Row(**{**values, **found})


def timed(call: Callable[[], object], device: str) -> tuple[tuple[float, float, float], float | None]:
    """Median and 20/80 band in milliseconds, and the peak memory above what was there before, in MiB."""
    call()
    if device == "cpu":
        times = []
        for _ in range(5):
            start = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - start))
        times.sort()
        return (times[2], times[1], times[3]), None
    from triton.testing import do_bench

    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    median, low, high = do_bench(call, warmup=10, rep=60, quantiles=[0.5, 0.2, 0.8])
    return (median, low, high), peak


def measure_ceiling(device: str) -> Ceiling:
    source = torch.empty(2**30 if device == "cuda" else 2**22, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    (copy_ms, _, _), _ = timed(lambda: target.copy_(source), device)
    rates = {}
    for dtype in (torch.bfloat16, torch.float32) if device == "cuda" else (torch.float32,):
        side = 8192 if device == "cuda" else 256
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        (ms, _, _), _ = timed(partial(torch.matmul, a, b), device)
        rates[dtype] = 2 * side**3 / ms / 1e-3
    return Ceiling(2 * source.numel() / copy_ms / 1e-3, rates)


def dense_fits(device: str, batch: int, pixels: int) -> bool:
    """The dense attention holds about six float32 matrices of pixels x pixels per image."""
    memory = torch.cuda.mem_get_info()[0] if device == "cuda" else 2 * 2**30
    return 6 * 4 * batch * pixels**2 < memory


def square_mask(batch: int, size: int, foreground: float, device: str) -> tuple[Tensor, int]:
    """Squares of one size at different places, and their side."""
    side = max(1, round(size * foreground**0.5))
    mask = torch.zeros(batch, 1, size, size, device=device)
    for image in range(batch):
        start = image * (size - side) // max(batch - 1, 1)
        mask[image, :, start : start + side, start : start + side] = 1
    return mask, side


def machine(device: str, ceiling: Ceiling) -> dict[str, object]:
    """What every row carries: when, which revision, which machine and versions, and its ceilings."""
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = "none"
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "git": git.stdout.strip() or "unknown",
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "triton": triton_version,
        "cuda": torch.version.cuda or "none",
        "copy_gbytes": ceiling.copy / 1e9,
        "matmul_tflops": " ".join(f"{str(d)[6:]}={rate / 1e12:.1f}" for d, rate in ceiling.matmul.items()),
    }


def describe(row: Row) -> str:
    label = f"{row.operation} {row.size}x{row.size} C={row.channels} fg={row.foreground:.0%} {row.variant} {row.mode}"
    if row.ms is None:
        return f"{label}: {row.note}"
    return f"{label}: {row.ms:.3f} ms ({row.ms_20:.3f} to {row.ms_80:.3f}), {row.share:.0%} of the ceiling"


def write(path: Path, rows: list[Row], where: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*where, *(field.name for field in fields(Row))])
        writer.writeheader()
        writer.writerows({**where, **asdict(row)} for row in rows)


if __name__ == "__main__":
    main()
