"""`scsco demo`: a page to try a model on one's own pictures, in a browser, on this machine.

Gradio serves it (the extra `demo`). A browser is given nothing but the page and what it has uploaded or made: no path
of this machine is allowed, and the page loads nothing from another host.

- `server` binds the address and keeps other sites and files out, `page` lays the page out and connects it, `fields` are
  its parts;
- `actions` is what the buttons do, `requests` checks what the fields hold, `jobs` harmonizes it;
- `stage` is the cut-out that is dragged, `painting` masks as paint, `attention` the map of a point, `samples` the
  sample pictures.
"""

from scsco_fast.demo.page import build, require_gradio
from scsco_fast.demo.server import POLICY, serve

__all__ = ["POLICY", "build", "require_gradio", "serve"]
