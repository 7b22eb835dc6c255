"""Mean absolute differences of feature maps, written out."""

from torch import Tensor


def feature_distances(anchor: Tensor, others: Tensor) -> Tensor:
    """See `scsco_fast.ops.feature_distances`."""
    return (anchor.unsqueeze(1) - others).abs().mean(dim=(2, 3, 4))
