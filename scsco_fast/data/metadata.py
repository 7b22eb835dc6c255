"""What a picture file holds besides pixels: limits, and what is dropped.

Its bytes are counted by the lengths that the file states, before anything else of it is read: Pillow keeps all of them
in memory as soon as a file is opened, before any limit on pixels can be checked. A PNG of 4 pixels with a profile
of 3 GB took 3 GB.
"""

import os
import struct
import warnings
from contextlib import suppress
from typing import Any, BinaryIO, NamedTuple

MOST_METADATA = 256 * 2**20  # bytes; layered TIFFs hold a hundred megabytes of their editor's own data
MOST_OF_GIF = 4 * 2**20  # Pillow's time for comments grows with the square of their length: 10 MB take 7 s
MOST_WHOLE = 2**30  # bytes of a file that Pillow reads at once
MOST_PROFILE = 2**20  # bytes; Pillow reads no larger one from a PNG. Those of RGB printers have at most about as much
_JUNK = 256  # for how many bytes one counts between a JPEG's segments, and a PNG's chunk: Pillow takes them one by one
_NO_LENGTH = b"\x00\xc8\xff" + bytes(range(0xD0, 0xDA)) + bytes(range(0xF0, 0xFE))  # as Pillow takes these markers
_IN_ONE_PIECE = (b"RIFF", b"ftyp")  # WebP, AVIF and HEIC
# As Pillow reads them: of little and big endian, each also with a wrong second half, and BigTIFF.
_TIFF_MARKS = (b"II*\0", b"MM\0*", b"II\0*", b"MM*\0", b"II+\0", b"MM\0+")
_TIFF_GROUPS = (34665, 34853, 40965)  # Exif, GPS and interoperability: directories of their own
_SUBFILE = 254  # NewSubfileType, of which the lowest bit says that a page is a smaller copy of another
_MOST_COPIES = 99  # pages
_NUMBERS = {3: "H", 16: "Q", 17: "Q", 18: "Q"}  # types of tags that are not read as 4 bytes
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


class DroppedWarning(UserWarning):
    """Something of a picture file is not kept."""


def kept_profile(profile: bytes | None, name: str) -> bytes | None:
    """The colour profile, if it is not too large to be written; else None, with a `DroppedWarning`."""
    if profile is None or len(profile) <= MOST_PROFILE:
        return profile or None
    warnings.warn(
        f"{name}: the colour profile is dropped, it has more than {MOST_PROFILE / 2**20:g} MiB; colours may look "
        "different",
        DroppedWarning,
        stacklevel=2,
    )
    return None


def too_much(file: BinaryIO) -> str | None:
    """Why a picture file holds more than is safe to read besides its pixels; None where it does not.

    Args:
        file: an open file, whose position is moved. Damaged files are for their decoder to refuse.

    Examples:
        >>> import io
        >>> too_much(io.BytesIO(b"\\x89PNG\\r\\n\\x1a\\n" + struct.pack(">I4s", 2**31, b"iCCP"))) is None
        False
    """
    file.seek(0)
    head = file.read(12)
    if head[:4] in _IN_ONE_PIECE or head[4:8] in _IN_ONE_PIECE:
        size = file.seek(0, os.SEEK_END)
        return f"the file has more than {MOST_WHOLE / 2**30:g} GiB" if size > MOST_WHOLE else None
    try:
        found, most = _bytes_of(head, file)
    except struct.error:  # it ends in the middle of a length
        return None
    return f"it holds more than {most / 2**20:g} MiB of metadata" if found > most else None


def _bytes_of(head: bytes, file: BinaryIO) -> tuple[int, int]:
    """What was found, and what is too much; counting may end there."""
    if head.startswith(b"GIF8"):
        return _gif(file), MOST_OF_GIF
    found = 0
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        found = _png(file)
    elif head.startswith(b"\xff\xd8"):
        found = _jpeg(file)
    elif head[:4] in _TIFF_MARKS:
        found = _tiff(head, file)
    elif head.startswith(b"BM"):
        file.seek(14)
        (found,) = struct.unpack("<I", file.read(4))  # its header
    elif head.startswith(b"\0\0\0\x0cjP  "):
        found = _jpeg2000(file)
    return found, MOST_METADATA


def _gif(file: BinaryIO) -> int:
    """Of all extensions."""
    file.seek(10)
    found = 0
    (flags,) = struct.unpack("B2x", file.read(3))
    file.seek(_colours(flags), os.SEEK_CUR)
    while found <= MOST_OF_GIF and (kind := file.read(1)) in (b"!", b","):
        if kind == b"!":
            file.seek(1, os.SEEK_CUR)
            found += _skip_blocks(file)
        else:
            (flags,) = struct.unpack("8xB", file.read(9))
            file.seek(_colours(flags) + 1, os.SEEK_CUR)
            _skip_blocks(file)
    return found


def _colours(flags: int) -> int:
    """Bytes of a GIF's colour table."""
    return 3 * 2 ** ((flags & 7) + 1) if flags & 128 else 0


