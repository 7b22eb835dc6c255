"""What a picture file holds besides pixels: limits, and what is dropped.

Its bytes are counted by the lengths that the file states, before anything else of it is read: Pillow keeps all of them
in memory as soon as a file is opened, before any limit on pixels can be checked. A PNG of 4 pixels with a profile
of 3 GB took 3 GB.
"""

import os
import struct
import warnings
from typing import BinaryIO

MOST_METADATA = 256 * 2**20  # bytes; layered TIFFs hold a hundred megabytes of their editor's own data
MOST_OF_GIF = 4 * 2**20  # Pillow's time for comments grows with the square of their length: 10 MB take 7 s
MOST_WHOLE = 2**30  # bytes of a file that Pillow reads at once
MOST_PROFILE = 2**20  # bytes; Pillow reads no larger one from a PNG. Those of RGB printers have at most about as much
_IN_ONE_PIECE = (b"RIFF", b"ftyp")  # WebP, AVIF and HEIC
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
    elif head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        found = _tiff(head, file)
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
        if name not in (b"IDAT", b"fdAT"):
            found += length + 12
        file.seek(length + 4, os.SEEK_CUR)
    return found


def _jpeg(file: BinaryIO) -> int:
    """Of the segments before the pixels."""
    file.seek(2)
    found = 0
    while found <= MOST_METADATA:
        marker = file.read(2)
        if len(marker) < 2 or marker[0] != 0xFF or marker[1] == 0xDA:  # start of scan
            break
        (length,) = struct.unpack(">H", file.read(2))
        found += length + 2
        file.seek(max(0, length - 2), os.SEEK_CUR)
    return found


def _tiff(head: bytes, file: BinaryIO) -> int:
    """Of the values of the first page's tags."""
    order = "<" if head.startswith(b"II") else ">"
    big = 43 in head[2:4]
    if big:
        file.seek(8)
        (at,) = struct.unpack(f"{order}Q", file.read(8))
    else:
        (at,) = struct.unpack(f"{order}I", head[4:8])
    file.seek(at)
    count, entry = (f"{order}Q", f"{order}HHQ8x") if big else (f"{order}H", f"{order}HHI4x")
    (tags,) = struct.unpack(count, file.read(struct.calcsize(count)))
    found = 0
    for _ in range(min(tags, 2**16)):
        _, kind, values = struct.unpack(entry, file.read(struct.calcsize(entry)))
        found += _TIFF_SIZES.get(kind, 0) * values
    return found
