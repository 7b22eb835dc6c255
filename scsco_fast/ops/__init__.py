"""The operations: one public function each, registered with torch.library, served by interchangeable backends."""

from scsco_fast.ops._bain_attention import bain_attention
from scsco_fast.ops._bain_norm import bain_norm
from scsco_fast.ops._cross_gram import cross_gram
from scsco_fast.ops._feature_distances import feature_distances
from scsco_fast.ops._gram_distances import gram_distances
from scsco_fast.ops._masked_gram import masked_gram
from scsco_fast.ops._region_norm import region_norm
from scsco_fast.ops._transfer_color import transfer_color
from scsco_fast.ops.backend import backends, use_backend

__all__ = [
    "backends",
    "bain_attention",
    "bain_norm",
    "cross_gram",
    "feature_distances",
    "gram_distances",
    "masked_gram",
    "region_norm",
    "transfer_color",
    "use_backend",
]
