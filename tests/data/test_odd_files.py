"""What a reader of picture files meets in the wild: turned, animated, overloaded, damaged and impossible files."""

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import odd_files
import pytest
import tifffile
from malformed import chunk
from PIL import Image, PngImagePlugin, TiffImagePlugin, TiffTags

from scsco_fast.data import images, metadata
from scsco_fast.data.deep_color import read_deep
from scsco_fast.data.images import read_picture, stored_orientation, upright_size
from scsco_fast.data.masks import read_mask
from scsco_fast.errors import ScscoError
from scsco_fast.harmonizing.image_files import DeepColorError, read_image, write_image

# Format and options, the modes that it stores, and by how many levels its codec may move a pixel.
CARRIERS = [
    ("png", {}, ("1", "L", "P", "RGB", "RGBA", "LA", "I;16"), 0),
    ("tif", {}, ("1", "L", "P", "RGB", "RGBA", "I;16", "F"), 0),
    ("tif", {"compression": "tiff_deflate"}, ("1", "L", "P", "RGB", "RGBA", "I;16", "F"), 0),
    ("tif", {"compression": "tiff_lzw"}, ("L", "RGB"), 0),
    ("webp", {"lossless": True, "exact": True}, ("RGB", "RGBA"), 0),
    ("jpg", {"quality": 100, "subsampling": 0}, ("L", "RGB"), 3),
    ("avif", {"quality": 100, "subsampling": "4:4:4"}, ("RGB", "RGBA"), 4),
]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("suffix", "options", "mode", "near"),
    [(suffix, options, mode, near) for suffix, options, modes, near in CARRIERS for mode in modes],
    ids=lambda value: next(iter(value.values()), "raw") if isinstance(value, dict) else str(value),
)
def test_every_orientation_in_every_format_that_can_carry_it(
    suffix: str, options: dict[str, object], mode: str, near: int, orientation: int, tmp_path: Path
) -> None:
    upright = odd_files.picture(mode)
    # How a camera stores it: the inverse turn.
    back = {6: 8, 8: 6}.get(orientation, orientation)
    stored = upright.transpose(odd_files.TURNS[back]) if back in odd_files.TURNS else upright
    path = tmp_path / f"a.{suffix}"
    stored.save(path, exif=odd_files.exif(orientation), **options)  # type: ignore[arg-type]
    assert stored_orientation(path) == orientation
    assert upright_size(path) == (upright.height, upright.width)

    wanted = upright if mode in ("I;16", "F") else upright.convert("RGBA")
    found = read_image(path)
    assert np.abs(np.asarray(found.convert(wanted.mode), float) - np.asarray(wanted, float)).max() <= near
    assert not found.info.get("exif") or Image.Exif().get(0x0112) is None
    grey = np.asarray(upright, float) / (65535 if mode == "I;16" else 1)
    expected = grey if mode in ("I;16", "F") else np.asarray(wanted.convert("RGB").convert("L"), float) / 255
    if mode not in ("P", "1"):  # which are read as labels
        assert np.abs(read_mask(path) - expected).max() <= (near + 1) / 255
    np.testing.assert_allclose(
        read_picture(path).rgb, np.asarray(wanted.convert("RGB")) if mode not in ("I;16", "F") else
        np.repeat(np.rint(expected * 255)[..., None], 3, axis=2), atol=near,
    )  # fmt: skip


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_every_orientation_of_sixteen_bit_colour(suffix: str, orientation: int, tmp_path: Path) -> None:
    upright = np.asarray(odd_files.picture("RGB")).astype(np.uint16) * 257 + 3
    back = {6: 8, 8: 6}.get(orientation, orientation)
    rows, columns = np.indices(upright.shape[:2])
    turn = [np.asarray(Image.fromarray(each.astype(np.int32)).transpose(odd_files.TURNS[back]))  # of the pixels' places
            for each in (rows, columns)] if back in odd_files.TURNS else [rows, columns]  # fmt: skip
    stored = upright[turn[0], turn[1]]
    path = tmp_path / f"a.{suffix}"
    if suffix == "tif":
        tifffile.imwrite(path, stored, photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
    else:
        path.write_bytes(deep_png(stored, chunk(b"eXIf", odd_files.exif(orientation).tobytes()[6:])))
    np.testing.assert_array_equal(read_deep(path, 1000).pixels, upright)
    assert upright_size(path) == upright.shape[:2]


@pytest.mark.parametrize("value", [(6, 6), (0,), (9,), (65535,)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_an_orientation_that_is_none_turns_nothing(value: tuple[int, ...], dtype: type, tmp_path: Path) -> None:
    pixels = np.asarray(odd_files.picture("RGB")).astype(dtype)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, photometric="rgb", extratags=[(274, 3, len(value), value, True)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of a tag with two values
        read = np.asarray(read_image(path)) if dtype == np.uint8 else read_deep(path, 1000).pixels
        assert stored_orientation(path) == (6 if value == (6, 6) else 1)
    wanted = pixels
    if value == (6, 6):  # Pillow reads the first of two
        wanted = np.rot90(pixels, -1)
    np.testing.assert_array_equal(read, wanted)


def deep_png(pixels: np.ndarray, before: bytes = b"", after: bytes = b"") -> bytes:
    height, width, _ = pixels.shape
    rows = np.hstack([np.zeros((height, 1), np.uint8), pixels.astype(">u2").view(np.uint8).reshape(height, -1)])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(rows.tobytes()))
    return b"\x89PNG\r\n\x1a\n" + header + before + data + after + chunk(b"IEND", b"")


def hollow(path: Path, start: bytes, length: int, end: bytes = b"") -> Path:
    """A file of which the middle is a hole that takes no room on the disk."""
    with path.open("wb") as file:
        file.write(start)
        file.seek(length, os.SEEK_CUR)
        file.write(end)
        file.truncate()
    return path


HUGE = metadata.MOST_METADATA + 1


def huge_png(path: Path) -> None:
    whole = deep_png(np.zeros((2, 2, 3), np.uint16))
    hollow(path, whole[:-12] + struct.pack(">I", HUGE) + b"iCCP", HUGE, bytes(4) + whole[-12:])


def huge_jpeg(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"\xff\xd8")
        for _ in range(HUGE // 65000):
            file.write(b"\xff\xe1" + struct.pack(">H", 65535))
            file.seek(65533, os.SEEK_CUR)
        file.write(b"\xff\xda")


def huge_tiff(path: Path, order: str = "<", mark: bytes = b"") -> None:
    mark = mark or (b"II*\0" if order == "<" else b"MM\0*")
    tags = struct.pack(f"{order}H", 1) + struct.pack(f"{order}HHII", 34675, 7, HUGE, 40)
    hollow(path, mark + struct.pack(f"{order}I", 8) + tags + bytes(50), HUGE)


def huge_bigtiff(path: Path) -> None:
    tags = struct.pack("<Q", 1) + struct.pack("<HHQQ", 34675, 12, HUGE // 8 + 1, 60)
    hollow(path, b"II" + struct.pack("<HHHQ", 43, 8, 0, 16) + tags + bytes(50), HUGE)


def huge_gif(path: Path) -> None:
    whole = next(data for name, data in odd_files.whole_files() if name == "P.gif")
    at = whole.index(b"!\xfe")
    comment = b"!\xfe" + (b"\xff" + b"c" * 255) * (metadata.MOST_OF_GIF // 256 + 1) + b"\0"
    path.write_bytes(whole[:at] + comment + whole[at:])


def huge_group(path: Path) -> None:
    """A directory of EXIF tags, to which a small tag of the first page leads."""
    tags = struct.pack("<H", 1) + struct.pack("<HHII", 34665, 4, 1, 26) + bytes(4)
    group = struct.pack("<H", 1) + struct.pack("<HHII", 37500, 7, HUGE, 60)
    hollow(path, b"II" + struct.pack("<HI", 42, 8) + tags + group + bytes(50), HUGE)


def huge_before_a_damaged_group(path: Path) -> None:
    tags = (
        struct.pack("<H", 2) + struct.pack("<HHII", 34675, 7, HUGE, 60) + struct.pack("<HHII", 34665, 4, 1, 2**32 - 1)
    )
    hollow(path, b"II" + struct.pack("<HI", 42, 8) + tags + bytes(50), HUGE)


def huge_bmp(path: Path) -> None:
    hollow(path, b"BM" + bytes(12) + struct.pack("<I", HUGE), HUGE)


def huge_jpeg2000(path: Path, header: bytes = struct.pack(">I4s", HUGE, b"jp2h")) -> None:
    whole = odd_files.saved(odd_files.picture("RGB"), "JPEG2000")
    hollow(path, whole[: whole.index(b"jp2h") - 4] + header, HUGE)


def huge_avif(path: Path) -> None:
    hollow(path, struct.pack(">I4s4s", 24, b"ftyp", b"avif"), metadata.MOST_WHOLE)


def huge_webp(path: Path) -> None:
    hollow(path, b"RIFF\xff\xff\xff\xffWEBPVP8 ", metadata.MOST_WHOLE)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (huge_png, "more than 256 MiB of metadata"),
        (huge_jpeg, "more than 256 MiB of metadata"),
        (huge_tiff, "more than 256 MiB of metadata"),
        (lambda path: huge_tiff(path, ">"), "more than 256 MiB of metadata"),
        (lambda path: huge_tiff(path, "<", b"II\0*"), "more than 256 MiB of metadata"),
        (lambda path: huge_tiff(path, ">", b"MM*\0"), "more than 256 MiB of metadata"),
        (huge_bigtiff, "more than 256 MiB of metadata"),
        (huge_gif, "more than 4 MiB of metadata"),
        (huge_group, "more than 256 MiB of metadata"),
        (huge_before_a_damaged_group, "more than 256 MiB of metadata"),
        (huge_bmp, "more than 256 MiB of metadata"),
        (huge_jpeg2000, "more than 256 MiB of metadata"),
        (lambda path: huge_jpeg2000(path, struct.pack(">I4sQ", 1, b"jp2h", HUGE)), "more than 256 MiB of metadata"),
        (lambda path: huge_jpeg2000(path, struct.pack(">I4s", 0, b"jp2h")), "more than 256 MiB of metadata"),
        (huge_webp, "more than 1 GiB"),
        (huge_avif, "more than 1 GiB"),
    ],
)
def test_too_much_metadata_is_refused_before_it_is_read(
    make: object, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "a.png")  # type: ignore[operator]

    def opens(*_: object, **__: object) -> None:
        raise AssertionError("Pillow was given the file")

    monkeypatch.setattr(Image, "open", opens)
    for read in (read_picture, read_mask, read_image, lambda path: read_deep(path, 1000)):
        with pytest.raises(ScscoError, match=said):
            read(tmp_path / "a.png")


def test_metadata_of_whole_files_is_within_the_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a limit of 1000 bytes: every walk along a file counts what is metadata and passes over the pixels."""
    monkeypatch.setattr(metadata, "MOST_METADATA", 1000)
    monkeypatch.setattr(metadata, "MOST_OF_GIF", 1000)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99, 3), dtype=np.uint8))
    large = {"PNG": {}, "JPEG": {"quality": 100}, "TIFF": {}, "GIF": {}, "BMP": {}, "JPEG2000": {}}
    for kind, options in large.items():
        noise.save(tmp_path / "a", kind, **options)
        with (tmp_path / "a").open("rb") as file:
            assert metadata.too_much(file) is None, kind
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "c" * 1100)
    block = Image.Exif()
    block[0x010E] = "c" * 1100
    overloaded = {
        "PNG": {"pnginfo": text},
        "JPEG": {"exif": block},
        "TIFF": {"exif": block},
        "GIF": {"comment": "c" * 1100},
    }
    for kind, options in overloaded.items():
        noise.save(tmp_path / "a", kind, **options)  # type: ignore[arg-type]
        with (tmp_path / "a").open("rb") as file:
            assert metadata.too_much(file) is not None, kind


def test_many_small_parts_are_much_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "MOST_METADATA", 1000)
    whole = odd_files.saved(odd_files.picture("RGB"), "PNG")
    (tmp_path / "a.png").write_bytes(whole[:33] + chunk(b"teSt", b"") * 90 + whole[33:])
    with pytest.raises(ScscoError, match="MiB of metadata"):
        read_picture(tmp_path / "a.png")


def test_a_gif_whose_frame_has_its_own_colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way to what stands behind the frame leads over its colours."""
    whole = odd_files.saved(odd_files.picture("P"), "GIF")
    colours, frame = whole[13 : 13 + 3 * 64], whole[13 + 3 * 64 :]
    at = frame.index(b",") + 9
    start = (
        whole[:10]
        + bytes([whole[10] & 0x70])
        + whole[11:13]
        + frame[:at]
        + bytes([0x85])
        + colours
        + frame[at + 1 : -1]
    )
    path = tmp_path / "a.gif"
    path.write_bytes(start + b";")
    np.testing.assert_array_equal(read_picture(path).rgb, np.asarray(odd_files.picture("P").convert("RGB")))
    monkeypatch.setattr(metadata, "MOST_OF_GIF", 1000)
    assert read_picture(path).rgb.shape == (9, 13, 3)
    path.write_bytes(start + b"!\xfe" + (b"\xff" + b"c" * 255) * 4 + b"\0;")
    with pytest.raises(ScscoError, match="MiB of metadata"):
        read_picture(path)


def test_the_second_view_of_a_phones_jpeg_is_passed_over(tmp_path: Path) -> None:
    first = odd_files.picture("RGB")
    first.save(tmp_path / "a.mpo", save_all=True, append_images=[first.rotate(180)], quality=100, subsampling=0)
    os.replace(tmp_path / "a.mpo", tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as opened:
        assert (opened.format, opened.n_frames) == ("MPO", 2)  # type: ignore[attr-defined]
    np.testing.assert_allclose(read_picture(tmp_path / "a.jpg").rgb, np.asarray(first), atol=4)
    write_image(read_image(tmp_path / "a.jpg"), tmp_path / "b.jpg")
    with Image.open(tmp_path / "b.jpg") as written:
        assert written.format == "JPEG"
        np.testing.assert_allclose(np.asarray(written), np.asarray(first), atol=8)


def test_no_memory_to_turn_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise MemoryError

    odd_files.picture("RGB").save(tmp_path / "a.png", exif=odd_files.exif(6))
    monkeypatch.setattr("PIL.ImageOps.exif_transpose", fails)
    with pytest.raises(ScscoError, match=r"a\.png: not enough memory to decode the picture"):
        read_picture(tmp_path / "a.png")


def test_the_header_of_a_jpeg2000_is_found_behind_other_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = odd_files.saved(odd_files.picture("RGB"), "JPEG2000")
    at = whole.index(b"jp2h") - 4
    length = int.from_bytes(whole[at : at + 4])
    more = struct.pack(">I4s", 1100, b"free") + bytes(1092)
    large = whole[:at] + struct.pack(">I", length + 1100) + whole[at + 4 : at + length] + more + whole[at + length :]
    assert np.asarray(Image.open(io.BytesIO(large))).shape == (9, 13, 3)
    assert metadata.too_much(io.BytesIO(large)) is None
    monkeypatch.setattr(metadata, "MOST_METADATA", 1000)
    assert metadata.too_much(io.BytesIO(large)) is not None
    assert metadata.too_much(io.BytesIO(whole)) is None


@pytest.mark.parametrize("between", [b"\xff\xff\xff", b"\xff\xd0\xff\xd9", b"\0 junk", b"\xff\0", b"\xff\xf0"])
def test_what_may_stand_between_the_segments_of_a_jpeg_hides_none(
    between: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = odd_files.exif(1)
    block[0x010E] = "d" * 20_000
    whole = odd_files.saved(odd_files.picture("RGB"), "JPEG", exif=block)
    second = 4 + int.from_bytes(whole[4:6])
    path = tmp_path / "a.jpg"
    path.write_bytes(whole[:second] + between + whole[second:])
    assert Image.open(path).getexif()[0x010E] == "d" * 20_000
    monkeypatch.setattr(metadata, "MOST_METADATA", 60_000)  # less than a length that is read where none is
    assert metadata.too_much(io.BytesIO(path.read_bytes())) is None
    monkeypatch.setattr(metadata, "MOST_METADATA", 15_000)
    with pytest.raises(ScscoError, match="MiB of metadata"):
        read_picture(path)


def test_junk_in_a_jpeg_is_refused_before_pillow_steps_through_it(tmp_path: Path) -> None:
    whole = odd_files.saved(odd_files.picture("RGB"), "JPEG")
    second = 4 + int.from_bytes(whole[4:6])
    (tmp_path / "a.jpg").write_bytes(whole[:second] + bytes(2**20 + 1) + whole[second:])
    with pytest.raises(ScscoError, match="more than 256 MiB of metadata"):
        read_picture(tmp_path / "a.jpg")


def test_a_damaged_group_of_tags_costs_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its place is in the pixels, where it says that it has gigabytes, or outside of the file."""
    pixels = np.zeros((40, 50, 3), np.uint8)
    missing = struct.pack("<HHII", 37500, 7, 2**31, 2**31)
    group = struct.pack("<H", 2) + missing + struct.pack("<HHII", 37510, 7, 4000, 8)
    pixels.reshape(-1)[100 : 100 + len(group)] = np.frombuffer(group, np.uint8)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, photometric="rgb", extratags=[(65000, 4, 1, 0, True)])
    data = path.read_bytes()
    assert data.count(struct.pack("<HHII", 65000, 4, 1, 0)) == 1
    for place in (data.index(group), len(data) - 1, 2**32 - 1):
        exif = struct.pack("<HHII", 34665, 4, 1, place)  # which tifffile does not write
        path.write_bytes(data.replace(struct.pack("<HHII", 65000, 4, 1, 0), exif))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            np.testing.assert_array_equal(np.asarray(read_image(path)), pixels)
            with monkeypatch.context() as patched:  # Pillow reads nothing behind what it misses
                patched.setattr(metadata, "MOST_METADATA", 3000)
                np.testing.assert_array_equal(np.asarray(read_image(path)), pixels)


@pytest.mark.parametrize("behind", [b"\xf0" * 5, b"\xf0" * 50, None])
def test_what_stands_behind_the_end_of_a_png_is_nothing(behind: bytes | None, tmp_path: Path) -> None:
    """As in screenshots that were cropped in place: the end of the longer file is still there."""
    path, pixels = tmp_path / "a.png", np.asarray(odd_files.picture("RGB")).astype(np.uint16) * 257
    for whole in (odd_files.saved(odd_files.picture("RGB"), "PNG"), deep_png(pixels)):
        path.write_bytes(whole + (whole[41:] if behind is None else behind))
        np.testing.assert_array_equal(read_picture(path).rgb, pixels // 257)
    np.testing.assert_array_equal(read_deep(path, 1000).pixels, pixels)


def unwritable_exif(orientation: int) -> bytes:
    """With a name of software that is a fraction: it can be read, and Pillow cannot write it."""
    tags = struct.pack("<HHIHxx", 0x0112, 3, 1, orientation) + struct.pack("<HHII", 0x0131, 5, 1, 38)
    return b"Exif\0\0" + struct.pack("<2sHIH", b"II", 42, 8, 2) + tags + bytes(4) + struct.pack("<II", 1, 3)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "deep.png"])
def test_no_picture_is_turned_twice(suffix: str, tmp_path: Path) -> None:
    """Turned, it must not be written with the orientation that it had, also where Pillow cannot rewrite the block."""
    path, stored = tmp_path / f"a.{suffix}", odd_files.picture("RGB")
    upright = np.rot90(np.asarray(stored), -1)
    if suffix == "deep.png":
        pixels = np.asarray(stored).astype(np.uint16) * 257
        path.write_bytes(deep_png(pixels, chunk(b"eXIf", unwritable_exif(6)[6:])))
        found = read_deep(path, 1000)
        np.testing.assert_array_equal(found.pixels, upright.astype(np.uint16) * 257)
        assert found.exif is None
        return
    stored.save(path, exif=unwritable_exif(6))
    with pytest.warns(metadata.DroppedWarning, match=rf"a\.{suffix}: its EXIF block cannot be written and is dropped"):
        image = read_image(path)
    assert image.size == upright.shape[1::-1]
    write_image(image, tmp_path / f"b.{suffix}")
    assert stored_orientation(tmp_path / f"b.{suffix}") == 1
    assert upright_size(tmp_path / f"b.{suffix}") == upright.shape[:2]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "avif", "deep.png", "deep.tif"])
def test_an_orientation_that_is_in_xmp_alone(suffix: str, tmp_path: Path) -> None:
    path, stored = tmp_path / f"a.{suffix}", odd_files.picture("RGB")
    xmp = b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    text = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
    pixels = np.asarray(stored).astype(np.uint16) * 257
    match suffix:
        case "png":
            whole = odd_files.saved(stored, "PNG")
            path.write_bytes(whole[:33] + text + whole[33:])
        case "tif":
            stored.save(path, tiffinfo={700: xmp})
        case "deep.png":
            path.write_bytes(deep_png(pixels, text))
        case "deep.tif":
            tifffile.imwrite(path, pixels, photometric="rgb", extratags=[(700, 1, len(xmp), xmp, True)])
        case _:
            stored.save(path, xmp=xmp, quality=100)
    upright = np.rot90(np.asarray(stored), -1)
    assert stored_orientation(path) == 6
    assert upright_size(path) == upright.shape[:2]
    np.testing.assert_allclose(read_picture(path).rgb, upright, atol=24)  # JPEG and AVIF with fewer colours
    if suffix.startswith("deep"):
        np.testing.assert_array_equal(read_deep(path, 1000).pixels, upright.astype(np.uint16) * 257)
        return
    image = read_image(path)
    for written in ("png", "jpg", "webp", "tif", "avif"):
        write_image(image, tmp_path / f"b.{written}")
        assert stored_orientation(tmp_path / f"b.{written}") == 1
        assert read_image(tmp_path / f"b.{written}").size == upright.shape[1::-1]


@pytest.mark.parametrize("key", ["transparency", "icc_profile", "interlace", "exif", "comment", "xmp", "gamma"])
@pytest.mark.parametrize("late", [False, True])
def test_texts_of_a_png_with_names_that_mean_something_to_pillow(key: str, late: bool, tmp_path: Path) -> None:
    whole, text = odd_files.saved(odd_files.picture("RGB"), "PNG"), chunk(b"tEXt", key.encode() + b"\0abc")
    (tmp_path / "a.png").write_bytes(whole[:-12] + text + whole[-12:] if late else whole[:33] + text + whole[33:])
    image = read_image(tmp_path / "a.png")
    for suffix in ("png", "jpg", "webp", "tif", "avif"):
        write_image(image, tmp_path / f"b.{suffix}")
    np.testing.assert_array_equal(read_image(tmp_path / "b.png"), odd_files.picture("RGB"))
    assert read_picture(tmp_path / "a.png").alpha is None


@pytest.mark.parametrize(
    ("comment", "exif", "profile", "kept"),
    [(64_000, 0, 0, True), (66_000, 0, 0, False), (9, 65_533, 0, False), (9, 60_000, 0, True), (9, 0, 10**6, False)],
)
def test_a_comment_that_a_jpeg_cannot_hold(
    comment: int, exif: int, profile: int, kept: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    odd_files.picture("P").save(tmp_path / "a.gif", comment=b"c" * comment)
    image = read_image(tmp_path / "a.gif").convert("RGB")
    image.info.update(exif=b"e" * exif, icc_profile=b"p" * profile)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        write_image(image, tmp_path / "b.jpg")
    said = f"{tmp_path / 'b.jpg'}: the comment of {comment / 1e3:.0f} kB is dropped; a JPEG has no room for it"
    assert [str(each.message) for each in caught] == ([] if kept else [said])
    assert Image.open(tmp_path / "b.jpg").info.get("comment") == (b"c" * comment if kept else None)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("kinds", "accepted"),
    [((0, 1), True), ((0, 1, 1), True), ((0, 0), False), ((0, 1, 0), False), ((0, 2), False), ((1, 0), False),
     ((1, 1), False), ((0, *[1] * 99), True), ((0, *[1] * 100), False)],
)  # fmt: skip
@pytest.mark.parametrize(("order", "big"), [("<", False), (">", False), ("<", True)])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_smaller_copies_in_a_tiff_are_no_further_pages(
    kinds: tuple[int, ...], accepted: bool, order: str, big: bool, compression: str | None, tmp_path: Path
) -> None:
    """By the tag NewSubfileType: thumbnails of scanners, and the scales of a map."""
    pixels = np.asarray(odd_files.picture("RGB"))
    for each in (pixels, pixels.astype(np.uint16) * 257):
        with tifffile.TiffWriter(tmp_path / "a.tif", byteorder=order, bigtiff=big) as file:
            for number, kind in enumerate(kinds):
                page = each[:: number + 1, :: number + 1]
                file.write(page, photometric="rgb", subfiletype=kind, compression=compression)
        if not accepted:
            with pytest.raises(ScscoError, match="holds several frames or pages"):
                read_picture(tmp_path / "a.tif")
        elif each.dtype == np.uint8:
            np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.tif")), pixels)
        else:
            np.testing.assert_array_equal(read_deep(tmp_path / "a.tif", 1000).pixels, each)


def test_a_smaller_copy_that_says_so_in_two_bytes(tmp_path: Path) -> None:
    pixels = np.asarray(odd_files.picture("RGB"))
    with tifffile.TiffWriter(tmp_path / "a.tif", byteorder=">") as file:
        for kind in (0, 1):
            file.write(pixels, photometric="rgb", subfiletype=kind)
    data = (tmp_path / "a.tif").read_bytes()
    long, short = struct.pack(">HHII", 254, 4, 1, 1), struct.pack(">HHIHxx", 254, 3, 1, 1)
    assert data.count(long) == 1
    (tmp_path / "a.tif").write_bytes(data.replace(long, short))
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif").rgb, pixels)


def test_pages_of_a_tiff_in_a_circle(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for kind in (0, 1, 1):
            file.write(np.asarray(odd_files.picture("RGB")), photometric="rgb", subfiletype=kind)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        second, last = (file.pages[number].offset for number in (1, 2))
    data = bytearray((tmp_path / "a.tif").read_bytes())
    at = last + 2 + 12 * int.from_bytes(data[last : last + 2], "little")
    data[at : at + 4] = struct.pack("<I", second)
    (tmp_path / "a.tif").write_bytes(data)
    assert read_picture(tmp_path / "a.tif").rgb.shape == (9, 13, 3)


@pytest.mark.parametrize("max_pixels", [None, 1000])
def test_no_file_is_opened_while_another_thread_has_lifted_pillows_limit(
    max_pixels: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opens = Image.open

    def alone(*given: object, **options: object) -> Image.Image:
        assert images._PILLOWS_LIMIT.locked()
        return opens(*given, **options)  # type: ignore[arg-type]

    odd_files.picture("RGB").save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "open", alone)
    assert upright_size(tmp_path / "a.png", max_pixels) == (9, 13)


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_profile_that_unpacks_without_end(where: str, tmp_path: Path) -> None:
    bomb = chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(50_000_000), 9))
    pixels = np.asarray(odd_files.picture("RGB")).astype(np.uint16) * 257
    path = tmp_path / "a.png"
    path.write_bytes(deep_png(pixels, **{where: bomb}))
    if where == "before":
        with pytest.raises(ScscoError, match="more than is safe to unpack; save the picture without it"):
            read_deep(path, 1000)
        return
    with pytest.warns(metadata.DroppedWarning, match=r"a\.png: the colour profile is dropped, it has more than 1 MiB"):
        assert read_deep(path, 1000).icc_profile is None


@pytest.mark.parametrize("suffix", ["jpg", "tif", "webp"])
def test_a_large_profile_is_dropped_by_name(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    odd_files.picture("RGB").save(path, icc_profile=bytes(metadata.MOST_PROFILE + 1))
    with pytest.warns(metadata.DroppedWarning, match="the colour profile is dropped"):
        assert "icc_profile" not in read_image(path).info
    odd_files.picture("RGB").save(path, icc_profile=bytes(metadata.MOST_PROFILE))
    image = read_image(path)
    write_image(image, tmp_path / "b.png")
    assert read_image(tmp_path / "b.png").info["icc_profile"] == bytes(metadata.MOST_PROFILE)


@pytest.mark.parametrize("name", ["two.gif", "two.webp", "two.tif"])
def test_several_frames_are_refused_by_every_reader(name: str, tmp_path: Path) -> None:
    files = dict(odd_files.whole_files())
    (tmp_path / name).write_bytes(files[name])
    for read in (read_picture, read_mask, read_image, upright_size):
        with pytest.raises(ScscoError, match=f"{name}: holds several frames or pages; save the one to use"):
            read(tmp_path / name)
    (tmp_path / "one.gif").write_bytes(files["P.gif"])
    assert read_picture(tmp_path / "one.gif").rgb.shape == (9, 13, 3)


def test_a_gif_that_claims_gigabytes_takes_none(tmp_path: Path) -> None:
    """Pillow takes memory for a GIF's frame when it is opened, where a frame is to be wiped before the next."""
    path = tmp_path / "a.gif"
    frame = odd_files.picture("P")
    frame.save(path, disposal=2)
    data = bytearray(path.read_bytes())
    data[6:10] = struct.pack("<HH", 60000, 60000)
    at = data.index(b"," + struct.pack("<HHHH", 0, 0, 13, 9))
    data[at + 5 : at + 9] = struct.pack("<HH", 60000, 60000)
    path.write_bytes(bytes(data))
    with pytest.raises(ScscoError, match=r"claims more pixels than is safe to decode .*or raise --max-megapixels"):
        read_image(path)
    with pytest.raises(ScscoError, match=r"claims more pixels than is safe to decode .*or raise PIL"):
        upright_size(path)


@pytest.mark.parametrize("kind", ["loop", "pipe", "nothing", "NUL", "long"])
def test_paths_that_lead_to_no_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / {"NUL": "a\0b.png", "long": "a" * 300 + ".png"}.get(kind, "a.png")
    if kind in ("loop", "nothing"):
        path.symlink_to(path if kind == "loop" else tmp_path / "b.png")
    if kind == "pipe":
        os.mkfifo(path)
    said = {"pipe": "not a regular file", "nothing": "no such file"}.get(kind, "cannot be opened")
    for read in (read_picture, read_mask, read_image, upright_size, lambda path: read_deep(path, 1000)):
        with pytest.raises(ScscoError, match=said):
            read(path)


@pytest.mark.parametrize("number", range(len(list(odd_files.whole_files()))))
def test_damaged_files_are_read_or_refused_in_one_line(number: int, tmp_path: Path) -> None:
    """Twenty damages of each kind of file; `tests/fuzz_reader.py` does it for as long as one likes."""
    name, whole = list(odd_files.whole_files())[number]
    rng = np.random.default_rng(number)
    path = tmp_path / name
    path.write_bytes(whole)
    if not name.startswith("two"):
        assert read_picture(path).rgb.shape == (9, 13, 3) or "orient" in name or upright_size(path) == (13, 9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(20):
            path.write_bytes(odd_files.damaged(whole, rng))
            for read in (read_picture, read_mask, upright_size, stored_orientation):
                assert_read_or_refused(read, path)
            try:
                assert_read_or_refused(lambda path: read_image(path, 10**6), path)
            except DeepColorError:
                assert_read_or_refused(lambda path: read_deep(path, 10**6), path)


def assert_read_or_refused(read: object, path: Path) -> None:
    said = str(path)
    try:
        read(path)  # type: ignore[operator]
    except DeepColorError:
        raise
    except ScscoError as error:
        said = str(error)
    assert str(path) in said
    assert "\n" not in said


def test_a_tag_that_cannot_be_read_costs_the_tags_and_not_the_picture(tmp_path: Path) -> None:
    """A description of the wrong type: Pillow's writer of EXIF blocks stumbles over it."""
    path = tmp_path / "a.tif"
    pixels = np.asarray(odd_files.picture("RGB"))
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags.tagtype[0x0131] = TiffTags.RATIONAL
    tags[0x0131] = TiffImagePlugin.IFDRational(1, 3)
    Image.fromarray(pixels).save(path, tiffinfo=tags)
    with pytest.warns(metadata.DroppedWarning, match=r"a\.tif: its tags cannot be read and are dropped"):
        image = read_image(path)
    np.testing.assert_array_equal(np.asarray(image), pixels)
    assert "exif" not in image.info
