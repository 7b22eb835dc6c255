"""How one composite is made: draw a region, a family and a reference until the recoloured region breaks no rule."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from scsco_fast.data.images import save_image
from scsco_fast.data.photos import Photo, name_hash

# Not `ops.transfer_color`: the first call of a registered operation imports torch._dynamo, in every process.
from scsco_fast.eager import transfer_color
from scsco_fast.synthesis.distribution_transfer import distribution_transfer
from scsco_fast.synthesis.journal import COMPOSITES, MASKS, REALS, STATE
from scsco_fast.synthesis.photographs import Source, load_inspected, region_of
from scsco_fast.synthesis.realism import broken_rule, measure
from scsco_fast.system.files import replacing

TRIES = 48
REFERENCES = 32  # drawn, to choose one from
MEAN_DISTANCES = (5.0, 20.0)  # CIE76, between the mean colours of a region and its reference

# Family to its source.
FAMILIES = {
    "reinhard": "Reinhard, Ashikhmin, Gooch, Shirley, Color transfer between images (2001), in CIE Lab",
    "gaussian": "Pitie, Kokaram, The linear Monge-Kantorovitch linear colour mapping (2007): covariance in RGB",
    "histogram": "Fecker, Barkowsky, Kaup, Histogram-based prefiltering for luminance and chrominance (2008)",
    "distribution": "Pitie, Kokaram, Dahyot, N-dimensional probability density function transfer (2005)",
}


def recolour(pixels: np.ndarray, examples: np.ndarray, family: str) -> np.ndarray:
    """(n, 3) uint8 colours with the statistics of `examples` (m, 3) uint8 that the family transfers.

    Examples:
        >>> recolour(np.full((9, 3), 10, np.uint8), np.full((9, 3), 200, np.uint8), "distribution").mean()
        np.float64(200.0)
    """
    own, wanted = (np.ascontiguousarray(each.T, dtype=np.float32) / 255 for each in (pixels, examples))
    if family == "distribution":
        moved = distribution_transfer(own, wanted)
    else:
        source, reference = (torch.from_numpy(each)[None, :, None] for each in (own, wanted))  # (1, 3, 1, n)
        inside, there = (torch.ones_like(rows[:, :1], dtype=torch.bool) for rows in (source, reference))
        moved = transfer_color.forward(source, reference, inside, there, family)[0, :, 0].numpy()
    return np.rint(moved * 255).astype(np.uint8).T


class Run(NamedTuple):
    """What every composite of a data set is made with."""

    folder: Path
    digests: dict[str, str]  # of each identity
    seed: int
    suffix: str
    quality: int
    longest: int


def make_composite(run: Run, source: Source, photo: Photo, moments: np.ndarray, number: int) -> dict[str, Any]:
    """Draw until no rule is broken, and write the composite; the record names no files if it was given up.

    Args:
        run: what all composites are made with.
        source: the photograph's file.
        photo: the photograph and its regions.
        moments: (candidates, 6), colours of each region: CIE Lab means and deviations.
        number: of the composite among those of the photograph.
    """
    rng = np.random.default_rng((run.seed, name_hash(source.name), number))
    family = list(FAMILIES)[rng.integers(len(FAMILIES))]
    record = {"identity": source.identity, "photograph": source.name, "family": family}
    rejected: Counter[str] = Counter()
    for _ in range(TRIES):
        region = int(rng.integers(len(photo.candidates)))
        reference = _draw_reference(run, source.identity, moments[region], rng)
        mask = region_of(photo, region)
        if not mask.any():  # too thin to outlast the smoothing
            rejected["foreground below"] += 1
            continue
        composite = photo.rgb.copy()
        composite[mask] = recolour(photo.rgb[mask], reference.colours, family)
        measures = measure(photo.rgb, composite, mask)
        broken = broken_rule(measures)
        if broken is None:
            files = _write_pictures(run, f"{source.identity}_{region + 1}_{number + 1}", photo, mask, composite)
            drawn = {"region": region + 1, "reference": reference.identity, "reference_part": reference.part}
            return record | drawn | {"rejected": rejected, "files": files, "measures": dataclasses.asdict(measures)}
        rejected[broken] += 1
    return record | {"rejected": rejected, "files": {}}


class _Reference(NamedTuple):
    identity: str
    part: str
    colours: np.ndarray  # (m, 3) uint8


def _draw_reference(run: Run, own: str, moments: np.ndarray, rng: np.random.Generator) -> _Reference:
    """Of some random regions of other photographs, and of what lies around them, the one that fits best."""
    others = [identity for identity in run.digests if identity != own]
    distance = rng.uniform(*MEAN_DISTANCES)
    drawn = []
    for _ in range(REFERENCES):
        identity = others[rng.integers(len(others))]
        _, theirs = load_inspected(run.folder / STATE, identity, run.digests[identity])
        region, within = int(rng.integers(len(theirs))), int(rng.random() < 0.5)
        mean, deviation = np.linalg.norm((theirs[region, within] - moments).reshape(2, 3), axis=1)
        miss = float(abs(mean - distance) + deviation)
        drawn.append((np.inf if np.isnan(miss) else miss, identity, region, within))
    _, identity, region, within = min(drawn)
    photo, _ = load_inspected(run.folder / STATE, identity, run.digests[identity])
    part = f"{'region' if within else 'around region'} {region + 1}"
    return _Reference(identity, part, photo.rgb[region_of(photo, region) == within])


def _write_pictures(run: Run, stem: str, photo: Photo, mask: np.ndarray, composite: np.ndarray) -> dict[str, str]:
    """Write composite, mask and real picture, and return their names, by folder."""
    identity, region, _ = stem.split("_")
    pictures = {
        REALS: (f"{identity}{run.suffix}", photo.rgb),
        MASKS: (f"{identity}_{region}.png", mask.astype(np.uint8) * 255),
        COMPOSITES: (f"{stem}{run.suffix}", composite),
    }
    for place, (name, picture) in pictures.items():
        path = run.folder / place / name
        if place != COMPOSITES and path.exists():  # the same bytes for every composite of the photograph
            continue
        with replacing(path) as temporary:
            # PNG's writer ignores both.
            save_image(Image.fromarray(picture), temporary, quality=run.quality, subsampling=0)
    return {place: name for place, (name, _) in pictures.items()}
