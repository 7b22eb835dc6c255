"""`scsco bench --report`: figures, docs/performance.md and the README's table, from the committed rows alone."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from scsco_fast.benchmarks import plots
from scsco_fast.benchmarks.plots import OURS, grouped, slope
from scsco_fast.benchmarks.rows import RESULTS, Row, latest, read, without_backend
from scsco_fast.errors import ScscoError
from scsco_fast.system.files import replacing

FILES = ("cpu.csv", "gpu.csv", "full.csv")
START, END = "<!-- benchmarks: written by scsco bench --report -->", "<!-- benchmarks: end -->"
TITLES = {"cpu": "CPU", "gpu": "GPU"}
NONE_YET = "No rows yet."
PAGE = "docs/performance.md"
BOTH = "forward+backward"
PACKED_NOTE = (
    "On a CPU SDPA and FlexAttention are timed from maps to maps, as the backends are; on a GPU their rows are packed "
    "and centred beforehand, which is not timed. Bold: the fastest."
)


def report(root: Path | None = None, results: Path = RESULTS, say: Callable[[str], None] = print) -> list[Path]:
    """Draw the figures and write the page and the README's block of a checkout; returns what was written.

    Args:
        root: the checkout; None: the one that this package is installed from.

    Raises:
        ScscoError: there are no rows, a file of rows cannot be read, or the README has no place for the table.
    """
    root = Path(__file__).resolve().parent.parent if root is None else root
    readme = root / "README.md"
    if not readme.is_file():
        raise ScscoError(f"{root} is no checkout (no README.md): run --report in an editable install of one")
    every = [row for name in FILES if (results / name).exists() for row in read(results / name)]
    rows = latest(under_best_ceilings(every))
    if not rows:
        raise ScscoError(f"{results} has no rows of {', '.join(FILES)}: run scsco bench --suite cpu --output {results}")
    images = root / "docs" / "images"
    sections = [section(kind, [row for row in rows if kind_of(row) == kind], images, say) for kind in TITLES]
    text = "\n\n".join([HEAD, *sections]) + "\n"
    _write(root / PAGE, text)
    _write(readme, with_block(readme.read_text(encoding="utf-8"), block(rows), readme))
    written = [root / PAGE, readme, *sorted(images.glob("bench_*.png"))]
    for path in written:
        say(f"wrote {path}")
    return written


def under_best_ceilings(rows: Sequence[Row]) -> list[Row]:
    """The rows with the best ceilings that any row of their device has, and shares of these.

    What slows a whole case down slows its ceilings down too, and later cases then seem to pass them.
    """
    copies: dict[str, float] = {}
    rates: dict[tuple[str, str], float] = {}
    for row in rows:
        kind = row.device, row.dtype
        copies[row.device] = max(copies.get(row.device, 0), row.copy_gbs or 0)
        rates[kind] = max(rates.get(kind, 0), row.matmul_tflops or 0)
    result = []
    for row in rows:
        copy, rate = copies[row.device], rates[row.device, row.dtype]
        if row.share is not None:
            shares = {"memory": (row.gbs or 0) / copy, "compute": (row.tflops or 0) / rate}
            bound = max(shares, key=lambda name: shares[name])
            row = replace(row, copy_gbs=copy, matmul_tflops=rate, share=shares[bound], bound=bound)
        result.append(row)
    return result


HEAD = """\
# Performance

`scsco bench --report` writes this page from the rows in `benchmarks/results`; do not edit it.
[Benchmarks](benchmarks.md) explains how the rows are measured and what they cannot show.

- Times are medians, with the 20 % and 80 % quantiles in brackets.
- "Slower" is the median of a row divided by that of the fastest row of its case. **fastest** marks the fastest row even
  where it is not this project's.
