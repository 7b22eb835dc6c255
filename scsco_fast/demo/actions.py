"""What the page's buttons do, without gradio."""

import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scsco_fast.data.images import image_to_tensor, read_picture
from scsco_fast.data.photos import shrink
from scsco_fast.data.salient import Saliency, object_mask
from scsco_fast.demo.attention import attention_picture, middle
from scsco_fast.demo.jobs import Job, cutout_alpha
from scsco_fast.demo.painting import painting_value
from scsco_fast.demo.previews import PREVIEW, resized
from scsco_fast.demo.requests import FIND, KEEP, Request, RequestReader
from scsco_fast.demo.stage import stage_value
from scsco_fast.errors import ScscoError
from scsco_fast.harmonizing.pictures import UnchangedWarning
from scsco_fast.harmonizing.recolour import predict, recolour
from scsco_fast.harmonizing.settings import Settings
from scsco_fast.nn.attention_maps import attention_maps
from scsco_fast.nn.unet import HarmonizationUNet
from scsco_fast.regions import THRESHOLD

Previews = tuple[np.ndarray, np.ndarray]  # before and after, (h, w, 3) uint8 each


@dataclass(frozen=True)
class Shown:
    """What a visitor sees, for another strength of it and for the attention of the point that is clicked next.

    Attributes:
        job: what was harmonized into `result`.
        result: the file to download, in a folder of its own.
        preview: (h, w, 3) uint8, the composite at most `PREVIEW` pixels long.
        weight: (h, w) float32 in [0, 1], its foreground.
        coefficients: what the network does to the preview's colours, of `predict`.
        composite, mask: (1, 3, H, W) and (1, 1, H, W), what the network sees: at its working size.
        point: row and column in the preview.
    """

    job: Job
    result: Path
    preview: np.ndarray
    weight: np.ndarray
    coefficients: Tensor
    composite: Tensor
    mask: Tensor
    point: tuple[int, int]

    @property
    def inside(self) -> np.ndarray:
        """(h, w) bool, the preview's foreground."""
        return self.weight > THRESHOLD


