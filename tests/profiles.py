"""Colour profiles of the matrix kind, made of their primaries, and their colours as numpy computes them."""

import struct

import numpy as np

# Columns are the primaries' XYZ, adapted to D50, as profiles hold them.
PRIMARIES = {
    "sRGB": [(0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410)],
    "Display P3": [(0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)],
    "Adobe RGB": [(0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)],
    "ProPhoto RGB": [(0.79767, 0.28804, 0.00000), (0.13519, 0.71188, 0.00000), (0.03133, 0.00008, 0.82489)],
}
GAMMA = {"sRGB": 2.2, "Display P3": 2.2, "Adobe RGB": 2.2, "ProPhoto RGB": 1.8}


def icc_profile(name: str) -> bytes:
    """Of ICC version 2, with a power for its curve."""
    curve = b"curv" + struct.pack(">4xIHxx", 1, round(GAMMA[name] * 256))
    text = b"text" + bytes(4) + b"none\0\0\0\0"
    title = name.encode() + b"\0"
    description = b"desc" + bytes(4) + struct.pack(">I", len(title)) + title + bytes(78)
    white = (0.9642, 1.0, 0.8249)
    tags = {b"desc": description, b"cprt": text, b"wtpt": _xyz(white)}
    tags |= {
        letter + b"XYZ": _xyz(primary) for letter, primary in zip((b"r", b"g", b"b"), PRIMARIES[name], strict=True)
    }
    tags |= {letter + b"TRC": curve for letter in (b"r", b"g", b"b")}
    table, body, at = b"", b"", 128 + 4 + 12 * len(tags)
    for key, value in tags.items():
        table += key + struct.pack(">II", at + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    content = struct.pack(">I", len(tags)) + table + body
    header = struct.pack(">I4xI4s4s4s", 128 + len(content), 0x02100000, b"mntr", b"RGB ", b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", *(round(value * 65536) for value in white))
    return header.ljust(128, b"\0") + content


def moved(levels: np.ndarray, given: str, wanted: str) -> np.ndarray:
    """(N, 3) levels from 0 to 255 of one profile in another's."""
    light = (levels / 255) ** GAMMA[given]
    xyz = light @ np.array(PRIMARIES[given])
    return 255 * (xyz @ np.linalg.inv(np.array(PRIMARIES[wanted]))).clip(0, 1) ** (1 / GAMMA[wanted])


def _xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))
