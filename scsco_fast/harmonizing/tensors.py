"""Batches of pictures as tensors: each is harmonized by itself, and layout, type and device stay as they are."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from scsco_fast.errors import ScscoError

_INTEGERS = (torch.uint8, torch.bool)


def each_picture(images: Tensor, masks: object, harmonize: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Tensor:
    """`harmonize(picture (H, W, 3), mask (H, W))` of each picture of a batch; layout, type and device stay.

    Args:
        images: (B, 3, H, W) or (B, H, W, 3), uint8 or floating in [0, 1]. A batch that could be either is refused.
        masks: a tensor (B, H, W), (B, 1, H, W), (B, H, W, 1) or (H, W); a batch of 1 belongs to every picture.

    Raises:
        ScscoError: another shape or type, or a number of masks that is neither 1 nor that of the pictures.

    Examples:
        >>> batch, mask = torch.zeros(2, 8, 6, 3), torch.ones(8, 6)
        >>> each_picture(batch, mask, lambda picture, mask: picture + mask[..., None]).mean()
        tensor(1.)
    """
    channels = _channel_axis(images)
    if not isinstance(masks, Tensor):
        raise ScscoError(f"the pictures are a tensor and the mask is {type(masks).__name__}; give a tensor (B, H, W)")
    if not (images.is_floating_point() or images.dtype == torch.uint8):
        raise ScscoError(f"the pictures are a tensor of {images.dtype}; wanted uint8 or floating in [0, 1]")
    pictures = _numbers(images).movedim(channels, -1)  # (B, H, W, 3)
    flat = _flat(masks, pictures.shape[1:3])
    if len(flat) not in (1, len(pictures)):
        raise ScscoError(f"there are {len(flat)} masks for {len(pictures)} pictures; give one for each, or one for all")
    given = _numbers(flat).expand(len(pictures), -1, -1)
    done = [harmonize(picture.numpy(), mask.numpy()) for picture, mask in zip(pictures, given, strict=True)]
    if not done:
        return images.clone()
    result = torch.from_numpy(np.stack(done)).movedim(-1, channels)
    return result.to(images.device, images.dtype).contiguous()


def _channel_axis(images: Tensor) -> int:
    axes = [axis for axis in (1, 3) if images.dim() == 4 and images.shape[axis] == 3]
    if len(axes) == 1:
        return axes[0]
    reason = "could be either" if axes else "is neither"
    raise ScscoError(
        f"the pictures are a tensor of shape {tuple(images.shape)}, which {reason} of (B, 3, H, W) and (B, H, W, 3)"
        + ("; harmonize its pictures as arrays" if axes else "; give a batch of RGB pictures")
    )


def _flat(masks: Tensor, size: torch.Size) -> Tensor:
    """(B, H, W)."""
    shape = tuple(masks.shape)
    if masks.dim() == 2:
        masks = masks[None]
    elif masks.dim() == 4 and masks.shape[1] == 1 and masks.shape[2:] == size:
        masks = masks[:, 0]
    elif masks.dim() == 4 and masks.shape[3] == 1:
        masks = masks[..., 0]
    if masks.dim() != 3 or masks.shape[1:] != size:
        raise ScscoError(
            f"the mask is a tensor of shape {shape}; wanted (B, H, W), (B, 1, H, W) or (B, H, W, 1) with H, W = "
            f"{size[0]}, {size[1]}"
        )
    return masks


def _numbers(values: Tensor) -> Tensor:
    """On the CPU, and of a type that numpy has: bfloat16 and float16 become float32, which holds them exactly."""
    values = values.detach().cpu()
    return values if values.dtype in (*_INTEGERS, torch.float32, torch.float64) else values.float()
