"""Random crops and flips of a batch, on the device that the batch is on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def crop_and_flip(pictures: Tensor, masks: Tensor, boxes: Tensor, flips: Tensor) -> tuple[Tensor, Tensor]:
    """Cut a box out of each picture and mask, enlarge it to the full size, and flip some of them.

    Pictures are sampled bilinearly, clamped to the box: up to rounding what PIL's bilinear filter makes of the cut
    picture, as long as the box is not larger than the output. Masks are sampled at the nearest pixel, as PIL does.
    Every sample is a function of its own row alone; the host does not wait for the device.

    Args:
        pictures: (B, C, H, W) float.
        masks: (B, 1, H, W) of any type.
        boxes: (B, 4) integers: left, top, right, bottom.
        flips: (B,) bool: turn left and right.

    Returns:
        Both in their shapes and types.

    Examples:
        >>> pictures, masks = torch.rand(2, 3, 8, 8), torch.ones(2, 1, 8, 8)
        >>> boxes = torch.tensor([[0, 0, 8, 8], [1, 0, 7, 7]])
        >>> whole, _ = crop_and_flip(pictures, masks, boxes, torch.tensor([True, False]))
        >>> torch.allclose(whole[0], pictures[0].flip(2), atol=1e-5)
        True
    """
    height, width = pictures.shape[2:]
    left, top, right, bottom = boxes.to(torch.float64).unbind(1)  # (B,)
    columns = _centres(left, right, width)  # (B, W): where each output pixel's centre lies, in input pixels
    columns = torch.where(flips[:, None], columns.flip(1), columns)
    rows = _centres(top, bottom, height)  # (B, H)

    batch = torch.arange(len(masks), device=masks.device)[:, None, None]
    nearest = masks[batch, :, rows.floor().long()[:, :, None], columns.floor().long()[:, None, :]]  # (B, H, W, 1)

    # Samples beyond the centres of the box's outer pixels take these pixels, as if the box were the whole picture.
    columns = columns.clamp(left[:, None] + 0.5, right[:, None] - 0.5)
    rows = rows.clamp(top[:, None] + 0.5, bottom[:, None] - 0.5)
    grid = torch.stack(
        [
            (columns * (2 / width) - 1)[:, None, :].expand(-1, height, -1),
            (rows * (2 / height) - 1)[:, :, None].expand(-1, -1, width),
        ],
        dim=3,
    )  # (B, H, W, 2)
    cut = F.grid_sample(pictures, grid.to(pictures.dtype), mode="bilinear", padding_mode="border", align_corners=False)
    return cut, nearest.permute(0, 3, 1, 2).contiguous()


def boxes_in_crops(found: Tensor, boxes: Tensor, flips: Tensor, height: int, width: int) -> Tensor:
    """Where boxes of a picture lie after `crop_and_flip`, rounded outwards by a pixel: devices round alike only nearly.

    Args:
        found: (B, 4) integers, top, left, bottom, right, one past the last; of pictures of `height` x `width`.
        boxes, flips: as for `crop_and_flip`.

    Returns:
        (B, 4) int64 in the order of `found`; 0, 0, 0, 0 where nothing of the box is left.

    Examples:
        >>> found = torch.tensor([[2, 0, 4, 4]])
        >>> boxes_in_crops(found, torch.tensor([[0, 0, 4, 4]]), torch.tensor([True]), 8, 8).tolist()
        [[3, 0, 8, 8]]
    """
    top, left, bottom, right = found.to(torch.float64).unbind(1)
    edges = []
    for first, after, start, end, side in (
        (top, bottom, boxes[:, 1], boxes[:, 3], height),
        (left, right, boxes[:, 0], boxes[:, 2], width),
    ):
        scale = side / (end - start)
        low = ((first - start) * scale).floor() - 1
        high = ((after - start) * scale).ceil() + 1
        edges.append((low.clamp(0, side), high.clamp(0, side)))
    (top, bottom), (left, right) = edges
    left, right = torch.where(flips, width - right, left), torch.where(flips, width - left, right)
    left_over = (top < bottom) & (left < right) & (found[:, 0] < found[:, 2])
    return (torch.stack([top, left, bottom, right], dim=1) * left_over[:, None]).long()


def _centres(start: Tensor, end: Tensor, count: int) -> Tensor:
    """(B, count): centres of `count` equal parts of each interval."""
    steps = (torch.arange(count, device=start.device, dtype=start.dtype) + 0.5) / count
    return start[:, None] + (end - start)[:, None] * steps
