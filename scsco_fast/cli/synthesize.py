"""`scsco synthesize`: a data set out of photographs."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scsco_fast.cli.parsing import parse
from scsco_fast.cli.shared import printable, progress_bar, worker_count


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


def command(arguments: list[str]) -> int:
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--photos", *arguments]
    options = parse(SynthesizeOptions, arguments, "scsco synthesize")
    from scsco_fast.synthesis import synthesize

    with progress_bar("synthesizing") as progress:
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
            workers=worker_count(options.workers),
            progress=progress,
        )
    for family, counts in result.families.items():
        broken = ", ".join(f"{rule} {count}" for rule, count in counts.items() if rule != "kept") or "no rule"
        print(f"{family}: {counts['kept']} kept, {result.acceptance(family):.0%} of the tries; broken: {broken}")
    for reason in result.unusable.values():
        print(f"scsco: failed: {printable(reason)}", file=sys.stderr)
    print(
        f"{result.folder}: {result.made} composites, {result.given_up} given up, {len(result.unusable)} files unusable"
    )
    return 1 if result.given_up or result.unusable else 0
