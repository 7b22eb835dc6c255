"""`scsco harmonize`: a composite, a cut-out, an edit, or a folder of composites."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scsco_fast.cli.parsing import parse
from scsco_fast.cli.shared import check_backend, printable, progress_bar, read_model, worker_count
from scsco_fast.errors import ScscoError
from scsco_fast.harmonizing.formats import options_of_suffix
from scsco_fast.harmonizing.settings import Keep, Settings
from scsco_fast.system.files import is_same_path


@dataclass(frozen=True)
class HarmonizeOptions:
    """Fit the colours of a pasted foreground to its background. One picture, in one of three ways, or a folder:

      --image A --mask M               a composite and its mask
      --foreground CUT --background B  a cut-out, laid on a background
      --before A --after B             a picture before and after an edit
      --images DIR                     a folder of composites

    Pixels outside the mask stay identical where the format is lossless: PNG, TIFF, BMP, WebP, HEIC. JPEG is written at
    quality 95, AVIF at 100. The mask of cat.jpg is cat.png, cat_mask.png, cat-mask.png, cat.mask.png or cat_m.png in
    --masks; without --masks, --images is a folder with images/ and masks/, iHarmony4's composite_images/ and masks/, or
    all files beside each other (docs/harmonize.md). A folder's outputs that are there already are skipped.
    """

    output: Path
    """File to write (its suffix is its format), or folder. Inputs are never overwritten."""
    model: Path | None = None
    """Model file: model.safetensors of a run; "compact" (the default) or "compact-free", the models in the package."""
    image: Path | None = None
    """The composite picture."""
    mask: Path | None = None
    """Its mask: white is foreground, black is background, grey blends (docs/masks.md). A cut-out's mask has its
    size; the mask of an edit, if not given, is found where the two pictures differ."""
    foreground: Path | None = None
    """A cut-out, with transparency or with --mask; it is laid on --background."""
    background: Path | None = None
    """The picture that --foreground is laid on."""
    at: str | None = None
    """X,Y: where the cut-out's upper left corner lies in the background, in pixels (--at=-9,5 if negative). If not
    given, the cut-out lies in the middle."""
    scale: float = 1.0
    """The cut-out's sides are multiplied by this first."""
    linear_light: bool = False
    """Blend the cut-out's edges in linear light instead of sRGB values."""
    before: Path | None = None
    """The picture before an edit; outside of the mask the output is this one."""
    after: Path | None = None
    """The edited picture, of the same size."""
    layer: bool = False
    """Write the recoloured foreground alone, as RGBA of the whole picture's size, for an editor (one picture only)."""
    strength: float = 1.0
    """Share of the change that is applied, from 0 to 1."""
    keep: Keep | None = None
    """luma: keep each pixel's brightness and change its colour only; colour: the other way round."""
    grow_mask: int = 0
    """Pixels by which the mask grows to each side; a negative number shrinks it."""
    images: Path | None = None
    """Folder of composite pictures."""
    masks: Path | None = None
    """Folder of their masks."""
    alpha_mask: bool = False
    """Each composite's own alpha channel is its mask; --mask or --masks is left out."""
    invert_mask: bool = False
    """Swap foreground and background."""
    fit_mask: bool = False
    """Resize a mask of another size to its picture's, and say so, instead of refusing it. The mask of a picture that
    lies on its side in its file is turned, too."""
    format: Literal["same", "png", "jpg", "tif", "webp", "avif", "heic"] = "same"
    """Format of the files written to a folder; "same" is each picture's own."""
    working_size: int | None = None
    """Long side in pixels at which the network works; if not given, its training size."""
    native: bool = False
    """Work at the picture's own size; memory grows with the number of pixels."""
    max_megapixels: float = 250
    """Larger files are refused before they are decoded; each megapixel takes about 28 MB."""
    overwrite: bool = False
    """In a folder: harmonize again what is there already. One picture's output is always replaced."""
    workers: int | None = None
    """In a folder: processes, one thread each; if not given, one per core, none on a GPU. 0 works in this one."""
    report: Path | None = None
    """In a folder: write what became of each picture to this file; if not given, OUTPUT/report.json."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    strip: Path | None = None
    """Write a before / after strip to this picture file (a composite only)."""
    real: Path | None = None
    """The real picture, as the last one of the strip."""


WAYS = "--image and --mask, --foreground and --background, --before and --after, or --images"


def command(arguments: list[str]) -> int:
    options = parse(HarmonizeOptions, arguments, "scsco harmonize")
    place = _check_harmonized(options)
    settings = _settings(options)
    check_backend()
    if options.images is not None:
        return _harmonize_folder(options, options.images, settings)
    _harmonize_one(options, place, settings)
    print(f"wrote {options.output}")
    if options.strip is not None and options.image is not None:
        from scsco_fast.harmonizing.files import write_file_strip

        write_file_strip(options.strip, options.image, options.output, options.real)
        print(f"wrote {options.strip}")
    return 0


def _check_harmonized(options: HarmonizeOptions) -> tuple[int, int] | None:
    """The place of a cut-out, if it is given; ScscoError for options that do not go together."""
    one, folder = options.image is not None, options.images is not None
    cut_out, edit = options.foreground is not None, options.before is not None
    if one + folder + cut_out + edit != 1:
        raise ScscoError(f"wanted either {WAYS} (see scsco harmonize --help)")
    if cut_out != (options.background is not None):
        raise ScscoError("--foreground is laid on --background; give both")
    if edit != (options.after is not None):
        raise ScscoError("--before and --after are a picture and the same one edited; give both")
    if (options.masks is not None and not folder) or (options.mask is not None and folder):
        raise ScscoError("--mask is of one picture, --masks a folder beside --images (see scsco harmonize --help)")
    if options.alpha_mask and (options.mask is not None or options.masks is not None or cut_out or edit):
        raise ScscoError("--alpha-mask takes a composite's own alpha channel; leave --mask and --masks out")
    if one and options.mask is None and not options.alpha_mask:
        raise ScscoError(
            f"{options.image}: no mask; wanted either --image and --mask (white is foreground), or --alpha-mask"
        )
    if not cut_out and (options.at is not None or options.scale != 1 or options.linear_light):
        raise ScscoError("--at, --scale and --linear-light place a cut-out; give --foreground and --background")
    if options.native and options.working_size is not None:
        raise ScscoError("--native is the picture's own size; leave --working-size out")
    if not 0 < options.max_megapixels <= 1e5:
        raise ScscoError(f"--max-megapixels is {options.max_megapixels:g}; wanted more than 0, at most 100000")
    if not folder and options.format != "same":
        raise ScscoError("--format is for a folder; the suffix of --output decides the format of one picture")
    if not folder and (options.overwrite or options.workers is not None or options.report is not None):
        raise ScscoError("--overwrite, --workers and --report are for a folder; leave them out for one picture")
    if folder and options.layer:
        raise ScscoError("--layer is for one picture; leave it out with --images")
    if not one and (options.strip is not None or options.real is not None):
        raise ScscoError("--strip and --real are for one composite, --image; leave them out")
    if options.layer and options.strip is not None:
        raise ScscoError("--strip shows the harmonized picture and --layer writes the foreground alone; choose one")
    if options.real is not None and options.strip is None:
        raise ScscoError("--real is shown in the strip only; give --strip FILE too")
    if options.workers is not None and options.workers < 0:
        raise ScscoError(f"--workers is {options.workers}; wanted 0 or more")
    for path in (options.image, options.mask, options.real, options.output):
        if options.strip is not None and path is not None and is_same_path(options.strip, path):
            raise ScscoError(f"{options.strip}: the strip would overwrite {path}; name another file")
    place = None if options.at is None else _place(options.at)
    if not folder:
        options_of_suffix(options.output)  # refuses what is no format of a picture
    return place


def _place(text: str) -> tuple[int, int]:
    numbers = [part.strip() for part in text.split(",")]
    try:
        x, y = (int(number) for number in numbers)
    except ValueError:
        raise ScscoError(
            f"--at is {text!r}; wanted two whole numbers, such as 120,40 (x from the left, y down)"
        ) from None
    return x, y


def _harmonize_one(options: HarmonizeOptions, place: tuple[int, int] | None, settings: Settings) -> None:
    from scsco_fast.harmonizing.files import harmonize_cutout_file, harmonize_edit_file, harmonize_file

    model = read_model(options.model, options.device)
    last = options.mask, options.output, model, settings
    if options.image is not None:
        harmonize_file(options.image, *last, layer=options.layer)
    elif options.foreground is not None and options.background is not None:
        placed: dict[str, Any] = {"at": place, "scale": options.scale, "linear_light": options.linear_light}
        harmonize_cutout_file(options.foreground, options.background, *last, layer=options.layer, **placed)
    elif options.before is not None and options.after is not None:
        harmonize_edit_file(options.before, options.after, *last, layer=options.layer)


def _settings(options: HarmonizeOptions) -> Settings:
    return Settings(
        options.working_size,
        native=options.native,
        strength=options.strength,
        keep=options.keep,
        grow_mask=options.grow_mask,
        invert_mask=options.invert_mask,
        fit_mask=options.fit_mask,
        max_pixels=round(options.max_megapixels * 1e6),
    )


def _harmonize_folder(options: HarmonizeOptions, images: Path, settings: Settings) -> int:
    from scsco_fast.harmonizing.folders import REPORT, Entry, harmonize_folder

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
            settings,
            suffix=None if options.format == "same" else f".{options.format}",
            alpha_mask=options.alpha_mask,
            overwrite=options.overwrite,
            workers=worker_count(options.workers) if on_cpu or options.workers is not None else 0,
            report=options.report,
            progress=show,
        )
    skipped = f"{len(report.skipped)} there already (--overwrite does them again), " if report.skipped else ""
    others = f", {len(report.ignored)} other files left alone" if report.ignored else ""
    print(f"{len(report.written)} harmonized, {skipped}{len(report.failed)} failed{others}")
    print(f"wrote {printable(str(options.report or options.output / REPORT))}")
    return 1 if report.failed else 0