- "Of the ceiling" is a share of the best bandwidth or matmul rate that was measured on the device."""


def kind_of(row: Row) -> str:
    return "cpu" if row.driver == "none" else "gpu"


def section(kind: str, rows: Sequence[Row], images: Path, say: Callable[[str], None]) -> str:
    """Everything about one kind of machine. With rows of several GPUs each has a section of its own."""
    if not rows:
        return f"## {TITLES[kind]}\n\n{NONE_YET} `{command(kind)}` writes them."
    parts = []
    for number, (device, found) in enumerate(grouped(rows, "device")):
        prefix = f"bench_{kind}" + (f"_{number + 1}" if number else "")
        drawn = figures(prefix, found, images, say)
        parts.append("\n\n".join([f"## {TITLES[kind]}: {device}", machine(found), drawn, tables(found)]))
    return "\n\n".join(parts)


def command(kind: str) -> str:
    return f"scsco bench --suite {kind} --output benchmarks/results"


def machine(rows: Sequence[Row]) -> str:
    """Where and when the rows come from, in a few lines."""
    row = rows[-1]
    ceilings = {(r.dtype, r.matmul_tflops) for r in rows if r.share is not None}
    rates = ", ".join(f"{rate:.3g} TFLOP/s in {dtype}" for dtype, rate in sorted(ceilings))
    software = f"torch {row.torch}, Triton {row.triton}, CUDA {row.cuda}, driver {row.driver}"
    revisions = ", ".join(sorted({r.git for r in rows}))
    copy = max(r.copy_gbs or 0 for r in rows)
    return (
        f"{row.device}, {row.threads} threads, {software}; revision {revisions}; {row.time[:10]}.\n"
        f"Measured beside them: copies {copy:.3g} GB/s, multiplies {rates}."
    )


def under(rows: Sequence[Row]) -> str:
    """The line below a figure or table: command and machine."""
    row = rows[-1]
    suites = " and ".join(sorted({f"`scsco bench --suite {r.suite}`" for r in rows}))
    revisions = ", ".join(sorted({r.git for r in rows}))
    return f"*{suites}; {row.device}, {row.threads} threads, torch {row.torch}, {row.dtype}, revision {revisions}.*"


# --- figures ----------------------------------------------------------------------------------------------------------


def figures(prefix: str, rows: Sequence[Row], images: Path, say: Callable[[str], None]) -> str:
    """The figures that these rows allow, as Markdown."""
    texts = []
    by_size, by_ratio = scaling_rows(rows)
    if len({row.size for row in by_size}) > 1 and len({row.foreground for row in by_ratio}) > 1:
        plots.scaling(by_size, by_ratio, images / f"{prefix}_scaling.png")
        lines = slopes(by_size, by_ratio)
        for line in lines:
            say(line)
        name = "Time and memory of `bain_attention`, forward and backward, against pixels and foreground"
        texts.append(
            _figure(f"{prefix}_scaling.png", name, by_size) + "\n\n" + "\n".join(f"- {line}" for line in lines)
        )
    found = largest(rows)
    if found:
        plots.shares(found, images / f"{prefix}_shares.png")
        name = "Share of the ceiling, memory or compute, that the formula meets first; one map of each operation"
        texts.append(_figure(f"{prefix}_shares.png", name, found))
    cases = speedup_cases(rows)
    if cases:
        plots.speedups(cases, images / f"{prefix}_speedups.png")
        name = "Speed of `bain_attention` over each baseline"
        texts.append(_figure(f"{prefix}_speedups.png", name, attention(rows)))
    with_flop = [row for row in rows if row.mode == BOTH and row.tflops]
    if with_flop:
        plots.roofline(with_flop, images / f"{prefix}_roofline.png")
        texts.append(_figure(f"{prefix}_roofline.png", "Roofline, forward and backward", with_flop))
    return "\n\n".join(texts)


def _figure(file: str, name: str, rows: Sequence[Row]) -> str:
    return f"![{name.replace('`', '')}](images/{file})\n\n{name}. {under(rows)}"


def attention(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.op == "bain_attention"]


def scaling_rows(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Forward and backward of the attention: the shape with the most sizes, and the map with the most ratios."""
    timed = [row for row in attention(rows) if row.mode == BOTH and row.ms and row.backend in (*OURS, "reference")]
    sizes = [found for _, found in grouped(timed, "batch", "channels", "dtype")]
    by_size = max(sizes, key=lambda found: len({row.size for row in found if is_usual(row)}), default=[])
    ratios = [found for _, found in grouped(timed, "batch", "channels", "dtype", "size")]
    by_ratio = max(ratios, key=lambda found: len({row.foreground for row in found}), default=[])
    return [row for row in by_size if is_usual(row)], by_ratio


