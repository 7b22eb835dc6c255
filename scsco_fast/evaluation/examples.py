"""Pictures of a few samples, with what a model makes of them: as one strip, or as files in a folder."""

import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from scsco_fast.data.images import save_image, tensor_to_image
from scsco_fast.data.samples import BadSample, Sample
from scsco_fast.data.strips import write_strip
from scsco_fast.nn.unet import HarmonizationUNet
from scsco_fast.system.files import replacing
from scsco_fast.system.locks import writing


def write_examples(
    model: HarmonizationUNet | None,
    dataset: Dataset[Sample | BadSample],
    *,
    strip: str | os.PathLike[str] | None = None,
    folder: str | os.PathLike[str] | None = None,
    count: int = 6,
) -> None:
    """Write the first usable samples of a data set, beside the model's output for each.

    Args:
        model: without one there is no output among the pictures.
        dataset: with pictures of one size, because a strip has columns.
        strip: picture file for mask / before / after / real, one row for each sample.
        folder: for 00_mask.png, 00_composite.png, 00_output.png, 00_real.png, 01_mask.png and so on.
        count: how many samples.

    Raises:
        ScscoError: a file cannot be written, or another process is writing to the folder.

    Examples:
        >>> real, mask = torch.rand(3, 16, 16), torch.zeros(1, 16, 16)
        >>> sample = Sample(real, real, mask, "one", "synthetic")
        >>> write_examples(None, [sample], folder="examples")
        >>> sorted(path.name for path in Path("examples").iterdir())
        ['00_composite.png', '00_mask.png', '00_real.png']
    """
    if strip is None and folder is None:
        return
    rows, labels = sample_rows(model, dataset, count), sample_labels(model)
    if strip is not None:
        write_strip(rows, labels, Path(strip))
    if folder is not None:
        with writing(folder):
            write_samples(rows, labels, Path(folder))


def sample_rows(
    model: HarmonizationUNet | None, dataset: Dataset[Sample | BadSample], count: int
) -> list[list[np.ndarray]]:
    """Mask, composite, output and real picture of the first `count` usable samples; without a model no output."""
    samples = (dataset[index] for index in range(len(dataset)))  # type: ignore[arg-type]
    good = islice((sample for sample in samples if isinstance(sample, Sample)), count)
    return [_row(model, sample) for sample in good]


def write_samples(rows: Sequence[Sequence[np.ndarray]], labels: Sequence[str], folder: str | Path) -> None:
    """Write the pictures of `sample_rows` as 00_composite.png, 00_mask.png, 00_output.png, 00_real.png and so on."""
    names = {"before": "composite", "after": "output"}
    for index, row in enumerate(rows):
        for label, picture in zip(labels, row, strict=True):
            with replacing(Path(folder) / f"{index:02d}_{names.get(label, label)}.png") as temporary:
                save_image(Image.fromarray(picture), temporary)


def _row(model: HarmonizationUNet | None, sample: Sample) -> list[np.ndarray]:
    output = [] if model is None else [_output(model, sample)]
    mask = sample.mask.expand(3, -1, -1)
    return [tensor_to_image(picture) for picture in (mask, sample.composite, *output, sample.real)]


def sample_labels(model: HarmonizationUNet | None) -> list[str]:
    """The labels of `sample_rows`."""
    return ["mask", "before", *([] if model is None else ["after"]), "real"]


def _output(model: HarmonizationUNet, sample: Sample) -> torch.Tensor:
    device = next(model.parameters()).device
    with torch.inference_mode():
        return model(sample.composite[None].to(device), sample.mask[None].to(device))[0]
