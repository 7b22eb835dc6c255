"""The command line: `scsco COMMAND`; `USAGE` lists the commands.

Exit codes: 0 all done, 1 some of the work failed (each failure is named), 2 wrong use or unusable input (one line on
stderr), 130 interrupted. With SCSCO_DEBUG=1 an error shows its traceback. Each command imports what it needs itself.
"""

import contextlib
import io
import logging
import os
import sys
import time
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
  evaluate   measure a method on a data set:     scsco evaluate --dataset iHarmony4
             or compare two measurements:        scsco evaluate compare A.csv B.csv
  prepare    check a data set, or pack it:       scsco prepare iHarmony4 --check
  synthesize make a data set of photographs:     scsco synthesize PHOTOS --output DIR
  harmonize  harmonize a picture or a folder:    scsco harmonize --image A.png --mask M.png --output B.png
  bench      time every operation, end to end:   scsco bench --suite cpu
  import-rainnet  convert RainNet's checkpoint:  scsco import-rainnet net_G_last.pth
  export     write a model for other programs:   scsco export --format onnx --output model.onnx
  demo       a page to try it on, in a browser:  scsco demo
  build      compile the CUDA library:           scsco build
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
  compact a small model for real pictures, on a folder of photographs (docs/training.md): two and a half hours at most
          on two CPU cores, with `OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m scsco_fast train compact`
  compact-gpu  the same recipe for one GPU, compiled and captured in a CUDA graph; aims at eight minutes on an H100
  paper   the published setting on iHarmony4 at 256x256; for a GPU

