"""Small whole picture files of every kind that is read, and ways to damage them."""

import io
from collections.abc import Iterator

import numpy as np
import tifffile
from PIL import Image

SIZE = (13, 9)  # width and height
TURNS = {  # what makes each EXIF orientation upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LOSSLESS = {"lossless": True, "exact": True}


def exif(orientation: int = 6) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    block[0x010E] = "a description"
    return block


def picture(mode: str, size: tuple[int, int] = SIZE) -> Image.Image:
    """Of smooth colours, so that codecs with loss keep it nearly, and with no two rows or columns alike."""
    y, x = np.mgrid[: size[1], : size[0]] / max(*size, 2)
    rgba = np.stack([200 * x + 20, 180 * y + 40, 100 * (x + y) + 9, 255 - 90 * x], axis=2).round().astype(np.uint8)
    if mode in ("I;16", "F"):
        grey = rgba[:, :, 0]
        return Image.fromarray(grey.astype(np.uint16) * 257 if mode == "I;16" else grey.astype(np.float32) / 255)
    image = Image.fromarray(rgba)
    return image.convert("RGB").quantize(64) if mode == "P" else image.convert(mode)


def whole_files() -> Iterator[tuple[str, bytes]]:
    """A name with a suffix, and the file's bytes."""
    for mode in ("1", "L", "P", "RGB", "RGBA", "LA", "I;16"):
        yield f"{mode}.png", saved(picture(mode), "PNG", exif=exif(), icc_profile=b"not a profile")
    for mode in ("L", "RGB", "CMYK"):
        yield f"{mode}.jpg", saved(picture(mode), "JPEG", exif=exif(), icc_profile=b"not a profile")
    yield "progressive.jpg", saved(picture("RGB"), "JPEG", progressive=True)
    for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "F"):
        for compression in (None, "tiff_lzw", "tiff_deflate", "packbits"):
            yield f"{mode}-{compression}.tif", saved(picture(mode), "TIFF", compression=compression, exif=exif())
    yield "jpeg.tif", saved(picture("RGB"), "TIFF", compression="jpeg")
    for mode in ("RGB", "RGBA"):
        yield f"{mode}.webp", saved(picture(mode), "WEBP", exif=exif(), icc_profile=b"not a profile", **_LOSSLESS)
        yield f"{mode}.avif", saved(picture(mode), "AVIF", exif=exif())
    yield "lossy.webp", saved(picture("RGB"), "WEBP")
    for mode in ("1", "L", "P", "RGB"):
        yield f"{mode}.bmp", saved(picture(mode), "BMP")
    yield "P.gif", saved(picture("P"), "GIF", comment=b"a comment")
    yield "two.gif", saved(picture("P"), "GIF", save_all=True, append_images=[picture("L")])
    yield "two.webp", saved(picture("RGB"), "WEBP", save_all=True, append_images=[picture("L").convert("RGB")])
    yield "two.tif", saved(picture("RGB"), "TIFF", save_all=True, append_images=[picture("L")])
    yield "RGB.ppm", saved(picture("RGB"), "PPM")
    yield "RGB.jp2", saved(picture("RGB"), "JPEG2000")
    deep = np.asarray(picture("RGBA")).astype(np.uint16) * 257
    for channels, photometric in ((3, "rgb"), (4, "rgb")):
        for compression in (None, "zlib"):
            file = io.BytesIO()
            tifffile.imwrite(file, deep[..., :channels], photometric=photometric, compression=compression)
            yield f"deep{channels}-{compression}.tif", file.getvalue()


def damaged(whole: bytes, rng: np.random.Generator) -> bytes:
    """The file cut short, with bytes changed, extreme lengths written over it, or a part of it doubled or left out."""
    data = bytearray(whole)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(len(data)))
        match int(rng.integers(6)):
            case 0:
                del data[at:]
            case 1:
                for place in rng.integers(len(data), size=int(rng.integers(1, 9))):
                    data[place] = int(rng.integers(256))
            case 2:
                length = int(rng.choice([2, 4, 8]))
                value = [0, 1, 2 ** (8 * length) - 1, 2 ** (8 * length - 1), 2 ** (8 * length - 1) - 1][rng.integers(5)]
                data[at : at + length] = value.to_bytes(length, "big" if rng.random() < 0.5 else "little")
            case 3:
                data[at:at] = data[at : at + int(rng.integers(1, 200))]
            case 4:
                del data[at : at + int(rng.integers(1, 40))]
            case 5:
                data[at] ^= 1 << int(rng.integers(8))
        if not data:
            break
    return bytes(data)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **{name: value for name, value in options.items() if value is not None})  # type: ignore[arg-type]
    return file.getvalue()
