"""The figures of the report, from rows alone."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scsco_fast.benchmarks.rows import Row
from scsco_fast.system.extras import require
from scsco_fast.system.files import replacing

OURS = ("triton", "cuda", "eager")
COLORS = {
    "triton": "#0072b2",
    "cuda": "#009e73",
    "eager": "#d55e00",
    "reference": "#777777",
    "reference compiled": "#222222",
    "SDPA": "#cc79a7",
    "SDPA padded": "#7a3e65",
    "SDPA unpadded": "#e8b4d0",
    "SDPA cuDNN": "#882255",
    "SDPA cuDNN unpadded": "#c25a88",
    "SDPA flash": "#332288",
    "SDPA flash unpadded": "#7a6fc0",
    "FlexAttention": "#e69f00",
}
MARKERS = "osD^vP*X<>h"


def case_of(row: Row) -> str:
    """The shape in short."""
    return f"{row.size}x{row.size}, C={row.channels}"


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Exponent p of y = c x^p: least squares in logarithms; nan for fewer than two points."""
    if len(points) < 2:
        return math.nan
    xs, ys = ([math.log(value) for value in axis] for axis in zip(*points, strict=True))
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True)) / sum((x - x_mean) ** 2 for x in xs)


def pairs(row: Row) -> float:
    """n_f n_b of one image."""
    pixels = row.size**2
    return row.foreground * pixels * (1 - row.foreground) * pixels


def scaling(by_size: Sequence[Row], by_ratio: Sequence[Row], path: Path) -> None:
    """Time and memory against pixels, and time against the foreground, for each backend."""
    figure, axes = _figure(1, 3, 12, 3.9)
    for backend, rows in grouped(by_size, "backend"):
        rows = sorted(rows, key=lambda row: row.size)
        style: dict[str, Any] = {"color": COLORS.get(backend), "marker": "o"}
        times = [(pairs(row), row.ms) for row in rows if row.ms]
        memory = [(row.size**2, row.peak_mib) for row in rows if row.peak_mib]
        pixels = [row.size**2 for row in rows if row.ms]
        axes[0].plot(pixels, [ms for _, ms in times], label=f"{backend}: (n_f n_b)^{slope(times):.2f}", **style)
        axes[1].plot(*zip(*memory, strict=True), label=f"{backend}: pixels^{slope(memory):.2f}", **style)
    for backend, rows in grouped(by_ratio, "backend"):
        rows = sorted((row for row in rows if row.ms), key=lambda row: row.foreground)
        label = f"{backend}: (n_f n_b)^{slope([(pairs(row), row.ms or 0) for row in rows]):.2f}"
        shares = [100 * row.foreground for row in rows]
        axes[2].plot(shares, [row.ms for row in rows], label=label, color=COLORS.get(backend), marker="o")
    first = by_size[0]
    sizes = sorted({row.size for row in by_size})
    for axis, unit in zip(axes, ("ms", "MiB", "ms"), strict=True):
        axis.set(xscale="log", yscale="log", ylabel=unit)
        axis.legend(fontsize=8)
    for axis in axes[:2]:
        axis.set_xlabel("pixels of the map")
        axis.set_xticks([size**2 for size in sizes], [f"{size}²" for size in sizes])
    axes[0].set_title(f"time, batch {first.batch}, C={first.channels}, about 20 % foreground")
    axes[1].set_title("peak memory of the same")
    axes[2].set_title(f"time, {case_of(by_ratio[0])}")
    axes[2].set_xlabel("foreground in % of the pixels")
    ticks = sorted({round(100 * row.foreground) for row in by_ratio})
    axes[2].set_xticks(ticks, [str(tick) for tick in ticks])
    for axis in axes:
        axis.minorticks_off()
    _save(figure, path)


def shares(rows: Sequence[Row], path: Path) -> None:
    """Bars: share of the ceiling that each operation and backend reaches, on the largest of its maps."""
    timed = [row for row in rows if row.share]
    labels = sorted({_label(row) for row in timed})
    backends = [name for name in COLORS if any(row.backend == name for row in timed)]
    height = 0.8 / max(len(backends), 1)
    figure, (axis,) = _figure(1, 1, 8, 1.2 + 0.22 * len(labels) * max(len(backends), 2))
    for place, backend in enumerate(backends):
        found = {_label(row): row for row in timed if row.backend == backend}
        at = [labels.index(label) + place * height for label in found]
        bars = axis.barh(at, [100 * (row.share or 0) for row in found.values()], height, color=COLORS[backend])
        bars.set_label(backend)
        for y, row in zip(at, found.values(), strict=True):
            axis.text(100 * (row.share or 0) + 0.7, y, f"{100 * (row.share or 0):.0f}", va="center", fontsize=7)
    axis.set_yticks([index + 0.4 - height / 2 for index in range(len(labels))], labels, fontsize=8)
    axis.invert_yaxis()
    axis.set(xlim=(0, max(105, 110 * max((row.share or 0) for row in timed))), xlabel="% of the measured ceiling")
    axis.axvline(100, color="black", linewidth=0.8)
    axis.legend(fontsize=8, loc="lower right")
    axis.grid(axis="y", visible=False)
    _save(figure, path)


