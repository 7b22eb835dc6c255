"""A trained network as a file that other programs run: `export` and `export_program`, of `program.py`.

They are imported when they are first used: the command line checks a format without waiting for torch.
"""

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    if name not in ("export", "export_program"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.program"), name)