def is_usual(row: Row) -> bool:
    """20 % of foreground, as near as a square of whole pixels comes."""
    return 0.17 < row.foreground < 0.26


def slopes(by_size: Sequence[Row], by_ratio: Sequence[Row]) -> list[str]:
    """How time grows with n_f n_b and memory with pixels, in words."""
    lines = []
    for backend, rows in grouped(by_size, "backend"):
        ordered = sorted(rows, key=lambda row: row.size)
        times = [(plots.pairs(row), row.ms or 0) for row in ordered]
        memory = [(row.size**2, row.peak_mib or 0) for row in ordered if row.peak_mib]
        lines.append(
            f"{backend}, {ordered[0].size}x{ordered[0].size} to {ordered[-1].size}x{ordered[-1].size}: time grows as "
            f"(n_f n_b)^{slope(times):.2f} (between the two largest ^{slope(times[-2:]):.2f}), memory as "
            f"pixels^{slope(memory):.2f} (^{slope(memory[-2:]):.2f})"
        )
    for backend, rows in grouped(by_ratio, "backend"):
        times = [(plots.pairs(row), row.ms or 0) for row in rows]
        low, high = min(row.foreground for row in rows), max(row.foreground for row in rows)
        shown = f"{backend}, {low:.0%} to {high:.0%} foreground at {rows[0].size}x{rows[0].size}"
        lines.append(f"{shown}: time grows as (n_f n_b)^{slope(times):.2f}")
    return lines


def largest(rows: Sequence[Row]) -> list[Row]:
    """Of every operation the case with most competitors, then most work; forward and backward where it has one."""
    timed = [row for row in rows if row.share and row.op not in ("inference", "training_step")]
    result: list[Row] = []
    for _, found in grouped(timed, "op", "detail"):
        mode = BOTH if any(row.mode == BOTH for row in found) else "forward"
        found = [row for row in found if row.mode == mode and (is_usual(row) or row.foreground == 1)]
        best: list[Row] = []
        for _, case in grouped(found, "batch", "channels", "size", "foreground", "dtype"):
            best = max(best, case, key=_extent)
        result += best
    return result


def _extent(case: Sequence[Row]) -> tuple[float, ...]:
    return (len(case), case[0].flop or case[0].nbytes or 0, case[0].size) if case else (0.0,)


def speedup_cases(rows: Sequence[Row]) -> list[tuple[str, list[tuple[str, str, float]]]]:
    """For every map with library baselines: ours, baseline, ratio of their times; of forwards where it has no more."""
    result = []
    for shape, found in grouped(attention(rows), "size", "channels", "batch", "foreground", "dtype"):
        baselines = [name for name, _ in grouped(found, "backend") if name not in OURS]
        if len(baselines) < 2:
            continue
        times = {(row.backend, row.mode): row.ms for row in found if row.ms}
        ratios = []
        for ours in OURS:
            for baseline in baselines:
                mode = BOTH if (baseline, BOTH) in times else "forward"
                if (ours, mode) in times and (baseline, mode) in times:
                    label = baseline if mode == BOTH else f"{baseline}, forward"
                    ratios.append((ours, label, times[baseline, mode] / times[ours, mode]))
        result.append((f"{shape[0]}x{shape[0]}\nC={shape[1]}, batch {shape[2]}", ratios))
    return [(name, ratios) for name, ratios in result if ratios]


# --- tables -----------------------------------------------------------------------------------------------------------

HEADER = "| shape | foreground | backend | mode | ms | slower | GB/s | TFLOP/s | of the ceiling | peak MiB | error |\n"
HEADER += "|---|---|---|---|---|---|---|---|---|---|---|"


def tables(rows: Sequence[Row]) -> str:
    """A table of all rows for each operation."""
    parts = []
    for (op, detail), found in grouped(rows, "op", "detail"):
        title = f"### {op}" + (f", {detail}" if detail else "")
        fastest = {}
        for case, same in grouped_by_case(found):
            fastest[case] = min((row.ms for row in same if row.ms), default=None)
        ordered = sorted(found, key=lambda row: (row.batch, row.channels, row.size, row.foreground, row.dtype))
        lines = [line(row, fastest[without_backend(row)]) for row in ordered]
        parts.append("\n".join([title, "", under(found), "", HEADER, *lines]))
    return "\n\n".join(parts)


