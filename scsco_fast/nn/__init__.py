"""Network modules: the two normalisations, the attention U-Net, and the frozen VGG-16 of the style loss."""

from scsco_fast.nn.norm import BAIN, RAIN
from scsco_fast.nn.unet import HarmonizationUNet
from scsco_fast.style.vgg import VGG16Features

__all__ = ["BAIN", "RAIN", "HarmonizationUNet", "VGG16Features"]
