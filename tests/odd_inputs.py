"""Put odd inputs through `scsco harmonize`'s code and count what becomes of them; docs/odd-inputs.md shows the table.

    python tests/odd_inputs.py

Right is: written, in the right size and turned the right way, with the background bit for bit where the format is
lossless (within what its codec loses elsewhere). Refused is: one line that names the file, and nothing written.
Everything else is wrong; the program says what it was, and ends with exit code 1.
"""

import os
import struct
import sys
import tempfile
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import odd_files
import profiles
from malformed import chunk
from PIL import Image

from scsco_fast import load_default_model
from scsco_fast.errors import ScscoError
from scsco_fast.harmonizing.files import harmonize_file
from scsco_fast.harmonizing.image_files import read_image

SIZE = (80, 60)  # width and height
OUTPUTS = ("png", "tif", "webp", "bmp", "jpg", "avif")
LOST = {"jpg": 12, "avif": 4}  # levels by which a codec moves a pixel of a smooth picture
DAMAGES = 12


class Case(NamedTuple):
    """A picture file and the upright picture in it, None where it should be refused; and the suffix to write."""

    kind: str
    name: str
    data: bytes | None
    upright: Image.Image | None
    output: str = "png"
    lost: int = 0


def cases(folder: Path) -> Iterator[Case]:
    yield from turned()
    yield from modes()
    yield from sizes()
    yield from overloaded()
    yield from several()
    yield from nowhere(folder)
    yield from wide_gamut()
    yield from damaged()


def turned() -> Iterator[Case]:
    carriers = {
        "PNG": ({}, ("1", "L", "P", "RGB", "RGBA", "LA", "I;16")),
        "TIFF": ({}, ("1", "L", "P", "RGB", "RGBA", "I;16")),
        "TIFF, packed": ({"compression": "tiff_deflate"}, ("1", "L", "P", "RGB", "RGBA", "I;16")),
        "WEBP": ({"lossless": True, "exact": True}, ("RGB", "RGBA")),
        "JPEG": ({"quality": 100, "subsampling": 0}, ("L", "RGB")),
        "AVIF": ({"quality": 100, "subsampling": "4:4:4"}, ("RGB", "RGBA")),
    }
    for name, (options, stored_modes) in carriers.items():
        kind = name.partition(",")[0]
        for mode in stored_modes:
            for orientation in range(1, 9):
                stored = odd_files.picture(mode, SIZE)
                turn = odd_files.TURNS.get(orientation)
                upright = stored if turn is None else stored.transpose(turn)
                data = odd_files.saved(stored, kind, exif=odd_files.exif(orientation), **options)
                lost = {"JPEG": 4, "AVIF": 4}.get(kind, 0)
                yield Case(
                    "orientation 1 to 8, by format and mode", f"{name} {mode} {orientation}", data, upright, lost=lost
                )


def modes() -> Iterator[Case]:
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"):
        picture = odd_files.picture(mode, SIZE)
        data = odd_files.saved(picture, "TIFF")
        for output in OUTPUTS:
            fits = not (
                (mode in ("LA", "RGBA") and output in ("bmp", "jpg"))
                or (mode == "I;16" and output not in ("png", "tif"))
                or (mode == "F" and output != "tif")
            )
            lost = 16 if mode == "P" and output == "jpg" else 0  # 64 colours make edges
            name = f"{mode} to {output}"
            yield Case("pixel types, to every format", name, data, picture if fits else None, output, lost)


def sizes() -> Iterator[Case]:
    for size in (
        (1, 2),
        (2, 1),
        (1, 300),
        (300, 1),
        (2, 500),
        (500, 2),
        (64, 12000),
        (12000, 64),
        (1, 30000),
        (30000, 1),
    ):
        picture = odd_files.picture("RGB", size)
        data = odd_files.saved(picture, "PNG")
        for output in OUTPUTS:
            fits = output != "webp" or max(size) <= 16383
            yield Case("sizes from 1x2 to 30000x1", f"{size} to {output}", data, picture if fits else None, output)


def overloaded() -> Iterator[Case]:
    picture = odd_files.picture("RGB", SIZE)
    block = odd_files.exif(1)
    block[0x010E] = "d" * 200_000
    for kind in ("PNG", "TIFF", "WEBP"):
        exact = {"lossless": True, "exact": True} if kind == "WEBP" else {}
        large = {"200 kB of EXIF": {"exif": block}, "a profile of 20 MB": {"icc_profile": bytes(20_000_000)}}
        for what, options in large.items():
            data = odd_files.saved(picture, kind, **options, **exact)
            refused = kind == "PNG" and "icc_profile" in options
            for output in OUTPUTS:
                name = f"{kind} with {what} to {output}"
                yield Case("metadata that is too large", name, data, None if refused else picture, output)
    bomb = chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(50_000_000), 9))
    for kind, colour in (("8", 8), ("16", 16)):
        yield Case("metadata that is too large", f"PNG of {kind} bits, profile bomb", _png(colour, bomb), None)
    gif = odd_files.saved(odd_files.picture("P", SIZE), "GIF", comment=b"c" * 5_000_000)
    yield Case("metadata that is too large", "GIF with 5 MB of comment", gif, None)


