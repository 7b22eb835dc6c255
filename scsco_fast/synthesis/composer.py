"""Composites made in batches on one device, where the photographs lie as small pictures (`store`).

`scsco_fast.synthesis.synthetic` draws one composite at a time with numpy; here a whole batch is cropped, varied,
recoloured and spoilt together, without a step for which the host waits, so that a GPU makes its own composites
and a CPU makes several times as many.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scsco_fast.data.ahead import ahead
from scsco_fast.data.samples import Batch
from scsco_fast.ops._transfer_color import TRANSFERS, transfer_color
from scsco_fast.reference.color import LUMA
from scsco_fast.synthesis.jpeg import jpeg_like
from scsco_fast.synthesis.store import FOREGROUND_RANGE, REGIONS, Store, colour_moments
from scsco_fast.system.devices import may_read_values

PART = 16  # composites made together
UNCHANGED = 0.15
REGION = 0.5  # foregrounds that are regions; the others are objects, which differ more from what is around them
# The first of each part are transferred, a third by each of TRANSFERS; the others go through retouching curves alone.
TRANSFERRED = 0.45
AS_TAKEN = 0.3  # real pictures that stay as the camera made them; with more, photographs are known by heart

# Share of each neighbour in a 3x3 blur, as reducing a picture leaves one. Without it a network reads outlines that are
# sharper than those of real composites: such a network's foreground MSE on twelve real ones was 1,363, and 1,167 where
# the same change was made anew at the 96 pixels of its training.
MOST_BLUR = 0.28
MOST_ASPECT = 0.11  # log of a crop's stretch: 11 % in width and in height
# Mean squared error of the foreground, 0-255 scale; real composites reach 10,044, and the mean of 36 is 2,297.
FMSE_RANGE = (300.0, 16_000.0)
RESIZED = 0.7  # share of the changes that are brought to a log-uniform size of this range
MOST_STRETCH = 3.0  # of a change
STRENGTHS = (1.5, 6.0)  # of retouching curves, log-uniform
# Share of the changes that lead away from the background's colours. Changes drawn at random lead towards them: what
# is bright can only be darkened, and most references lie nearer to the average. On 36 real composites the luma that is
# missing correlates 0.80 with (background - foreground); without these choices 0.54, with them 0.70.
AWAY = 0.9
ALIKE = 0.7  # share of the foregrounds that are the one of two that differs less from its surroundings
MEAN_DISTANCES = (12.0, 80.0)  # CIE Lab, of the reference's mean colour from the foreground's; log-uniform
REFERENCES = 24  # regions of which the most similar one lends its colours
REFERENCE_SIDE = 48


def compose(store: Store, batch_size: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Composites and real pictures (B, 3, S, S) and masks (B, 1, S, S), drawn by a generator on the store's device."""
    draw = _Draw(generator, batch_size, store.pictures.device)
    photo = draw.integers(len(store.pictures))
    chosen = _foreground(store, photo, draw)
    real, soft = _cut(store, photo, chosen, size, draw)
    real = _vary(real, draw)
    inside = soft > 0.5
    recoloured = _recolour(real, inside, store, photo, draw)
    composite = _blend(real, recoloured, soft, inside, draw)
    share = draw.uniform(0, MOST_BLUR)
    composite, real = _soften(composite, share), _soften(real, share)
    composite = _spoil(composite, draw)
    mask = _misjudge(soft, draw)
    return composite, real, mask


def _foreground(store: Store, photo: Tensor, draw: _Draw) -> Tensor:
    """Numbers of masks, one for each photograph."""
    own = store.first[photo, None] + (draw.uniform(0, 1, 2) * store.counts[photo, None]).long()
    region = len(store.owner) + REGIONS * photo[:, None] + draw.integers(REGIONS, 2)
    either = torch.where(draw.uniform(0, 1, 2) < REGION, region, own)
    foreground, rest = store.moments[either].unbind(2)
    alike = (foreground - rest)[..., :3].norm(dim=2).argmin(dim=1)
    return either.gather(1, torch.where(draw.uniform(0, 1) < ALIKE, alike, 0)[:, None])[:, 0]


