"""Samples for training and evaluation: iHarmony4, and composites made on the fly from any photographs."""

from scsco_fast.data.iharmony4 import IHarmony4
from scsco_fast.data.images import Picture, image_to_tensor, read_mask, read_picture, tensor_to_image
from scsco_fast.data.samples import BadSample, Batch, Sample, collate
from scsco_fast.data.synthetic import Photo, SyntheticComposites, load_photos

__all__ = [
    "BadSample",
    "Batch",
    "IHarmony4",
    "Photo",
    "Picture",
    "Sample",
    "SyntheticComposites",
    "collate",
    "image_to_tensor",
    "load_photos",
    "read_mask",
    "read_picture",
    "tensor_to_image",
]
