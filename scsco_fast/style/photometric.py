"""Random photometric changes, drawn on the host and applied on the images' device."""

import torch
from torch import Tensor

from scsco_fast.reference.color import LUMA

# Half-widths, in natural logarithms, of the uniform draws.
EXPOSURE, CHANNEL_GAIN, GAMMA, SATURATION = 0.5, 0.15, 0.4, 0.5


def random_curve(images: Tensor, generator: torch.Generator | None = None, strength: float = 1.0) -> Tensor:
    """Exposure, white balance, gamma and saturation, drawn anew for every image of a batch.

        y = clamp(s * g_c * e * x ** gamma + (1 - s) * luma(g_c * e * x ** gamma), 0, 1)

    with e, g_c (per channel), gamma and s each exp of a uniform draw in +- strength * its half-width above.

    Args:
        images: (B, 3, H, W) in [0, 1].
        generator: on the CPU; None: torch's default one.
        strength: scales the draws; 0 changes nothing.

    Returns:
        (B, 3, H, W) in [0, 1], in the dtype of images.

    Examples:
        >>> import torch
        >>> from scsco_fast.style.photometric import random_curve
        >>> image = torch.rand(1, 3, 4, 4)
        >>> torch.allclose(random_curve(image, strength=0.0), image, atol=1e-6)
        True
    """
    return apply_curve(images, draw_curves(images.shape[0], generator, strength))


def draw_curves(count: int, generator: torch.Generator | None = None, strength: float = 1.0) -> Tensor:
    """(count, 6) float64 on the CPU: exposure, three channel gains, gamma and saturation of `random_curve`."""
    draws = torch.rand(count, 6, generator=generator, dtype=torch.float64) * 2 - 1
    widths = torch.tensor([EXPOSURE, CHANNEL_GAIN, CHANNEL_GAIN, CHANNEL_GAIN, GAMMA, SATURATION], dtype=torch.float64)
    return (draws * widths * strength).exp()


def apply_curve(images: Tensor, curves: Tensor) -> Tensor:
    """`random_curve` of images (B, 3, H, W) with the curves (B, 6) that `draw_curves` drew; float32 or wider within."""
    wide = images.to(torch.promote_types(images.dtype, torch.float32))
    factors = curves.to(wide, non_blocking=True).reshape(-1, 6, 1, 1)
    exposure, gains, gamma, saturation = factors.split([1, 3, 1, 1], dim=1)
    curved = exposure * gains * wide.clamp(min=0) ** gamma
    red, green, blue = curved.split(1, dim=1)
    luma = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    return torch.lerp(luma, curved, saturation.expand_as(curved)).clamp(0, 1).to(images.dtype)