class ComposedComposites:
    """The batches of a run: a resumed run sees what it would have seen, however many processes share a batch.

    A batch is made in parts of `PART` composites. Part i of step t depends on (seed, t, i) alone, and a process makes
    only the parts that it has rows of.

    Args:
        store: photographs on the device where the batches are wanted.
        size: side of the square composites in pixels.
        batch_size: composites in a batch.
        seed: not negative.

    Examples:
        >>> from scsco_fast.data.photos import Photo
        >>> from scsco_fast.synthesis.store import build_store
        >>> square = np.pad(np.ones((24, 24), np.uint16), 20)
        >>> photo = Photo("square", np.repeat(50 + 150 * square[:, :, None], 3, 2).astype(np.uint8), square, ((1,),))
        >>> composites = ComposedComposites(build_store([photo], 32), size=32, batch_size=4, seed=0)
        >>> batch = composites.batch(7)
        >>> batch.composite.shape, bool((batch.composite == composites.batch(7).composite).all())
        (torch.Size([4, 3, 32, 32]), True)
    """

    def __init__(self, store: Store, size: int, batch_size: int, seed: int) -> None:
        self.store, self.size, self.batch_size, self.seed = store, size, batch_size, seed

    def __len__(self) -> int:
        """Number of foregrounds; of composites there is no end."""
        return len(self.store.masks)

    def batch(self, step: int, rows: range | None = None) -> Batch:
        """The composites of one step, or those of a range of its rows."""
        rows = range(self.batch_size) if rows is None else rows
        parts = range(rows.start // PART, (rows.stop - 1) // PART + 1)
        made = [self._part(step, part) for part in parts]
        inside = slice(rows.start - parts.start * PART, rows.stop - parts.start * PART)
        composite, real, mask = (torch.cat([part[place] for part in made])[inside] for place in range(3))
        names = [f"composite {row} of step {step + 1}" for row in rows]
        return Batch(composite, real, mask, names, ["synthetic"] * len(names), [])

    def _part(self, step: int, part: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator(self.store.pictures.device)
        generator.manual_seed(int(np.random.SeedSequence((self.seed, step, part)).generate_state(1)[0]))
        return compose(self.store, PART, self.size, generator)

    def batches(self, steps: Iterable[int], rows: range, threaded: bool = False) -> Iterator[Batch]:
        """The same rows of each step's batch, made by a thread that stays ahead if `threaded`."""

        def make(step: int) -> Batch:
            return self.batch(step, rows)

        return ahead(make, steps) if threaded else map(make, steps)


class _Draw:
    """Random numbers for each sample of a batch, (B,) or (B, n), on one device."""

    def __init__(self, generator: torch.Generator, batch: int, device: torch.device) -> None:
        self.generator, self.batch, self.device = generator, batch, device

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        values = torch.rand(self.batch, *shape, generator=self.generator, device=self.device)
        return low + (high - low) * values

    def normal(self, deviation: float, *shape: int) -> Tensor:
        return deviation * torch.randn(self.batch, *shape, generator=self.generator, device=self.device)

    def log_uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return torch.exp(self.uniform(float(np.log(low)), float(np.log(high)), *shape))

    def integers(self, below: int, *shape: int) -> Tensor:
        return (self.uniform(0, 1, *shape) * below).long().clamp(max=below - 1)

    def happens(self, share: float) -> Tensor:
        """(B, 1, 1, 1) bool."""
        return (self.uniform(0, 1) < share)[:, None, None, None]


def _column(values: Tensor) -> Tensor:
    """(B,) or (B, n) to (B, 1 or n, 1, 1)."""
    return (values if values.dim() == 2 else values[:, None])[:, :, None, None]


def _cut(store: Store, photo: Tensor, chosen: Tensor, size: int, draw: _Draw) -> tuple[Tensor, Tensor]:
    """Crops (B, 3, size, size) in [0, 1], and masks (B, 1, size, size) in [0, 1]; flipped at random."""
    box, area = store.boxes[chosen], store.areas[chosen]
    middle = (box[:, :2] + box[:, 2:]) / 2
    share = draw.log_uniform(*FOREGROUND_RANGE)
    least = min(1.0, 0.75 * size / store.pictures.shape[-1])
    aspect = torch.exp(draw.uniform(-MOST_ASPECT, MOST_ASPECT))
    extent = ((area / share).sqrt()[:, None] * torch.stack([aspect, 1 / aspect], dim=1)).clamp(least, 1.0)
    start = (middle - extent * draw.uniform(0.25, 0.75, 2)).clamp(min=0)
    start = torch.minimum(start, 1 - extent)
    flip = torch.where(draw.uniform(0, 1) < 0.5, -1.0, 1.0)
    # grid_sample's coordinates are -1 to 1 from edge to edge.
    centre = 2 * (start + extent / 2) - 1
    theta = torch.zeros(draw.batch, 2, 3, device=draw.device)
    theta[:, 0, 0], theta[:, 1, 1] = extent[:, 0] * flip, extent[:, 1]
    theta[:, :, 2] = centre
    grid = F.affine_grid(theta, [draw.batch, 3, size, size], align_corners=False)
    pixels = torch.cat([store.pictures[photo], store.masks[chosen]], dim=1).float()
    cut = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False) / 255
    return cut[:, :3].contiguous(), cut[:, 3:].contiguous()


def _vary(real: Tensor, draw: _Draw) -> Tensor:
    """Some real pictures as taken, the others as another camera or hour would show the same scene."""
    varied = _retouch(real, draw, 0.6)
    return torch.where(draw.happens(AS_TAKEN), real, varied)


def _retouch(rgb: Tensor, draw: _Draw, strength: Tensor | float, rows: slice = slice(None)) -> Tensor:
    """Global curves of a retoucher, each with its own chance, in [0, 1]; of `rows` alone, though drawn for all.

    Exposure by stops and white balance in linear light, gamma, contrast, saturation, split tones, lifted blacks and
    lowered whites.
    """

    def on(share: float) -> Tensor:
        return (draw.uniform(0, 1) < share)[:, None].float()

    def column(values: Tensor) -> Tensor:
        return _column(values[rows])

    stops = strength * draw.normal(0.7, 1) * on(0.7)
    temperature, tint = strength * draw.normal(0.22, 1) * on(0.5), strength * draw.normal(0.08, 1) * on(0.5)
    gains = stops * float(np.log(2)) + torch.cat([temperature, tint, -temperature], dim=1)
    linear = rgb[rows].clamp(0, 1).pow(2.2) * column(gains.exp())
    # A shoulder above 0.8, as of film, for half of them: highlights are compressed, not cut. tanh(x) is
    # 2 sigmoid(2 x) - 1, which takes a fifth of its time on a CPU.
    rolled = torch.where(linear > 0.8, 0.6 + 0.4 * torch.sigmoid((linear - 0.8) * 10), linear)
    linear = torch.where(column(on(0.5)) > 0, rolled, linear)
    gamma = torch.exp(strength * draw.normal(0.3, 1) * on(0.5))
    x = linear.clamp(1e-5, 1).pow(column(gamma / 2.2))
    contrast = torch.exp((strength * draw.normal(0.3, 1) + strength * draw.normal(0.06, 3)) * on(0.6))
    pivot = torch.logit(column(draw.uniform(0.25, 0.7, 1)))
    x = torch.sigmoid(column(contrast) * (torch.logit(x, 1e-4) - pivot) + pivot)
    luma = (x * _luma(x.device)).sum(1, keepdim=True)
    saturation = torch.exp(strength * draw.normal(0.3, 1) * on(0.6))
    x = luma + (x - luma) * column(saturation)
    shadows, lights = strength * draw.normal(0.05, 3) * on(0.25), strength * draw.normal(0.05, 3) * on(0.25)
    x = x + (1 - luma) ** 2 * column(shadows) + luma**2 * column(lights)
    low, high = (strength * draw.normal(0.05, 1)).abs() * on(0.3), (strength * draw.normal(0.05, 1)).abs() * on(0.3)
    return (column(low) + column(1 - low - high) * x).clamp(0, 1)


def _recolour(real: Tensor, inside: Tensor, store: Store, photo: Tensor, draw: _Draw) -> Tensor:
    """The recoloured picture (inside the mask it counts): transfers at the batch's front, curves behind."""
    moments = colour_moments(real, inside)
    wanted = torch.where(draw.uniform(0, 1) < AWAY, 1.0, -1.0)
    number = int(TRANSFERRED * draw.batch) // len(TRANSFERS)
    front, rest = slice(0, len(TRANSFERS) * number), slice(len(TRANSFERS) * number, None)
    curved = _curved(real, inside, wanted, draw, rest)
    reference, where = _similar(store, photo, moments, wanted, draw)
    amount, again = _column(draw.uniform(0.5, 1.0)), draw.happens(0.3)
    parts = []
    for index, method in enumerate(TRANSFERS):
        rows = slice(index * number, (index + 1) * number)
        moved = transfer_color(real[rows], reference[rows], method, inside[rows].float(), reference_mask=where[rows])
        parts.append(torch.lerp(real[rows], moved, amount[rows]))
    transferred = torch.cat(parts)
    mild = _retouch(transferred, draw, 0.6, front)
    return torch.cat([torch.where(again[front], mild, transferred), curved])


def _curved(real: Tensor, inside: Tensor, wanted: Tensor, draw: _Draw, rows: slice) -> Tensor:
    """Of two retouched pictures the one whose foreground leads more in the wanted direction, of `rows`; see `AWAY`."""
    strength = draw.log_uniform(*STRENGTHS, 1)
    one, other = _retouch(real, draw, strength, rows), _retouch(real, draw, strength, rows)
    real, inside = real[rows], inside[rows]
    before, behind = _mean(real, inside), _mean(real, ~inside)
    leads = [F.cosine_similarity(_mean(picture, inside) - before, before - behind) for picture in (one, other)]
    return torch.where((wanted[rows] * (leads[0] - leads[1]) > 0)[:, None, None, None], one, other)


def _mean(pictures: Tensor, inside: Tensor) -> Tensor:
    """(B, 3)."""
    return (pictures * inside).sum(dim=(2, 3)) / inside.sum(dim=(2, 3)).clamp(min=1)


def _similar(store: Store, photo: Tensor, moments: Tensor, wanted: Tensor, draw: _Draw) -> tuple[Tensor, Tensor]:
    """For each foreground a region of another photograph with similar contrast, at a distance in mean that is drawn.

    It leads in the wanted direction, `AWAY`, if one of those that are looked at does.
    """
    others = draw.integers(len(store.owner), REFERENCES)
    part = draw.integers(2, REFERENCES)
    own, behind = moments[:, None, 0], moments[:, None, 1]
    theirs = store.moments[others, part]
    mean = (theirs[..., :3] - own[..., :3]).norm(dim=2)
    deviation = (theirs[..., 3:] - own[..., 3:]).norm(dim=2)
    miss = (mean - draw.log_uniform(*MEAN_DISTANCES, 1)).abs() + deviation
    leads = ((theirs - own) * (own - behind))[..., :3].sum(dim=2) * wanted[:, None]
    miss = miss + 1e4 * (store.owner[others] == photo[:, None]) + 1e3 * (leads < 0)
    best = miss.argmin(dim=1, keepdim=True)
    mask, part = others.gather(1, best)[:, 0], part.gather(1, best)[:, 0]
    pixels = torch.cat([store.pictures[store.owner[mask]], store.masks[mask]], dim=1)
    step = max(1, pixels.shape[-1] // REFERENCE_SIDE)
    small = pixels[:, :, ::step, ::step].float() / 255
    inside = small[:, 3:] > 0.5
    return small[:, :3], torch.where(_column(part) == 0, inside, ~inside).float()


def _blend(real: Tensor, recoloured: Tensor, soft: Tensor, inside: Tensor, draw: _Draw) -> Tensor:
    """The composite: the change shrunk to a drawn size, along a soft outline; no change at all for some."""
    change = recoloured - real
    area = inside.sum(dim=(1, 2, 3)).clamp(min=1)
    error = (change.square() * inside).sum(dim=(1, 2, 3)) / (3 * area) * 255**2
    # Some keep the size that they came out with; one that is too large is shrunk to a size of its own, as a clamp would
    # pile them up at the limit. The others get a log-uniform size, which curves and transfers alone seldom reach.
    own = torch.where(error > FMSE_RANGE[1], FMSE_RANGE[1] * draw.uniform(0.25, 1), error)
    wanted = torch.where(draw.uniform(0, 1) < RESIZED, draw.log_uniform(*FMSE_RANGE), own)
    change = change * _column((wanted / error.clamp(min=1e-6)).sqrt().clamp(max=MOST_STRETCH))
    change = torch.where(draw.happens(UNCHANGED), 0, change)
    return (real + change * soft).clamp(0, 1)


def _soften(pictures: Tensor, share: Tensor) -> Tensor:
    """Blurred by (share, 1 - 2 share, share) in both directions, a share for each picture."""
    side = _column(share)
    padded = F.pad(pictures, (1, 1, 1, 1), mode="replicate")
    rows = padded[:, :, 1:-1] + side * (padded[:, :, :-2] + padded[:, :, 2:] - 2 * padded[:, :, 1:-1])
    return rows[..., 1:-1] + side * (rows[..., :-2] + rows[..., 2:] - 2 * rows[..., 1:-1])


def _misjudge(soft: Tensor, draw: _Draw) -> Tensor:
    """The mask as the network gets it: exact for most, a pixel too large or too small for some."""
    sign = torch.where(draw.happens(0.5), 1.0, -1.0)  # the smallest of some values is minus the largest of minus them
    wrong = sign * F.max_pool2d(sign * soft, 3, stride=1, padding=1)
    mask = (torch.where(draw.happens(0.25), wrong, soft) > 0.5).float()
    return mask


def _spoil(composite: Tensor, draw: _Draw) -> Tensor:
    """What happens to files: resized and compressed after the compositing."""
    composite = _of_some(draw.happens(0.1), _resize_twice, composite)
    scale = draw.uniform(0.1, 1.2)
    composite = _of_some(draw.happens(0.3), jpeg_like, composite, scale)
    return (composite * 255).round() / 255


def _resize_twice(rgb: Tensor) -> Tensor:
    small = F.interpolate(rgb, scale_factor=0.7, mode="bilinear", antialias=True)
    return F.interpolate(small, size=rgb.shape[-2:], mode="bilinear", align_corners=False)


def _of_some(chosen: Tensor, change: Callable[..., Tensor], pictures: Tensor, *values: Tensor) -> Tensor:
    """`change(pictures, *values)` of the chosen ones (B, 1, 1, 1), the others as they are.

    Where the host would have to wait to learn which are chosen, all are changed.
    """
    if not may_read_values(pictures):
        return torch.where(chosen, change(pictures, *values), pictures)
    rows = chosen.flatten().nonzero()[:, 0]
    if len(rows) == 0:
        return pictures
    return pictures.index_copy(0, rows, change(pictures[rows], *(value[rows] for value in values)))


@functools.cache
def _luma(device: torch.device) -> Tensor:
    """(3, 1, 1), copied to the device once: a copy from ordinary memory in every step would make the host wait."""
    return torch.tensor(LUMA)[:, None, None].to(device)