def _skip_blocks(file: BinaryIO) -> int:
    found = 0
    while size := file.read(1):
        if size == b"\0":
            break
        file.seek(size[0], os.SEEK_CUR)
        found += size[0] + 1
    return found


def _png(file: BinaryIO) -> int:
    """Of all chunks but those of the pixels."""
    file.seek(8)
    found = 0
    while found <= MOST_METADATA and (start := file.read(8)):
        length, name = struct.unpack(">I4s", start)
        if name == b"IEND":  # what stands behind it is read by nobody
            break
        if name not in (b"IDAT", b"fdAT"):
            found += length + _JUNK
        file.seek(length + 4, os.SEEK_CUR)
    return found


def _jpeg(file: BinaryIO) -> int:
    """Of the segments before the pixels."""
    file.seek(2)
    found = 0
    before = b""
    while found <= MOST_METADATA and (byte := file.read(1)):
        marker, before = before == b"\xff" and byte not in _NO_LENGTH, byte
        if not marker:
            found += _JUNK if byte != b"\xff" else 1
            continue
        if byte == b"\xda":  # start of scan
            break
        (length,) = struct.unpack(">H", file.read(2))
        found += length + 2
        file.seek(max(0, length - 2), os.SEEK_CUR)
    return found


def _jpeg2000(file: BinaryIO) -> int:
    """Of the header's box; Pillow passes over other ones."""
    at = 0
    while True:
        file.seek(at)
        length, name = struct.unpack(">I4s", file.read(8))
        if length == 1:
            (length,) = struct.unpack(">Q", file.read(8))
        if name == b"jp2h" or length < 8:  # 0 is up to the end of the file
            return length if length else file.seek(0, os.SEEK_END)
        at += length


def _tiff(head: bytes, file: BinaryIO) -> int:
    """Of the values of the first page's tags, and of the groups of tags to which they lead."""
    first = _first_directory(head, file)
    found = first.found
    for at in first.groups:
        with suppress(struct.error, OverflowError):  # a damaged group costs the tags only
            found += _directory(file, at, first.order, first.big).found
    return found


def has_further_pictures(file: BinaryIO) -> bool:
    """Whether a TIFF has pages that are no smaller copies of its first, as its tag NewSubfileType says.

    Scanners and cameras put a thumbnail behind the picture, maps have the same picture at several scales.
    """
    file.seek(0)
    try:
        page = _first_directory(file.read(12), file)
        seen: set[int] = set()
        while page.following and page.following not in seen:
            if page.is_reduced and not seen:  # a thumbnail that stands before its picture
                return True
            seen.add(page.following)
            page = _directory(file, page.following, page.order, page.big)
            if not page.is_reduced or len(seen) > _MOST_COPIES:
                return True
    except struct.error:
        return True
    return False


class _Directory(NamedTuple):
    """Of a TIFF: the bytes of its tags' values, where groups of tags and the following page are (0: nowhere)."""

    order: str
    big: bool
    found: int
    groups: list[int]
    is_reduced: bool
    following: int


def _first_directory(head: bytes, file: BinaryIO) -> _Directory:
    order = "<" if head.startswith(b"II") else ">"
    big = head[2] == 43  # BigTIFF of big endian is another TIFF to Pillow (12.3), and refused as one
    file.seek(8 if big else 4)
    (at,) = _unpacked(file, f"{order}{'Q' if big else 'I'}")
    return _directory(file, at, order, big)


def _directory(file: BinaryIO, at: int, order: str, big: bool) -> _Directory:
    end = file.seek(0, os.SEEK_END)
    file.seek(at)
    wide = "Q" if big else "I"
    room = struct.calcsize(wide)
    (tags,) = _unpacked(file, f"{order}{'Q' if big else 'H'}")
    found, groups, is_reduced = 0, [], False
    entry = struct.Struct(f"{order}HH{wide}{room}s")
    for _ in range(min(tags, 2**16)):
        if len(data := file.read(entry.size)) < entry.size:
            break
        tag, kind, values, content = entry.unpack(data)
        size = _TIFF_SIZES.get(kind, 0) * values
        if size <= room:
            (value,) = struct.unpack_from(order + _NUMBERS.get(kind, "I"), content.ljust(8, b"\0"))
            if tag in _TIFF_GROUPS:
                groups.append(value)
            is_reduced = is_reduced or (tag == _SUBFILE and bool(value & 1))
            continue
        (start,) = struct.unpack(f"{order}{wide}", content)
        found += min(size, max(0, end - start))
        if start + size > end:  # Pillow reads no further
            return _Directory(order, big, found, groups, is_reduced, 0)
    data = file.read(room)
    following = int.from_bytes(data, "little" if order == "<" else "big") if len(data) == room else 0
    return _Directory(order, big, found, groups, is_reduced, following)


def _unpacked(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(layout, file.read(struct.calcsize(layout)))