def grouped_by_case(rows: Sequence[Row]) -> list[tuple[tuple[object, ...], list[Row]]]:
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(without_backend(row), []).append(row)
    return list(groups.items())


def line(row: Row, fastest: float | None) -> str:
    shape = f"{row.batch}x{row.channels}x{row.size}x{row.size}"
    start = f"| {shape} | {row.foreground:.0%} | {row.backend} | {row.mode} |"
    if row.ms is None or fastest is None:
        return f"{start} {row.note.replace('|', '/')} | | | | | | |"
    slower = "**fastest**" if row.ms == fastest else f"{row.ms / fastest:.2f}x"
    rates = (
        f"{_number(row.gbs)} | {_number(row.tflops)} | {'' if row.share is None else f'{row.share:.1%} {row.bound}'}"
    )
    error = "" if row.error is None else f"{row.error:.0e}"
    return f"{start} {milliseconds(row)} | {slower} | {rates} | {_number(row.peak_mib)} | {error} |"


def milliseconds(row: Row) -> str:
    return f"{_number(row.ms)} ({_number(row.ms_20)}-{_number(row.ms_80)})"


def _number(value: float | None) -> str:
    """Three digits, without an exponent."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value >= 1e-3 else f"{value:.1e}"


# --- README -----------------------------------------------------------------------------------------------------------


def block(rows: Sequence[Row]) -> str:
    """What stands in the README between the two comments."""
    parts = []
    for kind, title in TITLES.items():
        found = [row for row in rows if kind_of(row) == kind]
        if not found:
            parts.append(f"**{title}**: no rows yet.")
            continue
        for device, mine in grouped(found, "device"):
            parts.append(f"**{title}**: {device}\n\n{short_table(mine)}\n\n{under(attention(mine))}")
    parts.append(PACKED_NOTE)
    parts.append(
        f"Every row, with figures: [performance]({PAGE}); how they were measured: [benchmarks](docs/benchmarks.md)."
    )
    return "\n\n".join(parts)


def short_table(rows: Sequence[Row]) -> str:
    """`bain_attention` on the maps where the libraries run too: all that compete, the fastest in bold."""
    lines = [
        "| `bain_attention` on | backend | forward ms | forward + backward ms | peak MiB | error |",
        "|---|---|---|---|---|---|",
    ]
    for _, found in grouped(attention(rows), "batch", "channels", "size", "foreground", "dtype"):
        if not any(row.backend.startswith("SDPA") for row in found):
            continue
        best = {
            mode: min(row.ms for row in same if row.ms)
            for mode, same in grouped(found, "mode")
            if any(r.ms for r in same)
        }
        for backend, same in grouped(found, "backend"):
            by_mode = {row.mode: row for row in same}
            shown = [by_mode.get(mode) for mode in ("forward", BOTH)]
            first, last = same[0], max(same, key=lambda row: (row.ms is not None, row.mode == BOTH))
            label = f"{first.batch}x{first.channels}x{first.size}x{first.size}, {first.foreground:.0%}"
            times = " | ".join("" if row is None else _bold(row.ms, best.get(row.mode)) for row in shown)
            error = "" if last.error is None else f"{last.error:.0e}"
            lines.append(f"| {label} | {backend} | {times} | {_number(last.peak_mib)} | {error} |")
    return "\n".join(lines)


def _bold(value: float | None, best: float | None) -> str:
    return "" if value is None else f"**{_number(value)}**" if value == best else _number(value)


def with_block(text: str, new: str, path: Path) -> str:
    """The text with what stands between the two comments replaced.

    Raises:
        ScscoError: the comments are not there once each, in this order.
    """
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise ScscoError(f"{path} must have the lines {START} and {END} once each: put them where the table should be")
    before, after = text.split(START)[0], text.split(END)[1]
    return f"{before}{START}\n\n{new}\n\n{END}{after}"


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
