"""Files that no program should meet, and that every program meets: small to make, each broken in a way of its own."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 24


def noise(seed: int, size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def mask(side: int = SIDE, value: int = 255, ground: int = 0) -> Image.Image:
    grey = np.full((side, side), ground, np.uint8)
    grey[side // 4 : side // 2, side // 4 : side // 2] = value
    return Image.fromarray(grey)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@cache
def png(width: int, height: int, data: bytes = b"", between: bytes = b"", depth: int = 1) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + between + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def truncated(form: str) -> Callable[[Path, int], None]:
    def write(path: Path, seed: int) -> None:
        data = encoded(noise(seed), form)
        path.write_bytes(data[: int(len(data) * np.random.default_rng(seed).uniform(0.01, 0.9))])

    return write


def flipped_bit(path: Path, seed: int) -> None:
    data = bytearray(encoded(noise(seed), "PNG"))
    data[len(data) // 2 + seed % 100] ^= 1 << seed % 8
    path.write_bytes(data)


def data_of(make: Callable[[int], bytes]) -> Callable[[Path, int], None]:
    return lambda path, seed: path.write_bytes(make(seed)) and None


def nan_pixels(seed: int) -> bytes:
    return encoded(Image.fromarray(np.full((SIDE, SIDE), np.nan, np.float32)), "TIFF")


def wide_integers(seed: int) -> bytes:
    return encoded(Image.fromarray(np.full((SIDE, SIDE), 70_000 + seed, np.int32)), "TIFF")


def huge_bmp(seed: int) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, 60_000 + seed, 60_000, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info


def huge_jpeg(seed: int) -> bytes:
    data = encoded(noise(seed), "JPEG")
    start = data.index(b"\xff\xc0") + 5
    return data[:start] + struct.pack(">HH", 65_500, 65_500) + data[start + 4 :]


def tiff_loop(seed: int) -> bytes:
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 0) + struct.pack("<I", 8)


def link_to(target: str) -> Callable[[Path, int], None]:
    return lambda path, seed: os.symlink(path.name if target == "self" else target, path)


# What stands in a composite's, mask's or real picture's place: each writes one file that cannot be used.
BROKEN: dict[str, Callable[[Path, int], None]] = {
    "truncated PNG": truncated("PNG"),
    "truncated JPEG": truncated("JPEG"),
    "truncated WebP": truncated("WEBP"),
    "truncated BMP": truncated("BMP"),
    "flipped bit": flipped_bit,
    "zero bytes": data_of(lambda seed: b""),
    "NaN pixels": data_of(nan_pixels),
    "wrong mode": data_of(wide_integers),
    "huge PNG": data_of(lambda seed: png(100_000 + seed, 100_000)),
    "huge BMP": data_of(huge_bmp),
    "huge GIF": data_of(lambda seed: b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + b"\x2c" * 20),
    "huge JPEG": data_of(huge_jpeg),
    # 12.5 MB of zeros in 12 kB: 100 million pixels, and 225 million, which Pillow itself refuses.
    "bomb": data_of(lambda seed: png(10_000, 10_000, bytes(1251) * 10_000)),
    "larger bomb": data_of(lambda seed: png(15_000, 15_000)),
    "bomb in a text chunk": data_of(
        lambda seed: png(SIDE, SIDE, between=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2_000_000))))
    ),
    "text": data_of(lambda seed: b"not a picture " * (seed % 7 + 1)),
    "random bytes": data_of(lambda seed: np.random.default_rng(seed).bytes(500)),
    "PostScript": data_of(lambda seed: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 24 24\n%%EndComments\nshowpage\n"),
    "archive": data_of(lambda seed: b"PK\x03\x04" + bytes(60)),
    "TIFF whose list of pictures is a loop": data_of(tiff_loop),
    "folder": lambda path, seed: path.mkdir(),
    "pipe": lambda path, seed: os.mkfifo(path),
    "link to itself": link_to("self"),
    "link to nowhere": link_to("/nowhere/at/all.png"),
    "link to a folder": link_to(".."),
}
PARTS = ("composite_images", "masks", "real_images")
WRONG_NAMES = ("picture{}.png", "c{}.jpg", "c{}_1.txt", ".DS_Store{}", "new\nline{}.png", "{}_1_1", "bytes\udcff{}.png")


def write_malformed(root: Path, count: int) -> dict[str, str]:
    """A dataset of `count` things that are wrong, each in a sample of its own, and one that is right.

    Returns the file that must be named for each, with what is wrong with it.
    """
    for part in PARTS:
        (root / part).mkdir(parents=True)
    expected: dict[str, str] = {}
    names = ["c_1_1_1.png"]
    _write_good(root, "c_1")
    for number in range(count):
        identity = f"c{number}"
        kind = number % (len(BROKEN) + 6)
        if kind >= len(BROKEN) + 5:
            name = WRONG_NAMES[number % len(WRONG_NAMES)].format(number)
            (root / PARTS[0] / name).write_bytes(encoded(noise(number), "PNG"))
            expected[str(root / PARTS[0] / name)] = "wrong name"
            continue
        names.append(f"{identity}_1_1.png")
        _write_good(root, identity)
        files = (
            root / PARTS[0] / names[-1],
            root / PARTS[1] / f"{identity}_1.png",
            root / PARTS[2] / f"{identity}.png",
        )
        if kind < len(BROKEN):
            what = list(BROKEN)[kind]
            file = files[number // 7 % 3]
            file.unlink()
            BROKEN[what](file, number)
        else:
            what = ("mask of another size", "real picture of another size", "empty mask", "full mask", "missing")[
                kind - len(BROKEN)
            ]
            file = files[2] if what.startswith("real") else files[1]
            _damage_sample(file, what, number)
        expected[str(file)] = what
    (root / "train.txt").write_text("\n".join(names))
    return expected


def _damage_sample(file: Path, what: str, seed: int) -> None:
    if what == "missing":
        file.unlink()
    elif what == "real picture of another size":
        noise(seed, (SIDE + 1, SIDE)).save(file)
    elif what == "mask of another size":
        mask(SIDE * 2).save(file)
    else:
        mask(value=127 if what == "empty mask" else 255, ground=0 if what == "empty mask" else 255).save(file)


@cache
def _good_files() -> tuple[bytes, bytes, bytes]:
    return encoded(noise(1), "PNG"), encoded(mask(), "PNG"), encoded(noise(2), "PNG")


def _write_good(root: Path, identity: str) -> None:
    names = (f"{identity}_1_1.png", f"{identity}_1.png", f"{identity}.png")
    for part, name, data in zip(PARTS, names, _good_files(), strict=True):
        (root / part / name).write_bytes(data)
