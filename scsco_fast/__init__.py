"""scsco-fast: image harmonization with self-consistent style contrastive learning (SCS-Co, CVPR 2022)."""

from scsco_fast import nn, ops
from scsco_fast.errors import ScscoError
from scsco_fast.harmonizing.pictures import harmonize
from scsco_fast.loss import SCSCoLoss, SCSCoTerms
from scsco_fast.negatives import make_negatives
from scsco_fast.nn import BAIN, RAIN, HarmonizationUNet, VGG16Features
from scsco_fast.ops import use_backend
from scsco_fast.regions import Regions, foreground_boxes
from scsco_fast.weights import load_default_model, load_model, save_model

__version__ = "0.1.0"

__all__ = [
    "BAIN",
    "RAIN",
    "HarmonizationUNet",
    "Regions",
    "SCSCoLoss",
    "SCSCoTerms",
    "ScscoError",
    "VGG16Features",
    "foreground_boxes",
    "harmonize",
    "load_default_model",
    "load_model",
    "make_negatives",
    "nn",
    "ops",
    "save_model",
    "use_backend",
]
