"""The command line: `scsco train | evaluate | harmonize | bench | doctor`.

Exit codes: 0 all done, 1 some of the work failed (each failure is named), 2 wrong use or unusable input (one line on
stderr), 130 interrupted. With SCSCO_DEBUG=1 an error shows its traceback. Each command imports what it needs itself.
"""

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from scsco_fast.errors import ScscoError

if TYPE_CHECKING:
    from scsco_fast.nn.unet import HarmonizationUNet

OptionsT = TypeVar("OptionsT")

USAGE = """\
usage: scsco COMMAND [OPTIONS]

Image harmonization with SCS-Co: fit the colours of a pasted foreground to its background.

commands:
  train      train a model:                      scsco train demo
  evaluate   measure a model on a data set:      scsco evaluate --model runs/demo/model.safetensors
  harmonize  harmonize a picture or a folder:    scsco harmonize --model MODEL --image A.png --mask M.png --output B.png
  bench      time every operation on this GPU:   scsco bench --output runs/bench
  doctor     show what works here, and what not: scsco doctor

`scsco COMMAND --help` lists a command's options; `scsco --version` prints the version.
exit codes: 0 done, 1 some files failed, 2 wrong use or unusable input, 130 interrupted
"""

TRAIN_USAGE = """\
usage: scsco train PRESET [OPTIONS]
       scsco train resume RUN [OPTIONS]

Train a model into a run folder: model.safetensors, metrics.csv, loss.png, TensorBoard logs and checkpoints.

presets:
  demo    minutes on two CPU cores, composites made from photographs that come with the installed packages
  paper   the published setting on iHarmony4 at 256x256; for a GPU

`scsco train resume RUN` continues an interrupted run where it stopped; options change its settings.
`scsco train PRESET --verify` compares a few steps with the reference operations; `--profile` shows where time goes.
`torchrun --nproc-per-node N -m scsco_fast train PRESET` shares each step's batch among N GPUs or processes.
`scsco train demo --help` lists every setting with its value in the preset.
"""


