"""RAIN and BAIN: normalisations that give the foreground the background's statistics."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scsco_fast.ops import bain_norm, region_norm
from scsco_fast.regions import RegionLevel, Regions, level_of

MAX_KEY_CHANNELS = 64
COSINE_SCALE = 5.0


class RAIN(nn.Module):
    """Region-aware adaptive instance normalisation (Ling et al., CVPR 2021): `scsco_fast.ops.region_norm` with affine.

    With mu, sigma = sqrt(var + eps) per image, channel and region (an empty region has 0 and 1):

        background: y = (x - mu_b) / sigma_b * (1 + gamma_b) + beta_b
        foreground: y = ((x - mu_f) / sigma_f * sigma_b + mu_b) * (1 + gamma_f) + beta_f

    The four (C,) parameters start at 0 and carry RainNet's names, so that its checkpoints load.

    Args:
        channels: C.
        eps: added to each variance.

    Examples:
        >>> import torch, scsco_fast as sf
        >>> x, mask = torch.randn(2, 8, 16, 16), torch.rand(2, 1, 64, 64)
        >>> sf.RAIN(8)(x, mask).shape
        torch.Size([2, 8, 16, 16])
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.channels = channels
        self.eps = eps
        self.foreground_gamma = nn.Parameter(torch.zeros(channels))
        self.foreground_beta = nn.Parameter(torch.zeros(channels))
        self.background_gamma = nn.Parameter(torch.zeros(channels))
        self.background_beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, mask: Regions | RegionLevel | Tensor) -> Tensor:
        """Normalise `x` (B, C, H, W) by `mask`: `Regions`, or (B, 1, H', W') of any resolution with 1 = foreground."""
        return region_norm(x, mask, *self.affine(), self.eps)

    def affine(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gain and offset of the foreground, gain and offset of the background, (C,) each: the gains are 1 + gamma."""
        gain_f, gain_b = 1 + self.foreground_gamma, 1 + self.background_gamma
        return gain_f, self.foreground_beta, gain_b, self.background_beta

    def extra_repr(self) -> str:
        return f"{self.channels}, eps={self.eps}"


class ReleasedRAIN(RAIN):
    """RAIN as RainNet's released code computes it, for its checkpoints; `RAIN` is the formula for all else.

    With n the number of a region's pixels, eps is added to it as well, and an empty region has no exception:

        mu_r = sum x / (n + eps),  sigma_r = sqrt(sum (x - mu_r)^2 / (n + eps) + eps)

    In a region of one pixel x - mu_r is then 1e-5 x and not 0, which division by sqrt(eps) makes 0.003 x; in an empty
    one sigma_r is sqrt(eps) and not 1. Plain PyTorch on every device, without a kernel.

    Examples:
        >>> import torch, scsco_fast as sf
        >>> from scsco_fast.nn.norm import ReleasedRAIN
        >>> x, mask = torch.randn(2, 8, 16, 16), torch.zeros(2, 1, 64, 64)
        >>> mask[..., 20:40] = 1
        >>> torch.allclose(ReleasedRAIN(8)(x, mask), sf.RAIN(8)(x, mask), atol=1e-4)
        True
    """

    def forward(self, x: Tensor, mask: Regions | RegionLevel | Tensor) -> Tensor:
        """Normalise `x` (B, C, H, W) by `mask`: `Regions`, or (B, 1, H', W') of any resolution with 1 = foreground."""
        level = level_of(mask, x.shape[-2], x.shape[-1])
        mean_f, std_f = self._moments(x, level.foreground)
        mean_b, std_b = self._moments(x, level.background)
        gain_f, bias_f, gain_b, bias_b = (parameter.reshape(1, -1, 1, 1) for parameter in self.affine())
        inside = ((x - mean_f) / std_f * std_b + mean_b) * gain_f + bias_f
        y = torch.where(level.foreground, inside, (x - mean_b) / std_b * gain_b + bias_b).to(x.dtype)
        return y if level.valid is None else torch.where(level.valid, y, 0)

    def _moments(self, x: Tensor, region: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, 1, 1) mean and deviation over `region` (B, 1, H, W) bool, in float32 or wider."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        size = region.sum(dim=(2, 3), keepdim=True) + self.eps
        mean = torch.where(region, x, 0).sum(dim=(2, 3), keepdim=True, dtype=dtype) / size
        variance = torch.where(region, x - mean, 0).square().sum(dim=(2, 3), keepdim=True) / size
        return mean, torch.sqrt(variance + self.eps)


class BAIN(RAIN):
    """Background-attentional adaptive instance normalisation (Hang et al., CVPR 2022).

    With n(x) = (x - mu_r) / sigma_r by the pixel's own region, q = Wq n(x) in the foreground, k = Wk n(x) and v = x in
    the background, A = softmax(q . k / sqrt(D)) and mean_i, std_i the moments of v under A_i:

        background: y = n(x) * (1 + gamma_b) + beta_b
        foreground: y = (std_i * n(x) + mean_i) * (1 + gamma_f) + beta_f

    The attention-weighted background statistics are the paper's; 1x1 convolutions without bias for Wq and Wk, their
    width, the scale and the identity for v are this project's decisions. With Wq = 0 it is RAIN.

    Args:
        channels: C.
        key_channels: D; None: min(C, 64).
        project_value: v = Wv x with a 1x1 convolution that starts as the identity, instead of v = x.
        cosine: the logits are `COSINE_SCALE` times the cosine of q and k. Bounded logits keep the attention from
            resting on the few background pixels that the foreground's values have leaked into.
        eps: added to each variance.

    Examples:
        >>> import torch, scsco_fast as sf
        >>> x, mask = torch.randn(2, 8, 16, 16), torch.rand(2, 1, 64, 64)
        >>> sf.BAIN(8)(x, mask).shape
        torch.Size([2, 8, 16, 16])
    """

    def __init__(
        self,
        channels: int,
        key_channels: int | None = None,
        project_value: bool = False,
        eps: float = 1e-5,
        cosine: bool = False,
    ) -> None:
        super().__init__(channels, eps)
        self.key_channels = min(channels, MAX_KEY_CHANNELS) if key_channels is None else key_channels
        self.cosine = cosine
        self.query = nn.Conv2d(channels, self.key_channels, 1, bias=False)
        self.key = nn.Conv2d(channels, self.key_channels, 1, bias=False)
        self.value = nn.Conv2d(channels, channels, 1, bias=False) if project_value else nn.Identity()
        if isinstance(self.value, nn.Conv2d):
            nn.init.dirac_(self.value.weight)

    def forward(self, x: Tensor, mask: Regions | RegionLevel | Tensor) -> Tensor:
        """Normalise `x` (B, C, H, W) by `mask`: `Regions`, or (B, 1, H', W') of any resolution with 1 = foreground."""
        level = level_of(mask, x.shape[-2], x.shape[-1])
        normalised = region_norm(x, level, eps=self.eps, adapt=False)
        query, key, scale = self.logit_operands(normalised)
        return bain_norm(query, key, self.value(x), normalised, level, *self.affine(), scale, self.eps)

    def logit_operands(self, normalised: Tensor) -> tuple[Tensor, Tensor, float]:
        """q and k (B, D, H, W) and the scale: the logits are scale * q_i . k_j."""
        query, key = self.query(normalised), self.key(normalised)
        if self.cosine:
            return F.normalize(query, dim=1), F.normalize(key, dim=1), COSINE_SCALE
        return query, key, self.key_channels**-0.5

    def extra_repr(self) -> str:
        return f"{self.channels}, key_channels={self.key_channels}, eps={self.eps}, cosine={self.cosine}"