`scsco train resume RUN` continues an interrupted run where it stopped; options change its settings.
`scsco train PRESET --verify` compares a few steps with the reference operations; `--profile` shows where time goes.
`torchrun --nproc-per-node N -m scsco_fast train PRESET` shares each step's batch among N GPUs or processes.
`scsco train demo --help` lists every setting with its value in the preset.
"""


@dataclass(frozen=True)
class EvaluateOptions:
    """Measure MSE, PSNR, fMSE, fPSNR and SSIM of a method on a data set, beside the untouched composite.

    --model, --predictions or --identity says whose output; without any it is the package's own model. `scsco evaluate
    compare A.csv B.csv` says whether B is better than A on the same pictures.
    """

    model: str | None = None
    """Model file (model.safetensors of a run), "compact" (the default) or "compact-free"; "none" is --identity."""
    predictions: Path | None = None
    """Folder of any method's outputs: one for each composite, of its name, with any picture suffix."""
    identity: bool = False
    """Score the untouched composites, without a model."""
    baseline: tuple[Literal["half-statistics", "half-mean", "full-statistics", "full-mean", "mean"], ...] = ()
    """References without a network, scored on the same pictures. They move the foreground's colours towards the
    background's, per channel: half-statistics half-way to its mean and deviation, half-mean (or mean) half-way to its
    mean, full-statistics and full-mean all the way."""
    untouched: bool = False
    """Give the real pictures to the method instead of the composites. They need no correction, so whatever it changes
    is damage, and 0 is right."""
    repeat: int = 1
    """Apply the model this many times, each time to its last output, and show the MSE after each: how far it drifts.
    All other figures are those of the first time."""
    protocol: Literal["strict", "dovenet", "rainnet", "idih", "pctnet", "harmonizer"] = "strict"
    """How files are read and resized and what is averaged: docs/evaluation.md. Figures compare only within one."""
    resolution: str | None = None
    """Side of the scored square pictures in pixels, or "full"; if not given, 256, or the training size of a model whose
    head is not affine."""
    dataset: str = "synthetic"
    """"synthetic": composites made from photographs; or the folder of iHarmony4 or of data kept like it; or
    "iharmony4": the folder is --root."""
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
    seed: int = 0
    """Seed of the synthetic composites."""
    batch_size: int = 8
    """Composites at a time."""
    workers: int = 0
    """Processes that read samples; 0 reads them in this one."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    csv: Path | None = None
    """Write the values of each image to this file, as they come."""
    json: Path | None = None
    """Write the means (all, per subset, per foreground ratio) to this file."""
    strip: Path | None = None
    """Write a mask / before / after / real strip of the first composites to this picture file."""
    save: Path | None = None
    """Write the first composites, masks and real pictures to this folder, as 00_composite.png, 00_mask.png ..."""
    strip_count: int = 6
    """Number of composites in the strip and in the folder."""


@dataclass(frozen=True)
class CompareOptions:
    """Is B better than A on the same pictures? Mean differences with bootstrap intervals: better, worse or noise."""

    a: Path
    """CSV file of `scsco evaluate --csv`: the method that is compared with."""
    b: Path
    """CSV file of the method that is judged."""
    resamples: int = 10_000
    """Resamples of the bootstrap."""
    seed: int = 0
    """Seed of the bootstrap."""
    json: Path | None = None
    """Write the differences to this file."""


@dataclass(frozen=True)
class PrepareOptions:
    """Check a data set (--check), or pack it into a store that keeps a GPU fed (--output).

    `scsco prepare DIR --check` decodes every file of a data set, or compares every checksum of a packed store; it names
    whatever cannot be used, and exits with 1 then. `scsco prepare DIR --output STORE` resizes every picture once;
    train on it with `scsco train PRESET --dataset packed --root STORE`. Both go on where they were interrupted.
    """

    root: Path
    """Folder of iHarmony4, or of data kept like it (docs/data.md); `scsco prepare DIR` is short for it."""
    check: bool = False
    """Check the data set or store instead of packing it."""
    report: Path | None = None
    """Where --check writes its report; if not given, runs/check/NAME.json."""
    output: Path | None = None
    """Folder of the store to write; it gets a folder for each split."""
    size: int = 256
    """Side of the packed pictures in pixels."""
    split: Literal["train", "test"] | None = None
    """Part to pack; if not given, each that has a list."""
    workers: int | None = None
    """Processes that decode; if not given, one per core. 0 decodes in this one, which a broken decoder can end."""


@dataclass(frozen=True)
class SynthesizeOptions:
    """Make a data set in iHarmony4's layout out of photographs: regions are recoloured, the photograph is the answer.

    Colours come from other photographs, by one of four transfers; what breaks a rule of realism is drawn again. The
    same photographs and seed give the same bytes. An interrupted run goes on where it stopped.
    """

    photos: str
    """Folder of photographs, searched with its subfolders, or "builtin": those that come with installed packages;
    `scsco synthesize PHOTOS` is short for it."""
    output: Path
    """Folder of the data set."""
    masks: Path | None = None
    """Folder of masks, MASKS/a/b.png for PHOTOS/a/b.jpg, white is foreground; if not given, PHOTOS/masks. Photographs
    without a mask are segmented."""
    count: int | None = None
    """Number of composites; if not given, four of each photograph."""
    seed: int = 0
    """Seed of everything that is drawn."""
    subset: str = "Synthetic"
    """Name of the data set's one subset."""
    format: Literal["jpg", "png"] = "jpg"
    """Format of composites and real pictures. JPEG changes the background a little along the mask's outline."""
    quality: int = 95
    """Quality of JPEG."""
    longest: int = 1024
    """Larger photographs are reduced to this many pixels on their long side."""
    workers: int | None = None
    """Processes; if not given, one per core. 0 does everything in this one."""


@dataclass(frozen=True)
class HarmonizeOptions:
    """Harmonize one picture (--image, --mask) or a folder of them (--images, --masks).

    Pixels outside the mask stay identical where the format is lossless: PNG, TIFF, BMP, WebP. JPEG is written at
    quality 95. The mask of cat.jpg is cat.png, cat_mask.png, cat-mask.png, cat.mask.png or cat_m.png in --masks;
    without --masks, --images is a folder with images/ and masks/, iHarmony4's composite_images/ and masks/, or all
    files beside each other (docs/harmonize.md). A folder's outputs that are there already are skipped.
    """

    output: Path
    """File to write (its suffix is its format), or folder. Inputs are never overwritten."""
    model: Path | None = None
    """Model file: model.safetensors of a run; "compact" (the default) or "compact-free", the models in the package."""
    image: Path | None = None
    """The composite picture."""
    mask: Path | None = None
    """Its mask: white is foreground, black is background, grey blends."""
    images: Path | None = None
    """Folder of composite pictures."""
    masks: Path | None = None
    """Folder of their masks."""
    alpha_mask: bool = False
    """Each picture's own alpha channel is its mask; --mask or --masks is left out."""
    invert_mask: bool = False
    """Swap foreground and background."""
    fit_mask: bool = False
    """Resize a mask of another size to its picture's, and say so, instead of refusing it."""
    format: Literal["same", "png", "jpg", "tif", "webp"] = "same"
    """Format of the files written to a folder; "same" is each picture's own."""
    working_size: int | None = None
    """Long side in pixels at which the network works; if not given, its training size."""
    native: bool = False
    """Work at the picture's own size; memory grows with the number of pixels."""
    max_megapixels: float = 250
    """Larger files are refused before they are decoded; each megapixel takes about 25 MB."""
    overwrite: bool = False
    """In a folder: harmonize again what is there already. One picture's output is always replaced."""
    workers: int | None = None
    """In a folder: processes, one thread each; if not given, one per core, none on a GPU. 0 works in this one."""
    report: Path | None = None
    """In a folder: write what became of each picture to this file; if not given, OUTPUT/report.json."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    strip: Path | None = None
    """Write a before / after strip to this picture file (one picture only)."""
    real: Path | None = None
    """The real picture, as the last one of the strip."""


@dataclass(frozen=True)
class ImportRainnetOptions:
    """Convert a RainNet checkpoint into a model file that `scsco harmonize` and `scsco evaluate` read as --model.

    The file must be the generator's state dict, such as net_G_last.pth; only tensors are read from it. What it computes
    stays the same, to float32 rounding: docs/rainnet.md.
    """

    checkpoint: Path
    """RainNet's net_G_last.pth; `scsco import-rainnet FILE` is short for it."""
    output: Path | None = None
    """Model file to write; if not given, the checkpoint's name with .safetensors. It must not exist yet."""


@dataclass(frozen=True)
class ExportOptions:
    """Write a model for programs that know nothing of this one: torch.export, ONNX, AOTInductor (docs/export.md)."""

    output: Path
    """File to write: .pt2, .onnx, .pt2."""
    format: Literal["pt2", "onnx", "aoti"]
    """pt2: torch.export. onnx: ONNX, opset 18. aoti: compiled for this CPU by AOTInductor; needs a C++ compiler."""
    model: Path | None = None
    """Model file: model.safetensors of a run; "compact" (the default) or "compact-free", the models in the package."""
    size: tuple[int, int] | None = None
    """Height and width of the pictures, one at a time; if not given, any; of aoti, the working size squared."""


@dataclass(frozen=True)
class DemoOptions:
    """Show a page where a picture and its mask are uploaded, harmonized and downloaded (docs/demo.md).

    Only this machine can open it, unless --host says otherwise; there is no password.
    """

    model: Path | None = None
    """Model file: model.safetensors of a run; "compact" (the default) or "compact-free", the models in the package."""
    host: str = "127.0.0.1"
    """Address to listen on; the default is reached from this machine only."""
    port: int = 7860
    """Port to listen on."""
    max_megapixels: float = 24.0
    """Larger pictures are refused."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


@dataclass(frozen=True)
class BenchOptions:
    """Time every operation and the whole network, beside dense, compiled and library attention: docs/benchmarks.md.

    Without --report, --tune, --compare and --gate it measures a suite and appends its rows.
    """

    suite: Literal["smoke", "cpu", "gpu", "full"] | None = None
    """smoke: seconds, does the program work; cpu and gpu: under ten minutes; full: more of either. If not given, gpu
    where there is a GPU, else cpu."""
    output: Path = Path("runs/bench")
    """Folder for SUITE.csv and SUITE.jsonl; rows are appended."""
    minutes: float | None = None
    """Cases, or kernels of the table, that would start later are left out, and counted; if not given, the suite's
    limit, 9 for --tune."""
    report: bool = False
    """Instead: draw the figures and write docs/performance.md and the README's table from the committed rows."""
    tune: bool = False
    """Instead: time the candidates for the attention kernels' configurations on this GPU, write each kernel's fastest
    into the table, and append the rows behind it to tune.csv."""
    compare: tuple[str, str] | None = None
    """Instead: what differs from the first to the second, two files of rows or git revisions. Exit code 1: a row got
    worse."""
    gate: bool = False
    """Instead: launches, bytes, operations, memory and waits, counted without a GPU. Exit code 1: one grew."""


@dataclass(frozen=True)
class BuildOptions:
    """Compile the CUDA library into the cache, unless it is there already; needs nvcc, no GPU. Exit code 1: it failed.

    TORCH_CUDA_ARCH_LIST names the architectures, otherwise this machine's GPUs do; MAX_JOBS limits the compilers that
    run at once; SCSCO_CACHE_DIR is the cache.
    """

    emulated: bool = False
    """The same kernels as C++ for the CPU, with g++: what SCSCO_CUDA_EMULATION=1 uses."""


@dataclass(frozen=True)
class DoctorOptions:
    """Show versions, devices, backends, VGG-16 weights and optional packages. Exit code 1: nothing can be computed."""

    json: bool = False
    """Print JSON instead of text."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Examples:
        >>> main(["--version"])
        0.1.0
        0
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            _log_to_stderr()
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
        "prepare": _prepare,
        "synthesize": _synthesize,
        "harmonize": _harmonize,
        "import-rainnet": _import_rainnet,
        "export": _export,
        "demo": _demo,
        "bench": _bench,
        "build": _build,
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
    positional: bool = False,
) -> OptionsT:
    """Options from the command line; a mistake is a `ScscoError` of one line instead of tyro's box.

    With `positional` the options without a default are given without their names.
    """
    import tyro

    captured = io.StringIO()
    defaults: dict[str, Any] = {} if default is None else {"default": default}
    config = (tyro.conf.PositionalRequiredArgs,) if positional else ()
    try:
        with contextlib.redirect_stderr(captured):
            return tyro.cli(options, args=arguments, prog=program, description=description, config=config, **defaults)
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
        return "missing " + (", ".join(line for line in message if line.startswith("--")) or "an argument")
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
    if arguments[:1] == ["compare"]:
        return _compare(arguments[1:])
    options = _parse(EvaluateOptions, _gathered(arguments, "--baseline"), "scsco evaluate")
    _check_evaluated(options)
    _check_backend()
    from scsco_fast.evaluate import evaluate

    device = _device(options.device)
    without = options.model == "none" or options.identity or options.predictions is not None
    model = None if without else _load_model(options.model, device)
    resolution = _resolution(options.resolution, model)
    if resolution is None and (options.strip is not None or options.save is not None):
        raise ScscoError("--strip and --save show pictures of one size; leave them out with --resolution full")
    dataset = _dataset(options, resolution)
    with _progress() as progress:
        result = evaluate(
            model if model is None or resolution is not None else _at_full_resolution(model),
            dataset,
            protocol=options.protocol,
            baselines=options.baseline,
            untouched=options.untouched,
            repeat=options.repeat,
            csv=options.csv,
            device="cpu" if resolution is None else device,
            batch_size=options.batch_size,
            workers=options.workers,
            progress=progress,
            on_bad=lambda sample: print(f"scsco: failed: {sample.name}: {sample.reason}", file=sys.stderr),
        )
    if options.json is not None:
        result.write_json(options.json)
    tables = (result.table(), result.methods_table(), result.differences_table(), result.drift_table())
    for table in (*tables, result.published_table()):
        if table is not None:
            _print_table(table)
    if result.scored != "identity":
        print(result.damage() if options.untouched else result.improvement())
    _write_examples(model, dataset, options)
    for path in (options.csv, options.json, options.strip, options.save):
        if path is not None:
            print(f"wrote {path}")
    if result.unpredicted:
        first = ", ".join(result.unpredicted[:5]) + (", ..." if len(result.unpredicted) > 5 else "")
        print(f"scsco: failed: {len(result.unpredicted)} composites without prediction: {first}", file=sys.stderr)
    return 1 if result.bad_count or result.unpredicted else 0


def _check_evaluated(options: EvaluateOptions) -> None:
    given = [options.model is not None, options.predictions is not None, options.identity]
    if sum(given) > 1:
        raise ScscoError(
            "wanted only one of --model FILE, --predictions DIR and --identity (see scsco evaluate --help)"
        )
    if options.count is not None and options.count < 1:
        raise ScscoError(f"--count is {options.count}; wanted at least 1")
    if options.root is not None and options.dataset != "iharmony4":
        raise ScscoError("--root belongs to --dataset iharmony4; --dataset takes a folder as well")
    if options.dataset == "iharmony4" and options.root is None:
        raise ScscoError("--dataset iharmony4 needs --root, the folder of iHarmony4; or give it as --dataset DIR")
    if options.dataset == "synthetic" and options.predictions is not None:
        raise ScscoError("--predictions needs --dataset DIR: synthetic composites have no file names to match")
    _check_input(options)


def _check_input(options: EvaluateOptions) -> None:
    """--repeat and --untouched, which need something that can be applied to a picture."""
    if options.repeat < 1:
        raise ScscoError(f"--repeat is {options.repeat}; wanted at least 1, which applies the model once")
    identity = options.identity or options.model == "none"
    without = "--predictions" if options.predictions is not None else "--identity" if identity else None
    if options.repeat > 1 and without is not None:
        raise ScscoError(
            f"--repeat {options.repeat} gives a model's output back to it, but with {without} there is no model; "
            f"leave --repeat out, or give --model FILE instead of {without}"
        )
    if options.untouched and options.predictions is not None:
        raise ScscoError(
            "--untouched gives real pictures to the method, but --predictions are outputs made of composites; "
            "leave --untouched out, or give --model FILE instead of --predictions"
        )
    if options.untouched and identity and not options.baseline:
        raise ScscoError(
            "--untouched shows what a method does to real pictures, but with --identity there is no method; "
            "give --model FILE or --baseline NAME"
        )
    if options.untouched and (options.strip is not None or options.save is not None):
        raise ScscoError("--strip and --save show composites and what becomes of them; leave them out with --untouched")


def _gathered(arguments: list[str], option: str) -> list[str]:
    """The values of an option that is given several times behind one name; the last alone would count otherwise."""
    if sum(argument.split("=")[0] == option for argument in arguments) < 2:
        return arguments
    kept: list[str] = []
    values: list[str] = []
    inside = False
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name == option:
            inside = not value
            values += [value] if value else []
        elif inside and not argument.startswith("-"):
            values.append(argument)
        else:
            inside = False
            kept.append(argument)
    return [*kept, option, *values]


def _resolution(given: str | None, model: "HarmonizationUNet | None") -> int | None:
    """The scored side in pixels; None is full resolution."""
    from scsco_fast.nn.unet import WORKING_SIZE

    if given is None:
        # An affine head's size is that of its transform; pictures are scored at the size that the field compares at.
        return WORKING_SIZE if model is None or model.head == "affine" else model.working_size
    if given == "full":
        return None
    if not given.isdecimal() or int(given) < 1:
        raise ScscoError(f"--resolution is {given!r}; wanted a number of pixels, such as 256, or full")
    return int(given)


def _at_full_resolution(model: "HarmonizationUNet") -> Any:
    """The model as `scsco harmonize` applies it to a picture of any size: it works at its own size."""
    from scsco_fast.harmonizing.pictures import harmonize

    def run(composite: Any, mask: Any) -> Any:
        import torch

        pixels = composite[0].permute(1, 2, 0).contiguous().numpy()
        changed = harmonize(pixels, mask[0, 0].numpy(), model)
        return torch.from_numpy(changed).permute(2, 0, 1)[None]

    return run


def _compare(arguments: list[str]) -> int:
    options = _parse(CompareOptions, arguments, "scsco evaluate compare", positional=True)
    from scsco_fast.compare import compare

    result = compare(options.a, options.b, options.resamples, options.seed)
    _print_table(result.table())
    if options.json is not None:
        result.write_json(options.json)
        print(f"wrote {options.json}")
    return 0


def _prepare(arguments: list[str]) -> int:
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--root", *arguments]
    options = _parse(PrepareOptions, arguments, "scsco prepare")
    if options.workers is not None and options.workers < 0:
        raise ScscoError(f"--workers is {options.workers}; wanted 0 or more")
    if options.check == (options.output is not None):
        raise ScscoError("wanted either --check or --output STORE (see scsco prepare --help)")
    if options.output is not None:
        return _pack(options, options.output)
    from scsco_fast.data.packed import stores

    found = stores(options.root)
    return _check_store(found) if found else _check_dataset(options)


def _check_dataset(options: PrepareOptions) -> int:
    from scsco_fast.data.check import check_dataset

    target = options.report or Path("runs/check") / f"{options.root.resolve().name}.json"
    with _progress("checking") as progress:
        report = check_dataset(options.root, target.with_suffix(".files.jsonl"), _workers(options), progress)
    report.write(target)
    for name, dialect in report.dialects.items():
        print(f"{name}: {report.samples[name]} samples ({dialect})")
    print(f"{report.files} files, {report.decoded} decoded now, {report.unlisted} composites in no list")
    _print_problems(report.problems)
    print(f"wrote {target}")
    return 1 if report.problems else 0


def _print_problems(problems: Sequence[Any]) -> None:
    """How many there are of each kind, and the first of each; all of them are in the report."""
    shown = 3
    for kind in dict.fromkeys(problem.kind for problem in problems):
        reasons = [problem.reason for problem in problems if problem.kind == kind]
        for reason in reasons[:shown]:
            print(f"scsco: {kind}: {_printable(reason)}", file=sys.stderr)
        if len(reasons) > shown:
            print(f"scsco: {kind}: {len(reasons) - shown} more in the report", file=sys.stderr)
    print(f"{len(problems)} problems" if problems else "no problem")


def _printable(text: str) -> str:
    """One line that any terminal can show: file names may hold line ends and bytes of no encoding."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _check_store(folders: Sequence[Path]) -> int:
    from scsco_fast.data.packed import verify

    changed = []
    for folder in folders:
        with _progress("checking") as progress:
            found = verify(folder, progress)
        print(f"{folder}: {len(found)} records have been changed" if found else f"{folder}: no problem")
        changed += found
    for problem in changed:
        print(f"scsco: {_printable(problem)}", file=sys.stderr)
    return 1 if changed else 0


def _pack(options: PrepareOptions, output: Path) -> int:
    from scsco_fast.data.layouts import listed_splits
    from scsco_fast.data.packing import pack

    splits = [options.split] if options.split else listed_splits(options.root)
    if not splits:
        raise ScscoError(f"{options.root}: no list says what is for training; give --split train or --split test")
    failed = 0
    for split in splits:
        with _progress(f"packing {split}") as progress:
            report = pack(options.root, output, split, options.size, _workers(options), progress)
        index = report.index
        for reason in (*index.missing, *index.bad.values()):
            print(f"scsco: failed: {_printable(reason)}", file=sys.stderr)
        if report.warning is not None:
            print(f"scsco: warning: {report.warning}", file=sys.stderr)
        counts = f"{len(index.names) - len(index.bad)} samples of {len(index.real_checksums)} real pictures"
        print(f"{report.folder}: {counts}, {len(index.bad)} bad, {len(index.missing)} missing")
        failed += len(index.bad) + len(index.missing)
    print(f"train on it: scsco train paper --dataset packed --root {output} --size {options.size}")
    return 1 if failed else 0


def _synthesize(arguments: list[str]) -> int:
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--photos", *arguments]
    options = _parse(SynthesizeOptions, arguments, "scsco synthesize")
    from scsco_fast.data.synthesize import synthesize

    with _progress("synthesizing") as progress:
        result = synthesize(
            options.photos,
            options.output,
            masks=options.masks,
            count=options.count,
            seed=options.seed,
            subset=options.subset,
            suffix=".png" if options.format == "png" else ".jpg",
            quality=options.quality,
            longest=options.longest,
            workers=_workers(options),
            progress=progress,
        )
    for family, counts in result.families.items():
        broken = ", ".join(f"{rule} {count}" for rule, count in counts.items() if rule != "kept") or "no rule"
        print(f"{family}: {counts['kept']} kept, {result.acceptance(family):.0%} of the tries; broken: {broken}")
    for reason in result.unusable.values():
        print(f"scsco: failed: {_printable(reason)}", file=sys.stderr)
    print(
        f"{result.folder}: {result.made} composites, {result.given_up} given up, {len(result.unusable)} files unusable"
    )
    return 1 if result.given_up or result.unusable else 0


def _workers(options: PrepareOptions | SynthesizeOptions | HarmonizeOptions) -> int:
    from scsco_fast.data.workers import default_workers

    return default_workers() if options.workers is None else options.workers


def _harmonize(arguments: list[str]) -> int:
    options = _parse(HarmonizeOptions, arguments, "scsco harmonize")
    _check_backend()
    _check_harmonized(options)
    if options.images is not None:
        return _harmonize_folder(options, options.images)
    assert options.image is not None
    return _harmonize_one(options, options.image)


def _check_harmonized(options: HarmonizeOptions) -> None:
    one, folder = options.image is not None, options.images is not None
    if one == folder or (one and options.masks is not None) or (folder and options.mask is not None):
        raise ScscoError("wanted either --image and --mask, or --images and --masks (see scsco harmonize --help)")
    if options.alpha_mask and (options.mask is not None or options.masks is not None):
        raise ScscoError("--alpha-mask takes the picture's own alpha channel; leave --mask and --masks out")
    if one and options.mask is None and not options.alpha_mask:
        raise ScscoError(
            f"{options.image}: no mask; wanted either --image and --mask (white is foreground), or --alpha-mask"
        )
    if options.native and options.working_size is not None:
        raise ScscoError("--native is the picture's own size; leave --working-size out")
    if not 0 < options.max_megapixels <= 1e5:
        raise ScscoError(f"--max-megapixels is {options.max_megapixels:g}; wanted more than 0, at most 100000")
    if one and options.format != "same":
        raise ScscoError("--format is for a folder; the suffix of --output decides the format of one picture")
    if one and (options.overwrite or options.workers is not None or options.report is not None):
        raise ScscoError("--overwrite, --workers and --report are for a folder; leave them out with --image")
    if folder and (options.strip is not None or options.real is not None):
        raise ScscoError("--strip and --real are for one picture; leave them out with --images")
    if options.real is not None and options.strip is None:
        raise ScscoError("--real is shown in the strip only; give --strip FILE too")
    if options.workers is not None and options.workers < 0:
        raise ScscoError(f"--workers is {options.workers}; wanted 0 or more")
    for path in (options.image, options.mask, options.real, options.output):
        if options.strip is not None and path is not None and options.strip.resolve() == path.resolve():
            raise ScscoError(f"{options.strip}: the strip would overwrite {path}; name another file")


def _harmonize_one(options: HarmonizeOptions, image: Path) -> int:
    from scsco_fast.harmonizing.files import harmonize_file, write_file_strip

    model = _load_model(options.model, options.device)
    harmonize_file(
        image,
        options.mask,
        options.output,
        model,
        options.working_size,
        invert_mask=options.invert_mask,
        native=options.native,
        fit_mask=options.fit_mask,
        max_pixels=round(options.max_megapixels * 1e6),
    )
    print(f"wrote {options.output}")
    if options.strip is not None:
        write_file_strip(options.strip, image, options.output, options.real)
        print(f"wrote {options.strip}")
    return 0


def _harmonize_folder(options: HarmonizeOptions, images: Path) -> int:
    from scsco_fast.harmonizing.folders import REPORT, Entry, Settings, harmonize_folder

    model = _load_model(options.model, options.device)
    on_cpu = next(model.parameters()).device.type == "cpu"
    with _progress("harmonizing") as progress:

        def show(entry: Entry, done: int, total: int) -> None:
            progress(done, total)
            if entry.status == "failed":
                print(f"scsco: failed: {_printable(entry.message)}", file=sys.stderr)
            elif entry.message:
                print(f"scsco: warning: {_printable(entry.message)}", file=sys.stderr)
            if entry.status == "done" and not sys.stderr.isatty():
                print(f"wrote {_printable(entry.output)}", flush=True)

        report = harmonize_folder(
            images,
            options.masks,
            options.output,
            model,
            Settings(
                options.working_size,
                invert_mask=options.invert_mask,
                native=options.native,
                fit_mask=options.fit_mask,
                max_pixels=round(options.max_megapixels * 1e6),
            ),
            suffix=None if options.format == "same" else f".{options.format}",
            alpha_mask=options.alpha_mask,
            overwrite=options.overwrite,
            workers=_workers(options) if on_cpu or options.workers is not None else 0,
            report=options.report,
            progress=show,
        )
    skipped = f"{len(report.skipped)} there already (--overwrite does them again), " if report.skipped else ""
    print(f"{len(report.written)} harmonized, {skipped}{len(report.failed)} failed")
    print(f"wrote {_printable(str(options.report or options.output / REPORT))}")
    return 1 if report.failed else 0


def _import_rainnet(arguments: list[str]) -> int:
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--checkpoint", *arguments]
    options = _parse(ImportRainnetOptions, arguments, "scsco import-rainnet")
    from scsco_fast.nn.rainnet import read_rainnet
    from scsco_fast.weights import save_model

    output = options.output or options.checkpoint.with_suffix(".safetensors")
    model = read_rainnet(options.checkpoint)
    if output.exists():
        raise ScscoError(f"{output}: exists already; name another file with --output")
    save_model(model, output, {"source": f"RainNet, {options.checkpoint.name}"})
    print(f"wrote {output}")
    return 0


def _export(arguments: list[str]) -> int:
    options = _parse(ExportOptions, arguments, "scsco export")
    from scsco_fast.export import check, export

    check(options.output, options.format, options.size)
    export(_load_model(options.model, "cpu"), options.output, options.format, options.size)
    print(f"wrote {options.output}")
    return 0


def _demo(arguments: list[str]) -> int:
    options = _parse(DemoOptions, arguments, "scsco demo")
    _check_backend()
    from scsco_fast.demo import require_gradio, serve

    require_gradio()
    serve(_load_model(options.model, options.device), options.host, options.port, options.max_megapixels)
    return 0


def _bench(arguments: list[str]) -> int:
    options = _parse(BenchOptions, arguments, "scsco bench")

    def say(line: str) -> None:
        print(line, flush=True)

    if options.compare is not None:
        from scsco_fast.benchmarks.compare import compare

        return compare(*options.compare, say=say)
    if options.gate:
        from scsco_fast.benchmarks.counts import gate

        return gate()
    if options.report:
        from scsco_fast.benchmarks.report import report

        report(say=say)
        return 0
    _check_backend()
    if options.tune:
        from scsco_fast.benchmarks.tuning import tune

        tune(9.0 if options.minutes is None else options.minutes, options.output, say)
        return 0
    import torch

    from scsco_fast.benchmarks.suites import run as run_suite

    suite = options.suite or ("gpu" if torch.cuda.is_available() else "cpu")
    rows = run_suite(suite, options.output, options.minutes, say)
    return 1 if any(row.note.startswith("wrong") for row in rows) else 0


def _build(arguments: list[str]) -> int:
    options = _parse(BuildOptions, arguments, "scsco build")
    from scsco_fast.cuda import build, resources

    start = time.perf_counter()
    try:
        library = build.build(build.plan("emulated" if options.emulated else "cuda"))
    except build.BuildError as error:
        print(f"scsco: error: {error}", file=sys.stderr)
        return 1
    print(f"{library} ({time.perf_counter() - start:.0f} s)")
    kernels = resources.read_log((library.parent / build.LOG).read_text())
    if kernels:
        print(resources.summary(kernels))
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


def _dataset(options: EvaluateOptions, resolution: int | None) -> Any:
    if options.dataset != "synthetic":
        from scsco_fast.data.iharmony4 import IHarmony4
        from scsco_fast.protocols import protocol_named
        from scsco_fast.triplets import Triplets

        folder = options.root if options.dataset == "iharmony4" else options.dataset
        members = IHarmony4(str(folder), split=options.split, subsets=options.subsets).members[: options.count]
        return Triplets(members, protocol_named(options.protocol), resolution, options.predictions, options.split)
    if resolution is None:
        raise ScscoError("synthetic composites have no full resolution; give --resolution 256, or --dataset DIR")
    from scsco_fast.data.synthetic import SyntheticComposites, load_photos

    photos = load_photos(options.photos, options.split)
    return SyntheticComposites(photos, size=resolution, length=options.count or 48, seed=options.seed, augment=False)


@contextlib.contextmanager
def _progress(what: str = "evaluating") -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar on stderr, which disappears; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
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


def _load_model(path: str | Path | None, device: str) -> "HarmonizationUNet":
    from scsco_fast.weights import load_default_model, load_model

    return load_default_model(_device(device)) if path is None else load_model(path, _device(device))


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


def _log_to_stderr() -> None:
    """What the data sets have to say: how they lie on disk, and what is missing."""
    logger = logging.getLogger("scsco_fast.data")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, _ToStderr) for handler in logger.handlers):
        logger.addHandler(_ToStderr())


class _ToStderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        level = "warning: " if record.levelno >= logging.WARNING else ""
        print(f"scsco: {level}{_printable(record.getMessage())}", file=sys.stderr)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"scsco: warning: {' '.join(str(message).split())}", file=sys.stderr)
