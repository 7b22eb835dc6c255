"""Harmonize picture files: one composite and its mask, or a folder of them."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from scsco_fast.data.images import PICTURE_SUFFIXES, open_upright, read_mask
from scsco_fast.errors import ScscoError
from scsco_fast.files import replacing
from scsco_fast.harmonize import harmonize
from scsco_fast.nn.unet import HarmonizationUNet
from scsco_fast.strips import write_strip

# Lossless where the format can be; JPEG cannot, so there the background is near its input, not identical.
_SAVE_OPTIONS: dict[str, dict[str, object]] = {
    ".png": {},
    ".jpg": {"quality": 95, "subsampling": 0},
    ".jpeg": {"quality": 95, "subsampling": 0},
    ".tif": {"compression": "tiff_deflate"},
    ".tiff": {"compression": "tiff_deflate"},
    ".bmp": {},
    ".webp": {"lossless": True, "exact": True},
}


@dataclass
class FolderReport:
    """What `harmonize_folder` wrote, and the pictures that it could not use, with the reason."""

    written: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)


def read_image(path: str | Path) -> Image.Image:
    """A picture file as a PIL image of its own mode, upright, with its colour profile.

    Raises:
        ScscoError: as `read_picture`; and files that would lose something: animations, and 16-bit colour PNG, which
            Pillow reads as 8-bit.
    """
    image = open_upright(path)
    with Image.open(path) as opened:
        frames = getattr(opened, "n_frames", 1)
        # MPO is a phone's JPEG with a second view, which other programs ignore as well.
        if frames > 1 and opened.format != "MPO":
            raise ScscoError(f"{path}: holds {frames} frames or pages; save the one to harmonize as a file of its own")
        if opened.format == "PNG" and "16" in str(opened.tile[0][3]) and not opened.mode.startswith("I"):
            raise ScscoError(f"{path}: 16-bit colour would be cut to 8 bits; save it as 8-bit colour or 16-bit grey")
    return image


def write_image(image: Image.Image, path: str | Path) -> None:
    """Write a PIL image in the format of the suffix, atomically, with its colour profile and EXIF block.

    Raises:
        ScscoError: a suffix that is not written, or a format that cannot hold the image's mode.
    """
    path = Path(path)
    options = dict(_save_options(path))
    for key in ("icc_profile", "exif"):
        if image.info.get(key):
            options[key] = image.info[key]
    if path.suffix.lower() in (".jpg", ".jpeg", ".bmp") and image.mode not in ("L", "RGB"):
        kind = "16 bits" if image.mode.startswith(("I", "F")) else "transparency"
        raise ScscoError(f"{path}: {path.suffix} cannot hold {kind} (mode {image.mode}); name a .png")
    with replacing(path) as temporary:
        image.save(temporary, **options)  # type: ignore[arg-type]


def harmonize_file(
    image_path: str | Path,
    mask_path: str | Path,
    output_path: str | Path,
    model: HarmonizationUNet,
    working_size: int | None = None,
    device: str | None = None,
    invert_mask: bool = False,
) -> None:
    """Harmonize one file into another; the output's suffix decides its format. The inputs are never overwritten.

    Raises:
        ScscoError: a file that cannot be read or written, a mask of another size; the message names the file.
    """
    output_path = Path(output_path)
    _save_options(output_path)
    for source in (image_path, mask_path):
        if output_path.resolve() == Path(source).resolve():
            raise ScscoError(f"{output_path}: the output would overwrite an input; name another file")
    image = read_image(image_path)
    mask = read_mask(mask_path, size=(image.height, image.width))
    if invert_mask:
        mask = 1 - mask
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = harmonize(image, mask, model, working_size, device)
    except ScscoError as error:
        raise ScscoError(f"{image_path}: {error}") from error
    for warning in caught:
        warnings.warn(f"{image_path}: {warning.message}", warning.category, stacklevel=2)
    write_image(result, output_path)


def harmonize_folder(
    images: str | Path,
    masks: str | Path,
    output: str | Path,
    model: HarmonizationUNet,
    working_size: int | None = None,
    device: str | None = None,
    invert_mask: bool = False,
    suffix: str | None = None,
    progress: Callable[[Path], None] | None = None,
) -> FolderReport:
    """Harmonize each picture of a folder; one that cannot be used is reported and does not stop the others.

    A picture's mask has its stem (`cat.jpg`, `cat.png`), or iHarmony4's name: `ID_M_K.jpg` goes with `ID_M.png`.

    Args:
        suffix: format of the outputs, such as ".png"; None is each picture's own.
        progress: called with each path written.

    Raises:
        ScscoError: a folder is missing, holds no picture, or is the output folder.
    """
    images, masks, output = Path(images), Path(masks), Path(output)
    found = _pictures_of(images)
    mask_of_stem = _by_stem(_pictures_of(masks))
    if output.resolve() in (images.resolve(), masks.resolve()):
        raise ScscoError(f"{output}: the output folder holds the inputs; name another folder")
    report = FolderReport()
    targets: dict[Path, Path] = {}
    for path in found:
        target = output / (path.name if suffix is None else path.stem + suffix)
        try:
            if target in targets:
                raise ScscoError(f"{path}: its output {target} is taken by {targets[target].name}; rename one")
            targets[target] = path
            mask = find_mask(path, mask_of_stem)
            harmonize_file(path, mask, target, model, working_size, device, invert_mask)
        except ScscoError as error:
            report.failed[path] = str(error)
            continue
        report.written.append(target)
        if progress is not None:
            progress(target)
    return report


def find_mask(path: Path, mask_of_stem: dict[str, list[Path]]) -> Path:
    """The mask of a picture, by its stem or by iHarmony4's naming."""
    stems = [path.stem]
    parts = path.stem.rsplit("_", 1)
    if len(parts) == 2 and "_" in parts[0]:
        stems.append(parts[0])
    for stem in stems:
        candidates = mask_of_stem.get(stem, [])
        if len(candidates) > 1:
            names = ", ".join(candidate.name for candidate in candidates)
            raise ScscoError(f"{path}: more than one mask ({names}); keep one")
        if candidates:
            return candidates[0]
    raise ScscoError(f"{path}: no mask; wanted a file named {' or '.join(stem + '.png' for stem in stems)}")


def write_file_strip(strip: str | Path, before: str | Path, after: str | Path, real: str | Path | None = None) -> None:
    """Write picture files side by side; a real picture of another size is an error."""
    images = {name: read_image(path) for name, path in (("before", before), ("after", after), ("real", real)) if path}
    for image in images.values():
        if image.size != images["before"].size:
            raise ScscoError(f"{real}: is {image.size[0]}x{image.size[1]}, not of the picture's size; leave it out")
    write_strip([[np.asarray(image.convert("RGB")) for image in images.values()]], list(images), strip)


def _pictures_of(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ScscoError(f"{folder}: no such folder; wanted a folder of pictures")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file())
    if not found:
        raise ScscoError(f"{folder}: holds no picture ({', '.join(PICTURE_SUFFIXES)})")
    return found


def _by_stem(paths: list[Path]) -> dict[str, list[Path]]:
    stems: dict[str, list[Path]] = {}
    for path in paths:
        stems.setdefault(path.stem, []).append(path)
    return stems


def _save_options(path: Path) -> dict[str, object]:
    try:
        return _SAVE_OPTIONS[path.suffix.lower()]
    except KeyError:
        raise ScscoError(f"{path}: cannot write {path.suffix or 'a file without a suffix'}; name a .png") from None
