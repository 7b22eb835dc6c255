"""Which background a foreground point takes its colours from: single rows of BAIN's attention."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from scsco_fast.nn.norm import BAIN
from scsco_fast.nn.unet import HarmonizationUNet
from scsco_fast.ops import region_norm
from scsco_fast.regions import THRESHOLD, RegionLevel, Regions, level_of


@torch.no_grad()
def attention_map(bain: BAIN, x: Tensor, mask: Regions | RegionLevel | Tensor, points: Tensor) -> Tensor:
    """The attention of one foreground pixel of each image: A_ij = softmax_j(scale * q_i . k_j), j over the background.

    One row per image, so memory is linear in the number of pixels.

    Args:
        bain: the norm.
        x: (B, C, H, W), what it is given.
        mask: what it is given: `Regions`, one level of them, or (B, 1, H', W').
        points: (B, 2) int64, row and column of i at the resolution of x.

    Returns:
        (B, H, W) float32: sums to 1 over the background, 0 elsewhere; all 0 in an image without background.

    Examples:
        >>> import torch, scsco_fast as sf
        >>> x, mask = torch.randn(1, 8, 6, 6), torch.zeros(1, 1, 6, 6)
        >>> mask[..., :3] = 1
        >>> rows = attention_map(sf.BAIN(8), x, mask, torch.tensor([[2, 1]]))
        >>> rows.shape, round(float(rows.sum()), 4), float(rows[..., :3].sum())
        (torch.Size([1, 6, 6]), 1.0, 0.0)
    """
    level = level_of(mask, x.shape[-2], x.shape[-1])
    normalised = region_norm(x, level, eps=bain.eps, adapt=False)
    query, key, scale = bain.logit_operands(normalised)
    query, key = query.float(), key.float()
    chosen = query[torch.arange(len(x), device=x.device), :, points[:, 0], points[:, 1]]  # (B, D)
    logits = scale * torch.einsum("bd,bdhw->bhw", chosen, key)
    background = level.background.squeeze(1)
    logits = torch.where(background, logits, -torch.inf).flatten(1)
    weights = torch.where(background.flatten(1).any(1, keepdim=True), torch.softmax(logits, dim=1), 0)
    return weights.reshape_as(background)


@torch.no_grad()
def attention_maps(model: nn.Module, composite: Tensor, mask: Tensor, points: Tensor) -> dict[str, Tensor]:
    """`attention_map` of every BAIN in a network, by the module's name, in the order in which they are computed.

    Args:
        model: called as `model(composite, mask)`.
        composite, mask: (B, 3, H, W) and (B, 1, H, W).
        points: (B, 2) int64, row and column in the pictures; at a coarser level, the foreground pixel next to it.

    Returns:
        (B, h, w) per BAIN, at its own resolution.

    Examples:
        >>> import torch, scsco_fast as sf
        >>> model = sf.HarmonizationUNet(base_channels=4, levels=5).eval()
        >>> composite, mask = torch.rand(1, 3, 32, 32), torch.zeros(1, 1, 32, 32)
        >>> mask[..., 8:24, 8:24] = 1
        >>> maps = attention_maps(model, composite, mask, foreground_points(mask))
        >>> maps["norm.3"].shape, maps["norm.0"].shape
        (torch.Size([1, 2, 2]), torch.Size([1, 16, 16]))
    """
    found: dict[str, Tensor] = {}
    size = (composite.shape[-2], composite.shape[-1])
    seen = shown = size  # of the network's padded input, and of what in it shows the picture
    if isinstance(model, HarmonizationUNet):
        shown = model.inner_size(size)
        multiple = 2**model.levels
        seen = (-(-shown[0] // multiple) * multiple, -(-shown[1] // multiple) * multiple)

    def note(bain: BAIN, inputs: tuple[Any, ...], name: str) -> None:
        x, regions = inputs
        level = level_of(regions, x.shape[-2], x.shape[-1])
        numerators = [part * side for part, side in zip(x.shape[-2:], shown, strict=True)]
        denominators = [whole * side for whole, side in zip(size, seen, strict=True)]
        wanted = points * points.new_tensor(numerators) // points.new_tensor(denominators)
        found[name] = attention_map(bain, x, level, _nearest(level.foreground, wanted))

    hooks = [
        module.register_forward_pre_hook(partial(note, name=name))
        for name, module in model.named_modules()
        if isinstance(module, BAIN)
    ]
    try:
        model(composite, mask)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def foreground_points(mask: Tensor) -> Tensor:
    """(B, 2) int64: the foreground pixel next to each mask's centre of mass; of masks (B, 1, H, W)."""
    foreground = mask > THRESHOLD
    rows, columns = (torch.arange(side, device=mask.device).float() for side in mask.shape[-2:])
    weights = foreground.squeeze(1).float()
    total = weights.sum((1, 2)).clamp_min(1)
    centre = torch.stack([(weights.sum(2) @ rows) / total, (weights.sum(1) @ columns) / total], dim=1)
    return _nearest(foreground, centre.round().long())


def _nearest(foreground: Tensor, points: Tensor) -> Tensor:
    """The foreground pixel (B, 2) nearest to each point; the point itself where there is none."""
    height, width = foreground.shape[-2:]
    rows, columns = torch.arange(height, device=points.device), torch.arange(width, device=points.device)
    distance = (rows[:, None] - points[:, 0, None, None]) ** 2 + (columns - points[:, 1, None, None]) ** 2  # (B, H, W)
    distance = torch.where(foreground.squeeze(1), distance, distance + 4 * (height**2 + width**2))
    place = distance.flatten(1).argmin(1)
    return torch.stack([place // width, place % width], dim=1)
