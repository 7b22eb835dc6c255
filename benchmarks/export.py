"""Time and peak memory of exported networks on the CPU, in every format and at three sizes.

    python -m benchmarks.export [--csv FILE]     # about half an hour on two cores, most of it compiling
    python -m benchmarks.export --smoke          # a small picture: does the program work?

Every case runs in a process of its own that loads the file, with nothing of this project and, for ONNX, nothing of
torch. `seconds` is the fastest of the repetitions after a first call, as others may use the machine too; `peak_mib`
is the most memory that the process ever held, Python and the runtime included, of which `base_mib` was held after
loading. A process may take 85 % of the memory that was free before it, so that a dense attention does not end others; a
case that needs more has no time, and its `note` says so.

The picture is noise, the mask a disc over 20 % of it. `compact` and `compact-free` are the models in the package,
`bain` is a network of base width 16 and 5 levels with `norm="bain"` and random weights. Rows are added to FILE, so that
it can hold those of two revisions.
"""

import argparse
import csv
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    from scsco_fast.nn.unet import HarmonizationUNet

SIZES, SMOKE_SIZES = (256, 512, 768), (64,)
NETWORKS = ("compact", "compact-free", "bain")
FORMATS = ("onnx", "pt2", "aoti")
COLUMNS = ("time", "git", "device", "threads", "torch", "onnxruntime", "network", "format", "size")
MEASURED = ("seconds", "load", "export", "peak_mib", "base_mib", "file_mib")
SHARE = 0.2  # of the picture is foreground

# What PyTorch and ONNX Runtime say of memory that they are not given.
OUT_OF_MEMORY = ("MemoryError", "bad_alloc", "allocate memory", "Failed to allocate")

Run = Callable[[np.ndarray, np.ndarray], object]
Row = dict[str, Any]


def picture(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Composite (1, 3, size, size) and mask (1, 1, size, size), float32."""
    y, x = np.mgrid[0:size, 0:size] / size - 0.5
    disc = x**2 + y**2 < SHARE / np.pi
    return np.random.default_rng(0).random((1, 3, size, size), np.float32), disc.astype(np.float32)[None, None]


def network(name: str) -> "HarmonizationUNet":
    import torch

    import scsco_fast as sf

    if name != "bain":
        return sf.load_model(name)
    torch.manual_seed(0)
    return sf.HarmonizationUNet(base_channels=16, levels=5, norm="bain").eval()


def measure(path: Path, format: str, size: int, repeats: int) -> dict[str, float]:
    """One exported file in this process: seconds, and MiB."""
    start = time.perf_counter()
    run = load(path, format)
    loaded = time.perf_counter() - start
    base = resident("VmRSS")
    composite, mask = picture(size)
    run(composite, mask)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run(composite, mask)
        seconds.append(time.perf_counter() - start)
    return {"seconds": min(seconds), "load": loaded, "peak_mib": resident("VmHWM"), "base_mib": base}


def load(path: Path, format: str) -> Run:
    """The network in a file, as its users would load it."""
    if format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda composite, mask: session.run(None, {"composite": composite, "mask": mask})
    import torch

    if format == "aoti":
        package = torch._inductor.aoti_load_package(str(path))
        module = cast("Callable[[torch.Tensor, torch.Tensor], object]", package)
    else:
        module = torch.export.load(path).module()

    def run(composite: np.ndarray, mask: np.ndarray) -> object:
        with torch.no_grad():
            return module(torch.from_numpy(composite), torch.from_numpy(mask))

    return run


def resident(field: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at most. Here because importing `benchmarks.timing` imports torch."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def benchmark(sizes: Sequence[int], networks: Sequence[str], formats: Sequence[str], repeats: int) -> Iterator[Row]:
    """A row per network, format and size, as they come."""
    from scsco_fast.benchmarks.rows import machine

    found = machine("cpu") | {"onnxruntime": version("onnxruntime")}
    where = {column: found[column] for column in COLUMNS if column in found}
    for name, format in itertools.product(networks, formats):
        with tempfile.TemporaryDirectory() as folder:
            for size, path, seconds in exported(name, format, sizes, Path(folder)):
                about = {"export": seconds, "file_mib": path.stat().st_size / 2**20}
                case = {"network": name, "format": format, "size": size}
                yield {**where, **case, **rounded(about | measured(path, format, size, repeats))}


def exported(name: str, format: Any, sizes: Sequence[int], folder: Path) -> Iterator[tuple[int, Path, float]]:
    """Size, file and the seconds that writing it took: one file for all sizes, of AOTInductor one for each."""
    from scsco_fast.export.formats import SUFFIXES
    from scsco_fast.export.program import export

    seconds = 0.0
    for place, size in enumerate(sizes):
        path = folder / f"model{SUFFIXES[format]}"
        if format == "aoti" or place == 0:
            start = time.perf_counter()
            export(network(name), path, format, (size, size) if format == "aoti" else None)
            seconds = time.perf_counter() - start
        yield size, path, seconds


def measured(path: Path, format: str, size: int, repeats: int) -> dict[str, float | str]:
    """`measure` in a process of its own, which may take most of the memory that is free now."""
    limit = int(0.85 * available())
    command = [sys.executable, "-m", "benchmarks.export", "--repeats", str(repeats), "--case", str(path), format]
    done = subprocess.run(
        [*command, str(size)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    if done.returncode == 0:
        return json.loads(done.stdout)
    if any(word in done.stderr for word in OUT_OF_MEMORY):
        return {"note": f"needs more than {limit / 2**30:.0f} GiB"}
    raise SystemExit(done.stderr)


def available() -> int:
    """Bytes of memory that are free."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024


def rounded(found: dict[str, Any]) -> Row:
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in found.items()}


def append(path: Path, row: Row) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *MEASURED, "note"])
        if new:
            writer.writeheader()
        writer.writerow(row)


def line(row: Row) -> str:
    case = f"{row['network']:>12} {row['format']:>4} {row['size']:4}"
    if "note" in row:
        return f"{case}   {row['note']}"
    return f"{case} {row['seconds']:8.2f} s {row['peak_mib']:8.0f} MiB, {row['base_mib']:.0f} before"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, help="add the rows to this file")
    parser.add_argument("--smoke", action="store_true", help="a small picture, one network")
    parser.add_argument("--repeats", type=int, default=5, help="repetitions in each process")
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS)
    parser.add_argument("--sizes", nargs="+", default=SIZES, type=int, help="sides of the pictures in pixels")
    parser.add_argument("--case", nargs=3, metavar=("FILE", "FORMAT", "SIZE"), help="one case, as JSON")
    options = parser.parse_args()
    if options.case:
        file, format, size = options.case
        print(json.dumps(measure(Path(file), format, int(size), options.repeats)))
        return
    sizes, networks = (SMOKE_SIZES, ["bain"]) if options.smoke else (options.sizes, options.networks)
    for row in benchmark(sizes, networks, options.formats, options.repeats):
        print(line(row), flush=True)
        if options.csv:
            append(options.csv, row)


if __name__ == "__main__":
    main()
