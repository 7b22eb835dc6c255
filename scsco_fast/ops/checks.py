"""Checks that the operations share: each error names the argument, what was given and what was wanted."""

import torch
from torch import Tensor

from scsco_fast.eager.dtypes import accumulate_dtype
from scsco_fast.regions import RegionLevel, Regions, level_of

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_map(name: str, tensor: Tensor, dims: int = 4) -> None:
    """A floating tensor (B, C, H, W), or (B, J, C, H, W) with dims=5; C, H and W must not be 0."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}")
    wanted = "(B, C, H, W)" if dims == 4 else "(B, J, C, H, W)"
    if tensor.dim() != dims or 0 in tensor.shape[-3:]:
        raise ValueError(f"{name} must have shape {wanted} with C, H, W > 0, got {tuple(tensor.shape)}")


def check_same(name: str, got: object, other: str, wanted: object) -> None:
    """A property that must agree with another argument's."""
    if got != wanted:
        raise ValueError(f"{name} must agree with {other}: got {got}, wanted {wanted}")


def check_device(name: str, tensor: Tensor, other: str, wanted: torch.device) -> None:
    if tensor.device != wanted:
        raise ValueError(f"{name} is on {tensor.device}, {other} on {wanted}: move one of them")


def check_regions(regions_or_mask: Regions | RegionLevel | Tensor, features: Tensor) -> RegionLevel:
    """The regions at the size of `features`, of the same batch and on the same device."""
    level = level_of(regions_or_mask, features.shape[-2], features.shape[-1])
    check_same("the mask's batch", level.foreground.shape[0], "the features'", features.shape[0])
    check_device("the mask", level.foreground, "the features are", features.device)
    return level


def check_affine(
    features: Tensor,
    fg_weight: Tensor | None,
    fg_bias: Tensor | None,
    bg_weight: Tensor | None,
    bg_bias: Tensor | None,
) -> Tensor:
    """Gains and offsets (C,) of both regions as one tensor (4, C), float32 or wider; None becomes 1 or 0."""
    given = {"fg_weight": fg_weight, "fg_bias": fg_bias, "bg_weight": bg_weight, "bg_bias": bg_bias}
    channels, present = features.shape[1], [parameter for parameter in given.values() if parameter is not None]
    dtype = accumulate_dtype(features, *present)
    if not present:
        affine = features.new_ones((4, channels), dtype=dtype)
        affine[1::2].zero_()  # and not = 0, which under torch.compile is a copy of a constant on the CPU
        return affine
    rows = []
    for name, parameter in given.items():
        if parameter is None:
            parameter = features.new_full((channels,), float("weight" in name), dtype=dtype)
        check_same(f"the shape of {name}", tuple(parameter.shape), "the features' channels", (channels,))
        check_device(name, parameter, "the features are", features.device)
        rows.append(parameter.to(dtype))
    return torch.stack(rows)
