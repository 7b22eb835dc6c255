"""Mean absolute differences of Gram matrices that share one factor, written out."""

from torch import Tensor


def gram_distances(anchor: Tensor, background: Tensor, others: Tensor) -> Tensor:
    """See `scsco_fast.ops.gram_distances`."""
    shared = background.flatten(2).transpose(1, 2).unsqueeze(1)  # (B, 1, N, C)
    own = anchor.flatten(2).unsqueeze(1) @ shared  # (B, 1, C, C)
    grams = others.flatten(3) @ shared  # (B, J, C, C)
    return (own - grams).abs().mean(dim=(2, 3)) / shared.shape[2]
