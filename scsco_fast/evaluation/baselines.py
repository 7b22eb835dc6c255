"""Harmonization without a network: the foreground's colours are moved towards the background's, channel by channel.

They need no training, so a trained network is worth its price only where it comes closer to the real picture.

Notation, for each picture and each channel on its own: x is a foreground pixel, mu_f and sigma_f are the mean and the
standard deviation (the root of the mean squared deviation) of the foreground, mu_b and sigma_b those of the background.
Foreground is where the mask is above 0.5, as for the network.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from scsco_fast.errors import ScscoError
from scsco_fast.regions import THRESHOLD

Baseline = Callable[[Tensor, Tensor], Tensor]

# A quarter of an 8-bit level. A foreground that is flatter is scaled as if it had this deviation, so that the rounding
# of a picture of one colour is not blown up to the background's deviation.
FLATTEST = 1e-3


def half_mean(composite: Tensor, mask: Tensor) -> Tensor:
    """Foreground moved half-way to the background's mean: x + (mu_b - mu_f) / 2, clamped to [0, 1].

    Args:
        composite: (B, 3, H, W) floating in [0, 1].
        mask: (B, 1, H, W) bool or floating in [0, 1]; the result is blended with it, as the network's output is.

    Returns:
        (B, 3, H, W) in [0, 1], in the composite's dtype. Pixels where the mask is 0 keep their exact values. A picture
        without foreground or without background comes back as it is.

    Raises:
        ScscoError: shapes that do not belong together.

    Examples:
        >>> composite, mask = torch.full((1, 3, 2, 2), 0.25), torch.zeros(1, 1, 2, 2)
        >>> composite[..., 0], mask[..., 0] = 0.75, 1
        >>> half_mean(composite, mask)[0, 0].tolist()
        [[0.5, 0.25], [0.5, 0.25]]
    """
    return _moved(composite, mask, 0.5, scale=False)


def full_mean(composite: Tensor, mask: Tensor) -> Tensor:
    """Foreground moved to the background's mean: x + mu_b - mu_f, clamped to [0, 1].

    Args, Returns, Raises: as of `half_mean`.

    Examples:
        >>> composite, mask = torch.full((1, 3, 2, 2), 0.25), torch.zeros(1, 1, 2, 2)
        >>> composite[..., 0], mask[..., 0] = 0.75, 1
        >>> full_mean(composite, mask)[0, 0].tolist()
        [[0.25, 0.25], [0.25, 0.25]]
    """
    return _moved(composite, mask, 1.0, scale=False)


def half_statistics(composite: Tensor, mask: Tensor) -> Tensor:
    """Foreground moved half-way to the background's mean and deviation.

        (x + (x - mu_f) sigma_b / sigma_f + mu_b) / 2, clamped to [0, 1]

    This is half-way between the composite and `full_statistics` before that is clamped. The foreground gets the mean
    (mu_f + mu_b) / 2 and the deviation (sigma_f + sigma_b) / 2.

    Args, Returns, Raises: as of `half_mean`.

    Examples:
        >>> composite = torch.tensor([0.25, 0.75, 0.5, 0.5]).expand(1, 3, 1, 4)
        >>> mask = torch.tensor([1.0, 1.0, 0.0, 0.0]).reshape(1, 1, 1, 4)
        >>> half_statistics(composite, mask)[0, 0].tolist()
        [[0.375, 0.625, 0.5, 0.5]]
    """
    return _moved(composite, mask, 0.5, scale=True)


def full_statistics(composite: Tensor, mask: Tensor) -> Tensor:
    """Foreground brought to the background's mean and deviation.

        (x - mu_f) sigma_b / sigma_f + mu_b, clamped to [0, 1]

    Args, Returns, Raises: as of `half_mean`.

    Examples:
        >>> composite = torch.tensor([0.25, 0.75, 0.5, 0.5]).expand(1, 3, 1, 4)
        >>> mask = torch.tensor([1.0, 1.0, 0.0, 0.0]).reshape(1, 1, 1, 4)
        >>> full_statistics(composite, mask)[0, 0].tolist()
        [[0.5, 0.5, 0.5, 0.5]]
    """
    return _moved(composite, mask, 1.0, scale=True)


BASELINES: dict[str, Baseline] = {
    "half-statistics": half_statistics,
    "half-mean": half_mean,
    "full-statistics": full_statistics,
    "full-mean": full_mean,
}
SHORT_NAMES = {"mean": "half-mean"}


def full_name(name: str) -> str:
    """The name in `BASELINES` that a name or a short name stands for.

    Raises:
        ScscoError: there is none.

    Examples:
        >>> full_name("mean"), full_name("half-statistics")
        ('half-mean', 'half-statistics')
    """
    found = SHORT_NAMES.get(name, name)
    if found not in BASELINES:
        raise ScscoError(f"baseline {name!r} is unknown; use one of {', '.join([*BASELINES, *SHORT_NAMES])}")
    return found


def _moved(composite: Tensor, mask: Tensor, share: float, *, scale: bool) -> Tensor:
    """The foreground moved by `share` of the way to the background's mean and, with `scale`, deviation."""
    if composite.dim() != 4 or composite.shape[1] != 3 or mask.shape != (len(composite), 1, *composite.shape[2:]):
        raise ScscoError(
            f"shapes do not agree: composite {tuple(composite.shape)}, mask {tuple(mask.shape)}; "
            "(B, 3, H, W) and (B, 1, H, W) are wanted"
        )
    pixels, foreground = composite.double(), mask > THRESHOLD
    mean, deviation = _statistics(pixels, foreground)
    wanted_mean, wanted_deviation = _statistics(pixels, ~foreground)
    gain = wanted_deviation / deviation.clamp(min=FLATTEST) if scale else 1.0
    target = (pixels - mean) * gain + wanted_mean
    moved = (pixels + share * (target - pixels)).clamp(0, 1)
    both = foreground.any(dim=(2, 3), keepdim=True) & (~foreground).any(dim=(2, 3), keepdim=True)
    return torch.where(both & (mask > 0), pixels.lerp(moved, mask.double()), pixels).to(composite.dtype)


def _statistics(pixels: Tensor, region: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel over a region, (B, 3, 1, 1) each; 0 where the region is empty."""
    count = region.sum(dim=(2, 3), keepdim=True).clamp(min=1)
    mean = pixels.where(region, 0).sum(dim=(2, 3), keepdim=True) / count
    variance = (pixels - mean).square().where(region, 0).sum(dim=(2, 3), keepdim=True) / count
    return mean, variance.sqrt()
