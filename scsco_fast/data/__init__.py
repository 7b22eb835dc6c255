"""Samples for training and evaluation: iHarmony4, a packed store of it, and photographs.

`SyntheticComposites` can be imported from here too; its home is `scsco_fast.synthesis`, which imports this package.
"""

import importlib
from typing import Any

from scsco_fast.data.iharmony4 import IHarmony4
from scsco_fast.data.images import Picture, image_to_tensor, read_picture, tensor_to_image
from scsco_fast.data.masks import read_mask
from scsco_fast.data.packed import PackedDataset
from scsco_fast.data.photos import Photo, load_photos
from scsco_fast.data.samples import BadSample, Batch, PackedBatch, Sample, collate

__all__ = [
    "BadSample",
    "Batch",
    "IHarmony4",
    "PackedBatch",
    "PackedDataset",
    "Photo",
    "Picture",
    "Sample",
    "collate",
    "image_to_tensor",
    "load_photos",
    "read_mask",
    "read_picture",
    "tensor_to_image",
]


def __getattr__(name: str) -> Any:
    if name != "SyntheticComposites":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module("scsco_fast.synthesis").SyntheticComposites
