"""Dynamic negatives of the style contrastive loss: the composite, and recolourings of the real foreground."""

from typing import NamedTuple

import torch
from torch import Tensor

from scsco_fast.ops.transfer_color import TRANSFERS, transfer_color
from scsco_fast.photometric import apply_curve, draw_curves
from scsco_fast.regions import THRESHOLD

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

    Each recolouring is drawn from `RECOLOURINGS`: colour transfer (`scsco_fast.ops.transfer_color`) from the
    foreground of another image of the batch, from the image's own background where the batch has one image, or a
    random photometric curve. Everything is computed on the images' device; what is drawn comes from a generator on the
    host, so one seed gives the same negatives on every device and the host never waits.

    Args:
        real, composite: (B, 3, H, W) in [0, 1].
        mask: (B, 1, H, W) in [0, 1], above 0.5 = foreground.
        count: K >= 1.
        generator: on the CPU; None: torch's default one.
        whole: the batch that these images are a part of; from generators of one state, parts get the negatives that
            they would have in the whole. None: they are the whole.

    Returns:
        (B, K, 3, H, W) in [0, 1]; outside the mask the recolourings are `real`, bit for bit.

    Raises:
        ValueError: count below 1, or shapes that do not belong together.

    Source: SCS-Co's "multiple, dynamically generated" negatives; the families are this project's choice.

    Example:
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
    negatives = [composite, *(_recolour(real, mask, whole, generator) for _ in range(count - 1))]
    return torch.stack(negatives, dim=1)


def _recolour(real: Tensor, mask: Tensor, whole: WholeBatch, generator: torch.Generator | None) -> Tensor:
    kind = RECOLOURINGS[int(torch.randint(len(RECOLOURINGS), (), generator=generator))]
    rows, batch = slice(whole.first, whole.first + real.shape[0]), whole.real.shape[0]
    if kind == "curve":
        curves = draw_curves(batch, generator)[rows]
        return torch.where(mask > THRESHOLD, apply_curve(real, curves), real)
    if batch == 1:
        return transfer_color(real, real, kind, mask, reference_mask=1 - mask)
    shift = int(torch.randint(1, batch, (), generator=generator))
    references, reference_masks = (images.roll(shift, 0)[rows] for images in (whole.real, whole.mask))
    return transfer_color(real, references, kind, mask, reference_mask=reference_masks)