def several() -> Iterator[Case]:
    pictures = [odd_files.picture("RGB", SIZE), odd_files.picture("RGB", SIZE).transpose(1)]  # type: ignore[arg-type]
    for kind in ("GIF", "WEBP", "PNG", "TIFF", "AVIF"):
        data = odd_files.saved(pictures[0], kind, save_all=True, append_images=pictures[1:])
        yield Case("several frames or pages", kind, data, None)
    single = odd_files.picture("P", SIZE)
    yield Case("several frames or pages", "a GIF of one frame", odd_files.saved(single, "GIF"), single)


def nowhere(folder: Path) -> Iterator[Case]:
    kind = "paths that lead to no picture"
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "dangling.png").symlink_to(folder / "nothing.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    for name in ("loop.png", "dangling.png", "pipe.png", "folder.png", "missing.png", "a\0b.png", "n" * 300 + ".png"):
        yield Case(kind, name, None, None)
    for name, data in {"empty": b"", "text": b"no picture", "PDF": b"%PDF-1.7", "zeros": bytes(1000)}.items():
        yield Case(kind, name, data, None)


def wide_gamut() -> Iterator[Case]:
    for name in profiles.PRIMARIES:
        for mode in ("RGB", "RGBA", "P"):
            picture = odd_files.picture(mode, SIZE)
            picture.info["icc_profile"] = profiles.icc_profile(name)
            data = odd_files.saved(picture, "PNG", icc_profile=profiles.icc_profile(name))
            for output in ("png", "tif", "webp"):
                yield Case("wide-gamut profiles, which are kept", f"{name} {mode} {output}", data, picture, output)


def damaged() -> Iterator[Case]:
    for number, (name, whole) in enumerate(odd_files.whole_files()):
        rng = np.random.default_rng(number)
        for index in range(DAMAGES):
            yield Case("damaged files", f"{name} {index}", odd_files.damaged(whole, rng), None)


def outcome(case: Case, folder: Path, model: object) -> str:
    """ "right", "refused", or what was wrong."""
    path, output = folder / (case.name if case.data is None else "picture"), folder / f"out.{case.output}"
    output.unlink(missing_ok=True)
    if case.data is not None:
        path.write_bytes(case.data)
    mask = _mask(case, path)
    Image.fromarray(mask).save(folder / "mask.png")
    try:
        harmonize_file(path, folder / "mask.png", output, model)  # type: ignore[arg-type]
    except ScscoError as error:
        if "\n" in str(error) or output.exists() or not str(error).startswith(str(folder)):
            return f"refused badly: {error}"
        return "refused" if case.upright is None else f"refused, though it is fine: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if case.kind == "damaged files":  # which may still be a picture
        return "right" if Image.open(output).size == mask.shape[::-1] else "another size"
    if case.upright is None:
        return "written, though it should be refused"
    return _compared(case, output, mask)


def _compared(case: Case, output: Path, mask: np.ndarray) -> str:
    assert case.upright is not None
    found = read_image(output)
    if found.size != case.upright.size:
        return f"of size {found.size}"
    if found.info.get("icc_profile") != case.upright.info.get("icc_profile"):
        return "another profile"
    if case.upright.mode in ("I;16", "F"):
        values, wanted = np.asarray(found, float), np.asarray(case.upright, float)
    else:
        values, wanted = (np.asarray(each.convert("RGBA"), float) for each in (found, case.upright))
    off = np.abs(values - wanted)[mask == 0].max(initial=0)
    return "right" if off <= case.lost + LOST.get(case.output, 0) else f"background off by {off:g}"


def _mask(case: Case, path: Path) -> np.ndarray:
    """(H, W) uint8 of the picture's size, with a foreground in the middle."""
    size = SIZE if case.upright is None else case.upright.size
    if case.kind == "damaged files":
        try:
            size = read_image(path).size
        except Exception:
            size = odd_files.SIZE
    mask = np.zeros(size[::-1], np.uint8)
    rows, columns = (slice(side // 3, side // 3 + max(1, side // 3)) for side in mask.shape)
    mask[rows, columns] = 255
    if mask.all():
        mask[0, 0] = 0
    return mask


def _png(bits: int, extra: bytes) -> bytes:
    row = bytes(1 + SIZE[0] * 3 * bits // 8)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *SIZE, bits, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(row * SIZE[1])) + chunk(b"IEND", b"")


def main() -> int:
    warnings.simplefilter("ignore")
    model = load_default_model()
    counts: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as name:
        for case in cases(Path(name)):
            found = outcome(case, Path(name), model)
            column = found if found in ("right", "refused") else "wrong"
            counts.setdefault(case.kind, Counter())[column] += 1
            if column == "wrong":
                sys.stderr.write(f"{case.kind}: {case.name}: {found}\n")
    counts["all"] = sum(counts.values(), Counter())
    sys.stdout.write("| input | tried | right | refused | wrong |\n|---|---|---|---|---|\n")
    for kind, found in counts.items():
        sys.stdout.write(f"| {kind} | {found.total()} | {found['right']} | {found['refused']} | {found['wrong']} |\n")
    return 1 if counts["all"]["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
