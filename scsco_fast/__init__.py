"""scsco-fast: image harmonization with self-consistent style contrastive learning (SCS-Co, CVPR 2022).

A name is imported when it is first used, so `import scsco_fast` and the command line's help do not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors; `_HOME` is what runs
    from scsco_fast import nn, ops
    from scsco_fast.errors import ScscoError
    from scsco_fast.harmonizing.pictures import harmonize
    from scsco_fast.nn import BAIN, RAIN, HarmonizationUNet, VGG16Features
    from scsco_fast.nn.weights import load_default_model, load_model, save_model
    from scsco_fast.ops import use_backend
    from scsco_fast.regions import Regions, foreground_boxes
    from scsco_fast.style.loss import SCSCoLoss, SCSCoTerms
    from scsco_fast.style.negatives import make_negatives

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

# Where each public name comes from.
_HOME = {
    "BAIN": "nn.norm",
    "RAIN": "nn.norm",
    "HarmonizationUNet": "nn.unet",
    "Regions": "regions",
    "SCSCoLoss": "style.loss",
    "SCSCoTerms": "style.loss",
    "ScscoError": "errors",
    "VGG16Features": "style.vgg",
    "foreground_boxes": "regions",
    "harmonize": "harmonizing.pictures",
    "load_default_model": "nn.weights",
    "load_model": "nn.weights",
    "make_negatives": "style.negatives",
    "save_model": "nn.weights",
    "use_backend": "ops.backend",
}
_PACKAGES = ("nn", "ops")


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value  # the next use finds it without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
