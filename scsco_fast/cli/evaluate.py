"""`scsco evaluate`: a method on a data set, and `scsco evaluate compare`: two methods on the same pictures."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from scsco_fast.cli.parsing import parse
from scsco_fast.cli.shared import check_backend, print_table, progress_bar, read_model, usable_device
from scsco_fast.errors import ScscoError
from scsco_fast.system.extras import require

if TYPE_CHECKING:
    from scsco_fast.evaluation import Evaluation
    from scsco_fast.evaluation.resolution import Resolution


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
    """Part of the data set. No photograph is in both, unless the data set has no lists: then both are all of it."""
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


def command(arguments: list[str]) -> int:
    if arguments[:1] == ["compare"]:
        return _compare(arguments[1:])
    options = parse(EvaluateOptions, arguments, "scsco evaluate")
    resolution = _check_evaluated(options)
    require("scsco evaluate", "train", "scikit-image")
    check_backend()
    from scsco_fast.evaluation import at_full_resolution, default_resolution, evaluate, load_dataset, write_examples

    device = usable_device(options.device)
    without = options.model == "none" or options.identity or options.predictions is not None
    model = None if without else read_model(options.model, device)
    dataset = load_dataset(
        options.root or options.dataset,
        protocol=options.protocol,
        resolution=default_resolution(model) if resolution is None else resolution,
        split=options.split,
        subsets=options.subsets,
        count=options.count,
        predictions=options.predictions,
        photos=options.photos,
        seed=options.seed,
    )
    with progress_bar() as progress:
        result = evaluate(
            at_full_resolution(model) if model is not None and resolution == "full" else model,
            dataset,
            protocol=options.protocol,
            baselines=options.baseline,
            untouched=options.untouched,
            repeat=options.repeat,
            csv=options.csv,
            device=device,
            batch_size=options.batch_size,
            workers=options.workers,
            progress=progress,
            on_bad=lambda sample: print(f"scsco: failed: {sample.name}: {sample.reason}", file=sys.stderr),
        )
    _print_result(result)
    if options.json is not None:  # after the tables, which a full disk must not take along
        result.write_json(options.json)
    write_examples(model, dataset, strip=options.strip, folder=options.save, count=options.strip_count)
    for path in (options.csv, options.json, options.strip, options.save):
        if path is not None:
            print(f"wrote {path}")
    return 1 if result.bad_count or result.unpredicted else 0


def _print_result(result: "Evaluation") -> None:
    tables = (result.table(), result.methods_table(), result.differences_table(), result.drift_table())
    for table in (*tables, result.published_table()):
        if table is not None:
            print_table(table)
    if result.scored != "identity":
        print(result.damage() if result.untouched else result.improvement())
    if result.unpredicted:
        first = ", ".join(result.unpredicted[:5]) + (", ..." if len(result.unpredicted) > 5 else "")
        print(f"scsco: failed: {len(result.unpredicted)} composites without prediction: {first}", file=sys.stderr)


def _check_evaluated(options: EvaluateOptions) -> "Resolution | None":
    """The resolution, if it is given; ScscoError for options that cannot be used or do not go together."""
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
    return _resolution(options)


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


def _resolution(options: EvaluateOptions) -> "Resolution | None":
    given = options.resolution
    if given is None:
        return None
    if given != "full":
        if not given.isdecimal() or int(given) < 1:
            raise ScscoError(f"--resolution is {given!r}; wanted a number of pixels, such as 256, or full")
        return int(given)
    if options.strip is not None or options.save is not None:
        raise ScscoError("--strip and --save show pictures of one size; leave them out with --resolution full")
    if options.dataset == "synthetic":
        raise ScscoError("synthetic composites have no full resolution; give --resolution 256, or --dataset DIR")
    return "full"


def _compare(arguments: list[str]) -> int:
    options = parse(CompareOptions, arguments, "scsco evaluate compare", positional=True)
    from scsco_fast.evaluation import compare

    result = compare(options.a, options.b, options.resamples, options.seed)
    print_table(result.table())
    if options.json is not None:
        result.write_json(options.json)
        print(f"wrote {options.json}")
    return 0
