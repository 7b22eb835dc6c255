"""`scsco demo`: a page to try a model on one's own pictures, in a browser, on this machine.

Gradio serves it (the extra `demo`). A browser is given nothing but the page and what it has uploaded or made: no path
of this machine is allowed, and the page loads nothing from another host.

- `server` serves the page at an `address` and keeps other files out, `guard` other sites;
- `page` lays it out and connects it, `fields` are its parts;
- `actions` is what the buttons do, `requests` checks what the fields hold, `jobs` harmonizes it;
- `stage` is the cut-out that is dragged, `painting` masks as paint, `attention` the map of a point, `samples` the
  sample pictures.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers; `_HOME` is what runs
    from scsco_fast.demo.guard import POLICY
    from scsco_fast.demo.page import build, require_gradio
    from scsco_fast.demo.server import serve

__all__ = ["POLICY", "build", "require_gradio", "serve"]

# Where each name comes from. It is imported when it is used: the address is checked without torch.
_HOME = {"POLICY": "guard", "build": "page", "require_gradio": "page", "serve": "server"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
