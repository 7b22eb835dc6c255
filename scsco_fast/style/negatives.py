"""Dynamic negatives of the style contrastive loss: the composite, and recolourings of the real foreground."""

from typing import NamedTuple

import torch
from torch import Tensor

from scsco_fast.ops._transfer_color import TRANSFERS, transfer_color
from scsco_fast.regions import THRESHOLD
from scsco_fast.style.photometric import apply_curve, draw_curves

RECOLOURINGS = (*TRANSFERS, "curve")


class WholeBatch(NamedTuple):
    """The batch that some images are a part of, where several processes or passes share one.

    Attributes:
        real: (G, 3, H, W), every real image of the batch.
        mask: (G, 1, H, W), their masks.
        first: the images are the rows `first`, `first` + 1, ... of it.
    """

    real: Tensor
    mask: Tensor
    first: int


@torch.no_grad()
def make_negatives(
    real: Tensor,
    composite: Tensor,
    mask: Tensor,
    count: int,
    generator: torch.Generator | None = None,
    whole: WholeBatch | None = None,
) -> Tensor:
    """`count` negatives per image: the composite, then count - 1 recolourings of the real foreground on the real
    background.

    Each image has its own draw: a family of `RECOLOURINGS`, which is colour transfer
    (`scsco_fast.ops.transfer_color`) from the foreground of another image of the batch, from the image's own background
    where the batch has one image, or a random photometric curve. An image has no family twice before it has each once,
    and over the batch the families' numbers differ by at most one, so that their shapes hardly change.

    Everything is computed on the images' device, one batched call for each family; what is drawn comes from a generator
    on the host, so one seed gives the same negatives on every device, and the host never waits.

    Args:
        real, composite: (B, 3, H, W) in [0, 1].
        mask: (B, 1, H, W) in [0, 1], above 0.5 = foreground.
        count: K >= 1.
        generator: on the CPU; None: torch's default one.
        whole: the batch that these images are a part of; from generators of one state, parts get the negatives that
            they would have in the whole. None: they are the whole.

    Returns:
        (B, K, 3, H, W) in [0, 1], in the dtype of real; outside the mask the recolourings are `real`, bit for bit.

    Raises:
        ValueError: count below 1, or shapes that do not belong together.

    Source: SCS-Co's "multiple, dynamically generated" negatives; the families are this project's choice.

    Examples:
        >>> import torch, scsco_fast as sf
        >>> real, mask = torch.rand(2, 3, 16, 16), torch.zeros(2, 1, 16, 16)
        >>> mask[..., :8] = 1
        >>> sf.make_negatives(real, real * 0.8, mask, 3, torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3, 3, 16, 16])
    """
    if count < 1:
        raise ValueError(f"count must be at least 1 (the composite), got {count}")
    if real.shape != composite.shape:
        raise ValueError(f"composite must have the shape of real {tuple(real.shape)}, got {tuple(composite.shape)}")
    whole = WholeBatch(real, mask, 0) if whole is None else whole
    rows = slice(whole.first, whole.first + real.shape[0])
    # Drawn for the whole batch, so that a part of it has what it would have there.
    families, others, curves = (drawn[rows] for drawn in _draw(whole.real.shape[0], count - 1, generator))
    negatives = real.new_empty((real.shape[0], count, *real.shape[1:]))
    negatives[:, 0] = composite
    for index, family in enumerate(RECOLOURINGS):
        image, number = (families == index).nonzero(as_tuple=True)  # all on the host
        if len(image) > 0:
            own, other, place, curve = (
                drawn.to(real.device, non_blocking=True)
                for drawn in (image, others[image, number], image * count + number + 1, curves[image, number])
            )
            source, inside = real.index_select(0, own), mask.index_select(0, own)
            made = _recolour(source, inside, whole, other, curve, family)
            negatives.flatten(0, 1).index_copy_(0, place, made)
    return negatives


def _draw(batch: int, number: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
    """For each image and recolouring (B, K - 1): the family's index, the index of another image, and a curve (6)."""
    families = torch.randperm(len(RECOLOURINGS), generator=generator)
    first = torch.randperm(batch, generator=generator) * number  # dealt in turn to the images in random order
    dealt = families[(first[:, None] + torch.arange(number)) % len(RECOLOURINGS)]
    shifts = torch.randint(1, max(batch, 2), (batch, number), generator=generator)
    curves = draw_curves(batch * number, generator).unflatten(0, (batch, number))
    return dealt, (torch.arange(batch)[:, None] + shifts) % batch, curves


def _recolour(source: Tensor, inside: Tensor, whole: WholeBatch, other: Tensor, curves: Tensor, family: str) -> Tensor:
    if family == "curve":
        return torch.where(inside > THRESHOLD, apply_curve(source, curves), source)
    if whole.real.shape[0] == 1:
        return transfer_color(source, source, family, inside, reference_mask=1 - inside)
    reference, there = whole.real.index_select(0, other), whole.mask.index_select(0, other)
    return transfer_color(source, reference, family, inside, reference_mask=there)
