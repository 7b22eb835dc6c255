"""BAIN's attention-weighted background statistics, written out with the whole pixels x pixels attention matrix."""

import torch
from torch import Tensor


def bain_attention(
    query: Tensor, key: Tensor, value: Tensor, foreground: Tensor, valid: Tensor | None, scale: float, eps: float
) -> tuple[Tensor, Tensor]:
    """See `scsco_fast.ops.bain_attention`; `foreground` and `valid` are (B, 1, H, W) bool at the size of `query`.

    The variance is taken as sum_j A_ij (v_j - c)^2 - (sum_j A_ij (v_j - c))^2 with c the background's mean per image
    and channel. The value does not depend on c; on raw values (c = 0) the difference loses all digits once |mean| /
    std of a channel passes 3 in bfloat16.

    What is no query or no key is 0 before the products, because their gradients multiply it by 0, and 0 * NaN is NaN.
    For the same reason an image without queries has no keys.
    """
    background = ~foreground if valid is None else ~foreground & valid
    is_key = (background & foreground.any(dim=(2, 3), keepdim=True)).flatten(2)  # (B, 1, N)
    has_keys = is_key.any(dim=2, keepdim=True)
    use = foreground.flatten(2).transpose(1, 2) & has_keys  # (B, N, 1)
    q = torch.where(use, query.flatten(2).transpose(1, 2), 0)  # (B, N, dk)
    k = torch.where(is_key, key.flatten(2), 0)  # (B, dk, N)
    logits = scale * (q @ k)  # (B, N, N)
    logits = torch.where(is_key | ~has_keys, logits, -torch.inf)
    attention = torch.softmax(logits, dim=2)

    v = torch.where(is_key, value.flatten(2), 0)  # (B, C, N)
    pivot = v.sum(dim=2, keepdim=True) / is_key.sum(dim=2, keepdim=True).clamp(min=1)
    v = torch.where(is_key, v - pivot, 0).transpose(1, 2)  # (B, N, C)
    first = attention @ v
    variance = attention @ v.square() - first.square()
    std = torch.sqrt(variance.clamp(min=0) + eps)
    mean = first + pivot.transpose(1, 2)

    mean = torch.where(use, mean, 0)
    std = torch.where(use, std, 1)
    return mean.transpose(1, 2).reshape(value.shape), std.transpose(1, 2).reshape(value.shape)
