"""Region normalisation with its own backward: one pass for each moment, no masked copy of x is kept.

What is not finite in one region leaves the other alone.
"""

import torch
from torch import Tensor

from scsco_fast.eager.dtypes import accumulate_dtype


def forward(
    x: Tensor, foreground: Tensor, valid: Tensor | None, affine: Tensor, eps: float, adapt: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Output (B, C, H, W) in the dtype of x, and mean and deviation (B, C, 2) of foreground and background.

    The rows of `affine` (4, C) are fg_weight, fg_bias, bg_weight and bg_bias.
    """
    dtype = accumulate_dtype(x)
    rows = x.to(dtype).flatten(2)  # (B, C, N)
    fg, members, count = _regions(foreground, valid, dtype)

    size = count.clamp(min=1)
    mean = _region_sums(_zero_excluded(rows, valid), members) / size  # (B, C, 2)
    centred = _zero_excluded(rows - _by_region(fg, mean), valid)
    variance = _region_sums(centred.square(), members) / size
    std = torch.where(count > 0, torch.sqrt(variance + eps), 1)

    gain, bias = _gains(std, mean, affine, adapt)
    y = centred.mul_(_by_region(fg, gain)).add_(_by_region(fg, bias))
    return _zero_excluded(y, valid).reshape(x.shape).to(x.dtype), mean, std


def backward(
    grad: Tensor,
    x: Tensor,
    foreground: Tensor,
    valid: Tensor | None,
    affine: Tensor,
    mean: Tensor,
    std: Tensor,
    adapt: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of x, and of affine (4, C) in float32 or wider.

    With xh = (x - mu_r) / sigma_r of the pixel's own region r, S_r = sum of dy and T_r = sum of dy xh over r, and the
    slope s_r = dy-to-dxh factor / sigma_r (the foreground's holds sigma_b where it adapts):

        dx = s_r (dy - S_r / n_r - xh T_r / n_r) + [i in b, adapt] fg_weight (S_f + T_f xh) / n_b

    The last term is what reaches the background's moments through the foreground. An empty region's moments are
    constant: its S and T are 0.
    """
    dtype = mean.dtype
    dy = _zero_excluded(grad.to(dtype).flatten(2), valid)
    fg, members, count = _regions(foreground, valid, dtype)
    centred = _zero_excluded(x.to(dtype).flatten(2) - _by_region(fg, mean), valid)
    normalised = centred.div_(_by_region(fg, std))

    sum_dy = _region_sums(dy, members)  # (B, C, 2)
    sum_dy_xh = _region_sums(dy * normalised, members)
    w_f, _, w_b, _ = affine.to(dtype).unsqueeze(1)  # (1, C) each
    mu_b, sigma_b = mean[..., 1], std[..., 1]
    inner = sigma_b if adapt else torch.ones_like(sigma_b)
    d_fg_weight = inner * sum_dy_xh[..., 0] + (mu_b * sum_dy[..., 0] if adapt else 0)
    has_foreground = count[..., 0] > 0  # (B, 1); without one nothing passes between the regions, not even 0 * NaN
    d_fg_weight = torch.where(has_foreground, d_fg_weight, 0)
    d_affine = torch.stack([d_fg_weight, sum_dy[..., 0], sum_dy_xh[..., 1], sum_dy[..., 1]]).sum(dim=1)

    size = count.clamp(min=1)
    slope = torch.stack([w_f * inner, w_b.expand_as(inner)], dim=2) / std
    mean_dy, mean_dy_xh = sum_dy / size, sum_dy_xh / size
    # Subtracted before the slope is applied: a region of one pixel then gives 0, not 316 times a rounding error.
    inside = _by_region(fg, mean_dy).add_(_by_region(fg, mean_dy_xh).mul_(normalised))
    dx = _zero_excluded(torch.sub(dy, inside, out=inside).mul_(_by_region(fg, slope)), valid)
    if adapt:
        share = torch.where(has_foreground, w_f / size[..., 1], 0).unsqueeze(2)
        through = normalised.mul_(share * sum_dy_xh[..., :1]).add_(share * sum_dy[..., :1])
        dx += through.masked_fill_(members[:, 1:] == 0, 0)
    return dx.reshape(x.shape).to(x.dtype), d_affine


def _by_region(fg: Tensor, pair: Tensor) -> Tensor:
    """Each pixel's own of (B, C, 2), foreground and background: (B, C, N)."""
    return torch.where(fg, pair[..., :1], pair[..., 1:])


def _zero_excluded(rows: Tensor, valid: Tensor | None) -> Tensor:
    """Rows (B, C, N) with 0 at excluded pixels, whatever they held: 0 * NaN in a product would be NaN."""
    return rows if valid is None else torch.where(valid.flatten(2), rows, 0)


def _regions(foreground: Tensor, valid: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Foreground (B, 1, N) bool, membership (B, 2, N) of foreground and background, and their sizes (B, 1, 2)."""
    fg = foreground.flatten(2)
    bg = ~fg if valid is None else ~fg & valid.flatten(2)
    members = torch.cat([fg, bg], dim=1).to(dtype)
    return fg, members, members.sum(dim=2).unsqueeze(1)


def _region_sums(rows: Tensor, members: Tensor) -> Tensor:
    """Sums of rows (B, C, N) over the foreground and over the background: (B, C, 2).

    One product gives both, in a tenth of the time of two masked copies; but it multiplies what lies in the other region
    by 0, and 0 * NaN is NaN. So the sums that come out not finite are taken anew from the copies. A GPU takes the
    copies at once: looking at the sums would make the host wait for it.
    """
    if rows.device.type != "cpu":
        return _sums_apart(rows, members)
    sums = rows @ members.transpose(1, 2)
    finite = sums.isfinite()
    return sums if finite.all() else torch.where(finite, sums, _sums_apart(rows, members))


def _sums_apart(rows: Tensor, members: Tensor) -> Tensor:
    regions = members.bool().split(1, dim=1)  # (B, 1, N) each
    return torch.stack([torch.where(region, rows, 0).sum(dim=2) for region in regions], dim=2)


def _gains(std: Tensor, mean: Tensor, affine: Tensor, adapt: bool) -> tuple[Tensor, Tensor]:
    """Per image, channel and region: y = gain * (x - mean) + bias; two (B, C, 2) tensors."""
    w_f, b_f, w_b, b_b = affine.to(std.dtype).unsqueeze(1)  # (1, C) each
    gain_b = (w_b / std[..., 1]).expand_as(std[..., 1])
    bias_b = b_b.expand_as(gain_b)
    if adapt:
        gain_f, bias_f = w_f * std[..., 1] / std[..., 0], w_f * mean[..., 1] + b_f
    else:
        gain_f, bias_f = w_f / std[..., 0], b_f.expand_as(gain_b)
    return torch.stack([gain_f, gain_b], dim=2), torch.stack([bias_f, bias_b], dim=2)