def _label(row: Row) -> str:
    mode = "" if row.mode == "forward+backward" else f", {row.mode}"
    return f"{row.op} {row.detail}".strip() + f"{mode}\n{case_of(row)} ({row.bound})"


def speedups(cases: Sequence[tuple[str, Sequence[tuple[str, str, float]]]], path: Path) -> None:
    """Bars for each case: (ours, baseline, how many times as fast), with a line where both are equal."""
    figure, (axis,) = _figure(1, 1, 8, 1.2 + 0.3 * sum(len(found) + 1 for _, found in cases))
    ticks, labels, y = [], [], 0.0
    for case, found in cases:
        ticks.append(y + (len(found) - 1) / 2)
        labels.append(case)
        for _, baseline, ratio in found:
            axis.barh(y, ratio - 1, 0.85, left=1, color=COLORS.get(baseline.split(",")[0], "#999999"))
            y += 1
        y += 1
    y = 0.0
    for _, found in cases:
        for ours, baseline, ratio in found:
            loses = "" if ratio >= 1 else "  (the baseline wins)"
            axis.text(max(ratio, 1) * 1.05, y, f"{ours} over {baseline}: {ratio:.2f}x{loses}", va="center", fontsize=8)
            y += 1
        y += 1
    ratios = [ratio for _, found in cases for *_, ratio in found]
    low, high = min(0.3, *ratios) / 1.2, max(3, *ratios) * 8
    ticks_x = [tick for tick in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if low <= tick <= high]
    axis.set(xscale="log", xlabel="times as fast as the baseline", xlim=(low, high))
    axis.minorticks_off()
    axis.set_xticks(ticks_x, [f"{tick:g}x" for tick in ticks_x])
    axis.set_yticks(ticks, labels, fontsize=8)
    axis.invert_yaxis()
    axis.axvline(1, color="black", linewidth=1)
    axis.grid(axis="y", visible=False)
    _save(figure, path)


def roofline(rows: Sequence[Row], path: Path) -> None:
    """Operations per second against operations per byte, under the two measured ceilings."""
    timed = [row for row in rows if row.tflops and row.nbytes and row.flop]
    figure, (axis,) = _figure(1, 1, 8, 4.6)
    copy, rate = timed[-1].copy_gbs or 1, timed[-1].matmul_tflops or 1
    intensities = [(row.flop or 1) / (row.nbytes or 1) for row in timed]
    knee = 1e3 * rate / copy
    low, high = min(*intensities, knee) / 3, 2 * max(*intensities, knee)
    axis.plot([low, knee, high], [low * copy / 1e3, rate, rate], color="black", linewidth=1)
    axis.text(high, rate * 1.07, f"{rate:.2g} TFLOP/s matmul ({timed[-1].dtype})", ha="right", fontsize=8)
    axis.text(low * 1.1, low * copy / 1e3, f"{copy:.3g} GB/s copy", fontsize=8, va="top", rotation_mode="anchor")
    operations = sorted({row.op for row in timed})
    for index, op in enumerate(operations):
        axis.plot([], [], MARKERS[index], color="#555555", markersize=5, label=op)
    for backend in [name for name in COLORS if any(row.backend == name for row in timed)]:
        axis.plot([], [], "s", color=COLORS[backend], markersize=7, label=backend)
    for row, intensity in zip(timed, intensities, strict=True):
        color, marker = COLORS.get(row.backend, "#999999"), MARKERS[operations.index(row.op)]
        axis.plot(intensity, row.tflops, marker, color=color, markersize=5, alpha=0.8)
    axis.set(xscale="log", yscale="log", xlabel="FLOP per byte (by the formulas)", ylabel="TFLOP/s")
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    _save(figure, path)


def grouped(rows: Sequence[Row], *names: str) -> list[tuple[Any, list[Row]]]:
    """Rows by the values of these fields, in the order of first appearance."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        values = tuple(getattr(row, name) for name in names)
        groups.setdefault(values[0] if len(names) == 1 else values, []).append(row)
    return list(groups.items())


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    require("drawing the figures", "bench", "matplotlib")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.title.set_fontsize(9)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, metadata={"Software": None})