@dataclass(frozen=True)
class EvaluateOptions:
    """Measure MSE, fMSE, PSNR, fPSNR and SSIM of a model on a data set, beside the untouched composite."""

    model: str
    """Model file (model.safetensors of a run), or "none": the composite as it is."""
    dataset: Literal["synthetic", "iharmony4"] = "synthetic"
    """Composites made from photographs, or the iHarmony4 data set."""
    photos: str = "builtin"
    """Photographs of the synthetic composites: a folder, or "builtin": those that come with installed packages."""
    root: str | None = None
    """Folder of iHarmony4."""
    split: Literal["test", "train"] = "test"
    """Part of the data set. No photograph is in both."""
    subsets: tuple[str, ...] | None = None
    """Subsets of iHarmony4; None is all of them."""
    count: int | None = None
    """Number of composites: 48 synthetic ones, or all of iHarmony4, if not given."""
    size: int | None = None
    """Height and width in pixels; if not given, the size that the model was trained at."""
    seed: int = 0
    """Seed of the synthetic composites."""
    batch_size: int = 8
    """Composites at a time."""
    workers: int = 0
    """Processes that read samples; 0 reads them in this one."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    csv: Path | None = None
    """Write the values of each image to this file."""
    json: Path | None = None
    """Write the means (all, per subset, per foreground ratio) to this file."""
    strip: Path | None = None
    """Write a mask / before / after / real strip of the first composites to this picture file."""
    save: Path | None = None
    """Write the first composites, masks and real pictures to this folder, as 00_composite.png, 00_mask.png ..."""
    strip_count: int = 6
    """Number of composites in the strip and in the folder."""


@dataclass(frozen=True)
class HarmonizeOptions:
    """Harmonize one picture (--image, --mask) or a folder of them (--images, --masks).

    Pixels outside the mask stay identical where the format is lossless: PNG, TIFF, BMP, WebP. JPEG is written at
    quality 95. In a folder a picture's mask has its name (cat.jpg, cat.png) or iHarmony4's (ID_M_K.jpg, ID_M.png).
    """

    model: Path
    """Model file: model.safetensors of a run."""
    output: Path
    """File to write (its suffix is its format), or folder. Inputs are never overwritten."""
    image: Path | None = None
    """The composite picture."""
    mask: Path | None = None
    """Its mask: white is foreground, black is background, grey blends."""
    images: Path | None = None
    """Folder of composite pictures."""
    masks: Path | None = None
    """Folder of their masks."""
    invert_mask: bool = False
    """Swap foreground and background."""
    format: Literal["same", "png", "jpg", "tif", "webp"] = "same"
    """Format of the files written to a folder; "same" is each picture's own."""
    working_size: int | None = None
    """Long side in pixels at which the network works; if not given, its training size."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    strip: Path | None = None
    """Write a before / after strip to this picture file (one picture only)."""
    real: Path | None = None
    """The real picture, as the last one of the strip."""


@dataclass(frozen=True)
class BenchOptions:
    """Time every operation on this GPU, beside dense, compiled and library attention; or tune the Triton kernels."""

    output: Path = Path("runs/bench")
    """Folder for kernels.csv."""
    minutes: float = 9.0
    """Cases, or lines of the table, that would start later are left out, and counted."""
    smoke: bool = False
    """Tiny shapes, on the CPU where there is no GPU: does the program work?"""
    tune: bool = False
    """Instead: time configurations of the attention kernels on this GPU and rewrite their table."""


@dataclass(frozen=True)
class DoctorOptions:
    """Show versions, devices, backends, VGG-16 weights and optional packages. Exit code 1: nothing can be computed."""

    json: bool = False
    """Print JSON instead of text."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Example:
        >>> main(["--version"])
        0.1.0
        0
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return _dispatch(arguments)
    except ScscoError as error:
        if os.environ.get("SCSCO_DEBUG", "0") not in ("", "0"):
            raise
        print(f"scsco: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("scsco: interrupted", file=sys.stderr)
        return 130


def run() -> None:
    """The console script."""
    sys.exit(main())


def _dispatch(arguments: list[str]) -> int:
    commands: dict[str, Callable[[list[str]], int]] = {
        "train": _train,
        "evaluate": _evaluate,
        "harmonize": _harmonize,
        "bench": _bench,
        "doctor": _doctor,
    }
    if not arguments:
        print(USAGE, end="", file=sys.stderr)
        return 2
    if arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if arguments[0] == "--version":
        from scsco_fast import __version__

        print(__version__)
        return 0
    if arguments[0] not in commands:
        raise ScscoError(f"{arguments[0]!r} is no command; wanted one of {', '.join(commands)} (see scsco --help)")
    try:
        return commands[arguments[0]](arguments[1:])
    except SystemExit as stop:  # --help
        return int(stop.code or 0)


def _parse(
    options: type[OptionsT],
    arguments: list[str],
    program: str,
    default: OptionsT | None = None,
    description: str | None = None,
) -> OptionsT:
    """Options from the command line; a mistake is a `ScscoError` of one line instead of tyro's box."""
    import tyro

    captured = io.StringIO()
    defaults: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(captured):
            return tyro.cli(options, args=arguments, prog=program, description=description, **defaults)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ScscoError(f"{_box_message(captured.getvalue())} (see {program} --help)") from None


def _box_message(box: str) -> str:
    """The message in tyro's error box, which is a title, the message and a hint, with rules of dashes between."""
    lines = [line.strip("│ ") for line in box.splitlines()]
    is_rule = [set(line) <= set("─╭╮╰╯-") for line in lines]
    after_title = dropwhile(lambda index: is_rule[index], range(1, len(lines)))
    message = [lines[index] for index in takewhile(lambda index: not is_rule[index], after_title)]
    if message and message[0].startswith("Missing from"):  # options, each with its explanation
        return "missing " + ", ".join(line for line in message if line.startswith("--"))
    return " ".join(message) or "the options cannot be read"


def _train(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(TRAIN_USAGE, end="", file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    from scsco_fast.train import PRESETS, train

    name, rest = arguments[0], arguments[1:]
    if name == "resume":
        default, program = _resumed(rest)
        rest = rest[1:]
    elif name in PRESETS:
        default, program = PRESETS[name], f"scsco train {name}"
    else:
        raise ScscoError(f"{name!r} is no preset; wanted one of {', '.join(PRESETS)}, or resume RUN")
    options = _parse_train(rest, program, default)
    _check_backend()
    if options.verify:
        return _verify(options.config, options.verify_steps)
    train(options.config, profile=options.profile)
    return 0


def _parse_train(arguments: list[str], program: str, default: Any) -> Any:
    """The settings of a run, and what is wanted of this run only."""
    import tyro

    from scsco_fast.train import TrainConfig

    @dataclass(frozen=True)
    class TrainOptions:
        config: tyro.conf.OmitArgPrefixes[TrainConfig]
        profile: bool = False
        """Also write a trace of a few steps, and a table of the ten most expensive operations, to RUN/profile."""
        verify: bool = False
        """Train nothing; compare a few steps with the reference operations and with float64. Exit code 1: too far."""
        verify_steps: int = 20
        """Steps that --verify compares."""

    description = "Train a model; the defaults shown are the preset's."
    return _parse(TrainOptions, arguments, program, TrainOptions(default), description)


def _verify(config: Any, steps: int) -> int:
    from scsco_fast.train.verify import verify

    result = verify(config, steps)
    print(result.text())
    print(f"wrote {result.folder / 'differences.csv'}\nwrote {result.folder / 'differences.png'}")
    return 0 if result.passed else 1


def _resumed(rest: list[str]) -> tuple[Any, str]:
    """The configuration saved with a run, set to continue it."""
    import dataclasses

    from scsco_fast.train.config import load_config

    if not rest or rest[0].startswith("-"):
        raise ScscoError("resume needs the folder of a run: scsco train resume runs/demo")
    config = load_config(Path(rest[0]) / "config.json")
    return dataclasses.replace(config, output=rest[0], resume=True), f"scsco train resume {rest[0]}"


def _evaluate(arguments: list[str]) -> int:
    options = _parse(EvaluateOptions, arguments, "scsco evaluate")
    _check_backend()
    from scsco_fast.evaluate import evaluate
    from scsco_fast.nn.unet import WORKING_SIZE

    device = _device(options.device)
    model = None if options.model == "none" else _load_model(options.model, device)
    dataset = _dataset(options, options.size or (WORKING_SIZE if model is None else model.working_size))
    with _progress() as progress:
        result = evaluate(
            model,
            dataset,
            device=device,
            batch_size=options.batch_size,
            workers=options.workers,
            progress=progress,
        )
    result.write(csv=options.csv, json=options.json)
    _print_table(result.table())
    if model is not None:
        print(result.improvement())
    _write_examples(model, dataset, options)
    for path in (options.csv, options.json, options.strip, options.save):
        if path is not None:
            print(f"wrote {path}")
    for sample in result.bad:
        print(f"scsco: failed: {sample.name}: {sample.reason}", file=sys.stderr)
    return 1 if result.bad else 0


def _harmonize(arguments: list[str]) -> int:
    options = _parse(HarmonizeOptions, arguments, "scsco harmonize")
    _check_backend()
    match options.image, options.mask, options.images, options.masks:
        case Path() as image, Path() as mask, None, None:
            return _harmonize_one(options, image, mask)
        case None, None, Path() as images, Path() as masks:
            return _harmonize_folder(options, images, masks)
    raise ScscoError("wanted either --image and --mask, or --images and --masks (see scsco harmonize --help)")


def _harmonize_one(options: HarmonizeOptions, image: Path, mask: Path) -> int:
    from scsco_fast.harmonize_files import harmonize_file, write_file_strip

    if options.real is not None and options.strip is None:
        raise ScscoError("--real is shown in the strip only; give --strip FILE too")
    if options.format != "same":
        raise ScscoError("--format is for a folder; the suffix of --output decides the format of one picture")
    model = _load_model(options.model, options.device)
    harmonize_file(image, mask, options.output, model, options.working_size, invert_mask=options.invert_mask)
    print(f"wrote {options.output}")
    if options.strip is not None:
        write_file_strip(options.strip, image, options.output, options.real)
        print(f"wrote {options.strip}")
    return 0


def _harmonize_folder(options: HarmonizeOptions, images: Path, masks: Path) -> int:
    from scsco_fast.harmonize_files import harmonize_folder

    if options.strip is not None or options.real is not None:
        raise ScscoError("--strip and --real are for one picture; leave them out with --images")
    report = harmonize_folder(
        images,
        masks,
        options.output,
        _load_model(options.model, options.device),
        options.working_size,
        invert_mask=options.invert_mask,
        suffix=None if options.format == "same" else f".{options.format}",
        progress=lambda path: print(f"wrote {path}", flush=True),
    )
    for reason in report.failed.values():
        print(f"scsco: failed: {reason}", file=sys.stderr)
    print(f"{len(report.written)} harmonized, {len(report.failed)} failed")
    return 1 if report.failed else 0


def _bench(arguments: list[str]) -> int:
    options = _parse(BenchOptions, arguments, "scsco bench")
    _check_backend()
    if options.tune:
        from scsco_fast import kernels

        reason = kernels.unavailable()
        if reason is not None:
            raise ScscoError(f"--tune times the Triton kernels on a GPU: {reason}")
        from scsco_fast.kernels.tune import tune

        try:
            tune(options.minutes, lambda line: print(line, flush=True))
        except RuntimeError as error:
            raise ScscoError(str(error)) from error
        return 0
    import torch

    if not options.smoke and not torch.cuda.is_available():
        raise ScscoError("there is no CUDA device; --smoke runs tiny shapes on the CPU")
    from scsco_fast.benchmarks.kernels import suite

    suite(options.output, options.minutes, options.smoke)
    return 0


def _doctor(arguments: list[str]) -> int:
    options = _parse(DoctorOptions, arguments, "scsco doctor")
    from scsco_fast.info import doctor, format_report, problems

    report = doctor()
    found = problems(report)
    if options.json:
        import json

        print(json.dumps({**report, "problems": found}, indent=2))
    else:
        print(format_report(report))
        print("problems: " + ("; ".join(found) or "none"))
    return 1 if found else 0


def _dataset(options: EvaluateOptions, size: int) -> Any:
    if options.count is not None and options.count < 1:
        raise ScscoError(f"--count is {options.count}; wanted at least 1")
    if options.dataset == "iharmony4":
        from torch.utils.data import Subset

        from scsco_fast.data.iharmony4 import IHarmony4

        if options.root is None:
            raise ScscoError("--dataset iharmony4 needs --root, the folder of iHarmony4")
        dataset = IHarmony4(options.root, split=options.split, size=size, subsets=options.subsets)
        return Subset(dataset, range(min(options.count or len(dataset), len(dataset))))
    from scsco_fast.data.synthetic import SyntheticComposites, load_photos

    photos = load_photos(options.photos, options.split)
    return SyntheticComposites(photos, size=size, length=options.count or 48, seed=options.seed, augment=False)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr, which disappears; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("evaluating", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _print_table(table: Any) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table)


def _write_examples(model: "HarmonizationUNet | None", dataset: Any, options: EvaluateOptions) -> None:
    from scsco_fast.strips import sample_labels, sample_rows, write_samples, write_strip

    if options.strip is None and options.save is None:
        return
    rows = sample_rows(model, dataset, options.strip_count)
    if options.strip is not None:
        write_strip(rows, sample_labels(model), options.strip)
    if options.save is not None:
        write_samples(rows, sample_labels(model), options.save)


def _load_model(path: str | Path, device: str) -> "HarmonizationUNet":
    from scsco_fast.weights import load_model

    return load_model(path, _device(device))


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ScscoError(f"device {name!r} cannot be used ({reason}); see scsco doctor") from error
    return name


def _check_backend() -> None:
    """SCSCO_BACKEND is read at the first operation; a mistake in it is better said before the work starts."""
    name = os.environ.get("SCSCO_BACKEND", "auto")
    if name == "auto":
        return
    from scsco_fast.ops import backends

    known = backends()
    reason = known.get(name, f"no such backend; wanted auto or one of {', '.join(known)}")
    if reason != "yes":
        raise ScscoError(f"SCSCO_BACKEND is {name!r}: {reason}")


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"scsco: warning: {' '.join(str(message).split())}", file=sys.stderr)
