"""`scsco harmonize`: one picture, or a folder of them."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scsco_fast.cli.parsing import parse
from scsco_fast.cli.shared import check_backend, printable, progress_bar, read_model, worker_count
from scsco_fast.errors import ScscoError


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


def command(arguments: list[str]) -> int:
    options = parse(HarmonizeOptions, arguments, "scsco harmonize")
    check_backend()
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

    model = read_model(options.model, options.device)
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

    model = read_model(options.model, options.device)
    on_cpu = next(model.parameters()).device.type == "cpu"
    with progress_bar("harmonizing") as progress:

        def show(entry: Entry, done: int, total: int) -> None:
            progress(done, total)
            if entry.status == "failed":
                print(f"scsco: failed: {printable(entry.message)}", file=sys.stderr)
            elif entry.message:
                print(f"scsco: warning: {printable(entry.message)}", file=sys.stderr)
            if entry.status == "done" and not sys.stderr.isatty():
                print(f"wrote {printable(entry.output)}", flush=True)

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
            workers=worker_count(options.workers) if on_cpu or options.workers is not None else 0,
            report=options.report,
            progress=show,
        )
    skipped = f"{len(report.skipped)} there already (--overwrite does them again), " if report.skipped else ""
    print(f"{len(report.written)} harmonized, {skipped}{len(report.failed)} failed")
    print(f"wrote {printable(str(options.report or options.output / REPORT))}")
    return 1 if report.failed else 0
