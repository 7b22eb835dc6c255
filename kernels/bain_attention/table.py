"""Configurations of the attention kernels by architecture, kind of product, channels and key width.

They stand in table.txt beside this file. Nothing is chosen at run time, so that every process and every
rank takes the same; `scsco bench --tune` alone rewrites the file.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

PATH = Path(__file__).with_suffix(".txt")
CHANNELS = (64, 128, 512)  # a line serves channels up to its own
KEYS = (64, 256)
KERNELS = ("fwd", "dq", "dkv", "dk", "dv")

Key = tuple[int, str, int, int]  # sm, "half" or "tf32" or "ieee", channels, keys


class Config(NamedTuple):
    block_m: int  # queries
    block_n: int  # keys
    block_c: int  # channels
    block_d: int  # columns of query and key that the logits take at a time
    warps: int
    stages: int


class Line(NamedTuple):
    by: str  # "fit": the widest that compiles without spilling; "timed": the fastest found on a device
    configs: Mapping[str, Config]  # dk and dv in one kernel (dkv), or in one each


def read(path: Path = PATH) -> dict[Key, Line]:
    """The table of a file."""
    table: dict[Key, Line] = {}
    header, *rows = (line.split() for line in path.read_text().splitlines() if not line.startswith("#"))
    for sm, kind, channels, keys, by, *texts in rows:
        pairs = zip(header[5:], texts, strict=True)
        configs = {name: Config(*map(int, text.split(","))) for name, text in pairs if text != "-"}
        table[int(sm), kind, int(channels), int(keys)] = Line(by, configs)
    return table


def write(table: Mapping[Key, Line], path: Path = PATH) -> None:
    """Replace a file by `table`, at once or not at all; its comments stay."""
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")] if path.exists() else []
    lines = [_text("sm", "kind", "C", "D", "by", *KERNELS)]
    for (sm, kind, channels, keys), (by, configs) in table.items():
        texts = (",".join(map(str, configs[name])) if name in configs else "-" for name in KERNELS)
        lines.append(_text(str(sm), kind, str(channels), str(keys), by, *texts))
    part = path.with_suffix(".part")
    part.write_text("\n".join([*comments, *lines]) + "\n")
    os.replace(part, path)


def _text(sm: str, kind: str, channels: str, keys: str, by: str, *configs: str) -> str:
    return (f"{sm:<4}{kind:<5}{channels:<4}{keys:<4}{by:<6}" + "".join(f"{c:<20}" for c in configs)).rstrip()


TABLE = read()
