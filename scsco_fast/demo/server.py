"""The page on an address of this machine, with what keeps other sites and other files out."""

import signal
import sys
import tempfile
import threading
import warnings
from pathlib import Path
from typing import Any

from scsco_fast.data.salient import load_u2netp
from scsco_fast.demo.address import HOST, PORT, check_address, check_megapixels, is_loopback, url_name
from scsco_fast.demo.guard import Guard
from scsco_fast.demo.page import STYLE, WAITING, build, require_gradio
from scsco_fast.errors import ScscoError
from scsco_fast.nn.unet import HarmonizationUNet

MAX_MEGAPIXELS = 24.0
MAX_UPLOAD = "64mb"


def serve(
    model: HarmonizationUNet,
    host: str = HOST,
    port: int = PORT,
    max_megapixels: float = MAX_MEGAPIXELS,
    segment: Path | None = None,
) -> None:
    """Show the page at http://host:port until the process is interrupted.

    Args:
        host: an address of this machine. One that is not loopback lets the whole network use the page, which asks for
            no password; a warning says so.
        max_megapixels: larger pictures are refused before they are decoded.
        segment: u2netp.onnx, with which the page offers to find the mask; None: it does not.

    Raises:
        ScscoError: gradio is not installed, the address cannot be bound, or `segment` cannot be used.
    """
    require_gradio()
    check_megapixels(max_megapixels)
    check_address(host, port)
    saliency = None if segment is None else load_u2netp(segment)
    if not is_loopback(host):
        warnings.warn(f"{host} is not loopback: whoever reaches it can use the page, without a password", stacklevel=2)
    with tempfile.TemporaryDirectory(prefix="scsco-demo-") as folder:
        page = build(model, Path(folder), max_megapixels, saliency)
        try:
            page.launch(**_launch_options(host, port))
        except OSError as error:
            raise ScscoError(
                f"{url_name(host)}:{port} cannot be bound ({error}); give another --port or --host"
            ) from error
        try:
            sys.stdout.write(f"the page is at http://{url_name(host)}:{port} (Ctrl-C ends it)\n")
            sys.stdout.flush()
            _wait()
        finally:
            page.close(verbose=False)


def _launch_options(host: str, port: int) -> dict[str, Any]:
    import gradio as gr
    from starlette.middleware import Middleware

    # Another site whose name is made to lead here is no name of this machine.
    hosts = frozenset({host.lower(), "localhost", "127.0.0.1", "::1"}) if is_loopback(host) else None
    return {
        "server_name": url_name(host),
        "server_port": port,
        "share": False,
        "quiet": True,
        "prevent_thread_lock": True,
        "max_file_size": MAX_UPLOAD,
        "allowed_paths": [],
        "strict_cors": True,
        "enable_monitoring": False,
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": False,
        "footer_links": [],
        "state_session_capacity": 2 * WAITING,
        "app_kwargs": {"middleware": [Middleware(Guard, hosts)]},
        "css": STYLE,
        "theme": gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
    }


def _wait() -> None:
    """Until Ctrl-C; SIGTERM ends the process in order too, so that uploads are deleted."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    threading.Event().wait()
