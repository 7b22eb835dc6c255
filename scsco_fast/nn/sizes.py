"""Sizes that a network can work at: pictures are reduced to its working size, and padded to what its levels divide."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from scsco_fast.regions import THRESHOLD

# A reduced pixel is foreground where more than this of it is. An edge through its middle is a tie, which rounding must
# not decide: it would be another one on another machine, all along the edge.
MAJORITY = THRESHOLD + 1e-5


def exporting() -> bool:
    """Whether `torch.export` is tracing, in its mode that is not strict, for a graph that cannot decide on a size.

    torch 2.10 and 2.11 answer yes to `is_exporting` in what `torch.compile` traces too.
    """
    return torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()


def reduced_size(size: Sequence[int], longest: int) -> tuple[int, int]:
    """Height and width with the longer side reduced to `longest` pixels; a smaller size stays as it is."""
    if max(size) <= longest:
        return size[0], size[1]
    scale = longest / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def shrink(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) at a smaller height and width, bilinear and antialiased.

    Examples:
        >>> column = torch.arange(300.0).reshape(1, 1, 300, 1)
        >>> bool((shrink(column, (50, 1)).mean() - column.mean()).abs() < 0.1)
        True
    """
    if tuple(x.shape[-2:]) == size:
        return x
    if size[1] == 1 and size[0] != x.shape[2]:
        # Columns one pixel wide come out wrong (torch 2.13 on a CPU, means off by a half): they are made two wide.
        narrow = shrink(x, (x.shape[2], 1))
        return shrink(narrow.expand(-1, -1, -1, 2), (size[0], 2))[..., :1]
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=True)


def reduce_inputs(
    composite: Tensor, mask: Tensor, valid: Tensor | None, size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Composite, foreground and valid pixels (0 or 1) of a smaller size, in the composite's dtype."""
    planes = torch.cat([composite, mask.to(composite.dtype)], dim=1).to(
        torch.promote_types(composite.dtype, torch.float32)
    )
    if valid is not None:
        known = valid > THRESHOLD
        planes = torch.cat([torch.where(known, planes, 0), known.to(planes.dtype)], dim=1)
    planes = shrink(planes, size)
    colour, covered = planes[:, :3], planes[:, 3:4]
    share = torch.ones_like(covered) if valid is None else planes[:, 4:]
    region = covered > MAJORITY * share
    vanished = ~region.flatten(1).any(dim=1)[:, None, None, None]
    region = region | (vanished & (covered > 0))
    colour = colour / share.clamp_min(1e-6)
    usable = None if valid is None else ((share >= THRESHOLD) | region).to(composite.dtype)
    return colour.to(composite.dtype), region.to(composite.dtype), usable


def pad_inputs(
    composite: Tensor, mask: Tensor, valid: Tensor | None, multiple: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Replicate the composite to the right and below; what is added is not valid, and what is not valid is black."""
    if valid is not None:
        composite = torch.where(valid > THRESHOLD, composite, 0)
    if exporting():
        return _pad_any(composite, mask, valid, multiple)
    bottom, right = -composite.shape[-2] % multiple, -composite.shape[-1] % multiple
    if not bottom and not right:
        return composite, mask, valid
    margin = (0, right, 0, bottom)
    known = F.pad(torch.ones_like(mask) if valid is None else valid, margin)
    return F.pad(composite, margin, mode="replicate"), F.pad(mask, margin), known


def _pad_any(composite: Tensor, mask: Tensor, valid: Tensor | None, multiple: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same without a decision on the size, so that one exported graph holds for all; `valid` is never None."""
    height, width = composite.shape[-2:]
    rows, columns = (
        torch.arange((side + multiple - 1) // multiple * multiple, device=mask.device) for side in (height, width)
    )
    inside = (rows < height)[:, None] & (columns < width)  # (H', W')
    row, column = rows.clamp(max=height - 1), columns.clamp(max=width - 1)
    image, foreground, known = (
        x.index_select(2, row).index_select(3, column)
        for x in (composite, mask, torch.ones_like(mask) if valid is None else valid)
    )
    return image, foreground * inside, known * inside


def crop(x: Tensor, height: int, width: int) -> Tensor:
    if not exporting():
        return x[..., :height, :width]
    # A slice would ask whether it is shorter than x.
    rows, columns = (torch.arange(side, device=x.device) for side in (height, width))
    return x.index_select(2, rows).index_select(3, columns)
