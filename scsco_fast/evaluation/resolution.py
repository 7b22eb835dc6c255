"""The resolution at which a model is scored: a square of a fixed side, or each picture's own."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from scsco_fast.architecture import WORKING_SIZE
from scsco_fast.harmonizing.masks import CoverageWarning
from scsco_fast.harmonizing.pictures import UnchangedWarning, harmonize
from scsco_fast.nn.unet import HarmonizationUNet

Resolution = int | Literal["full"]
"""Side of square pictures in pixels, or each picture's own size."""


def default_resolution(model: HarmonizationUNet | None) -> int:
    """The side in pixels at which a model's figures compare with others.

    That is 256, the size at which the field compares, unless the model was trained at another one. An affine head's
    own size is only that of its transform, so such a model is scored at 256 too.

    Examples:
        >>> default_resolution(None)
        256
    """
    return WORKING_SIZE if model is None or model.head == "affine" else model.working_size


def at_full_resolution(model: HarmonizationUNet) -> Callable[[Tensor, Tensor], Tensor]:
    """The model as `scsco_fast.harmonize` applies it: to pictures of any size, while it works at its own.

    `evaluate` calls a network at the size of the pictures. On pictures larger than those that it was trained on that is
    another model than the one that users of `harmonize` see; this is theirs. The pixels outside of the mask stay.

    Returns:
        A function of composites (B, 3, H, W) in [0, 1] and masks (B, 1, H, W) that returns pictures (B, 3, H, W). The
        network runs on the device where it is, and the result is on that of the composites. Warnings about a picture's
        foreground are not given: it is a data set's, and is what it is.

    Examples:
        >>> from scsco_fast.data import Sample
        >>> from scsco_fast.evaluation import evaluate
        >>> model = HarmonizationUNet(base_channels=4, levels=5).eval()
        >>> real, mask = torch.rand(3, 40, 30), torch.zeros(1, 40, 30)
        >>> mask[:, 5:25, 5:25] = 1
        >>> sample = Sample((real + 0.2 * mask).clamp(0, 1), real, mask, "one", "mine")
        >>> evaluate(at_full_resolution(model), [sample]).title()
        '1 pictures, protocol strict, full resolution'

        >>> from scsco_fast.evaluation import load_dataset
        >>> dataset = load_dataset("iHarmony4", resolution="full")  # doctest: +SKIP
        >>> evaluate(at_full_resolution(model), dataset).improvement()  # doctest: +SKIP
    """

    def apply(composites: Tensor, masks: Tensor) -> Tensor:
        with warnings.catch_warnings():
            for category in (CoverageWarning, UnchangedWarning):
                warnings.simplefilter("ignore", category)
            changed = [
                harmonize(picture.permute(1, 2, 0).contiguous().numpy(), mask[0].numpy(), model)
                for picture, mask in zip(composites.cpu(), masks.cpu(), strict=True)
            ]
        return torch.stack([torch.from_numpy(pixels).permute(2, 0, 1) for pixels in changed]).to(composites)

    return apply