class Actions:
    """What the page's buttons do.

    Args:
        results: folder to keep results in.
        max_megapixels: larger pictures are refused.
        warn: shows a warning.
        saliency: finds the most striking object of a picture; None where that is not offered.
    """

    def __init__(
        self,
        model: HarmonizationUNet,
        results: Path,
        max_megapixels: float,
        warn: Callable[[str], None],
        saliency: Saliency | None = None,
    ) -> None:
        self.model, self.results, self.warn, self.saliency = model, results, warn, saliency
        self.reader = RequestReader(max_megapixels)

    def canvas(self, image: str | None, source: str) -> dict[str, Any] | None:
        """The picture as what is painted over, or nothing; painted already, where its object is to be found."""
        if image is None:
            return None
        self.reader.check_pixels(image)
        preview = shrink(read_picture(image).rgb, PREVIEW)
        if source != FIND or self.saliency is None:
            return painting_value(preview)
        found = self.saliency(preview)
        if object_mask(found) is None:
            self.warn("no object stands out clearly; look at what was found, and mend it with brush and eraser")
        return painting_value(preview, found)

    def stage(self, request: Request) -> dict[str, Any] | None:
        """Cut-out and background as what is dragged, or nothing while one of them is missing."""
        if request.image is None or request.under is None:
            return None
        for path in (request.image, request.under):
            self.reader.check_pixels(path)
        settings = self.reader.settings(request, 1, next(iter(KEEP)))
        front = read_picture(request.image)
        with tempfile.TemporaryDirectory(dir=self._made()) as folder:
            mask = self.reader.mask(request, Path(request.image), Path(folder)) if request.has_mask else None
            alpha = cutout_alpha(front, mask, settings)
        return stage_value(front.rgb, alpha, read_picture(request.under).rgb)

    def run(
        self, request: Request, strength: float, keep: str, level: str | None, before: Shown | None
    ) -> tuple[Shown, Previews, np.ndarray | None]:
        """Harmonize: what is shown, the previews before and after, and the attention of the foreground's middle."""
        folder = Path(tempfile.mkdtemp(dir=self._made()))
        try:
            job = self.reader.job(request, strength, keep, folder)
            result = folder / f"{job.image.stem}_harmonized.png"
            self._write(job, result)
            now = self._shown(job, result)
            picture, _ = self.look(now, level, None)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        forget(before)
        return now, _previews(now), picture

    def adjusted(self, now: Shown, strength: float, keep: str) -> Previews:
        """The previews with another strength, or with something else kept; nothing is predicted again."""
        settings = Settings(strength=strength, keep=KEEP[keep])
        return now.preview, recolour(now.preview, now.weight, now.coefficients, settings)

    def finish(self, now: Shown, strength: float, keep: str) -> tuple[Shown, Previews]:
        """What `adjusted` shows, at full size in the place of the result."""
        job = replace(now.job, settings=replace(now.job.settings, strength=strength, keep=KEEP[keep]))
        if job != now.job:
            self._write(job, now.result, UnchangedWarning)  # the others were shown before
            now = replace(now, job=job)
        return now, _previews(now)

    def layer(self, now: Shown) -> Path | None:
        """The recoloured foreground alone, RGBA, as a file beside the result; None where there cannot be one."""
        path = now.result.with_name(f"{now.job.image.stem}_layer.png")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # they were shown when the picture was made
                now.job.write(self.model, path, layer=True)
        except ScscoError as error:
            self.warn(f"there is no layer: {error}")
            return None
        return path

    def look(
        self, now: Shown | None, level: str | None, at: tuple[int, int] | None
    ) -> tuple[np.ndarray | None, Shown | None]:
        """The attention map of a point (x, y) of the preview, drawn over it; without a point, of the last one."""
        if now is None or level is None:
            return None, now
        if at is not None:
            x, y = (min(max(int(value), 0), side - 1) for value, side in zip(at, now.inside.shape[::-1], strict=True))
            if not now.inside[y, x]:
                raise ScscoError("that point is background; click one of the foreground, inside of the outline")
            now = replace(now, point=(y, x))
        height, width = now.composite.shape[-2:]
        row, column = now.point
        wanted = torch.tensor([[row * height // now.inside.shape[0], column * width // now.inside.shape[1]]])
        device = next(self.model.parameters()).device
        maps = attention_maps(self.model, now.composite.to(device), now.mask.to(device), wanted.to(device))
        return attention_picture(now.preview, now.inside, maps[level][0].cpu().numpy(), now.point), now

    def _write(self, job: Job, result: Path, shown: type[Warning] = UserWarning) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", shown)
            job.write(self.model, result)
        for warning in caught:
            self.warn(str(warning.message))

    def _shown(self, job: Job, result: Path) -> Shown:
        rgb, weight, valid = job.scene()
        preview, small = shrink(rgb, PREVIEW), shrink(rgb, self.model.working_size)
        size = preview.shape[0], preview.shape[1]
        reduced = resized(weight, size)
        visible = None if valid is None else resized(valid, size) > THRESHOLD
        coefficients = predict(preview, reduced, visible, self.model, Settings())
        seen = torch.from_numpy(resized(weight, (small.shape[0], small.shape[1])) > THRESHOLD)[None, None].float()
        point = middle(reduced > THRESHOLD)
        return Shown(job, result, preview, reduced, coefficients, image_to_tensor(small)[None], seen, point)

    def _made(self) -> Path:
        self.results.mkdir(parents=True, exist_ok=True)
        return self.results


def forget(shown: Shown | None) -> None:
    """Delete the result; gradio serves, and deletes, copies of its own."""
    if shown is not None:
        shutil.rmtree(shown.result.parent, ignore_errors=True)


def _previews(now: Shown) -> Previews:
    return now.preview, shrink(read_picture(now.result).rgb, PREVIEW)
