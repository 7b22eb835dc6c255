"""The page on an address of this machine, with what keeps other sites and other files out."""

import ipaddress
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from scsco_fast.data.salient import load_u2netp
from scsco_fast.demo.page import STYLE, WAITING, build, require_gradio
from scsco_fast.errors import ScscoError
from scsco_fast.nn.unet import HarmonizationUNet

HOST, PORT = "127.0.0.1", 7860
MAX_MEGAPIXELS = 24.0
MAX_UPLOAD = "64mb"

# The page's own scripts and styles are inline; from another host nothing may come, and none may frame it.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; worker-src 'self' blob:; font-src 'self' data:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


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
    if not max_megapixels > 0:
        raise ScscoError(f"--max-megapixels is {max_megapixels:g}; wanted more than 0")
    saliency = None if segment is None else load_u2netp(segment)
    if not _is_loopback(host):
        warnings.warn(f"{host} is not loopback: whoever reaches it can use the page, without a password", stacklevel=2)
    with tempfile.TemporaryDirectory(prefix="scsco-demo-") as folder:
        page = build(model, Path(folder), max_megapixels, saliency)
        try:
            page.launch(**_launch_options(host, port))
        except OSError as error:
            raise ScscoError(f"{host}:{port} cannot be bound ({error}); give another --port or --host") from error
        try:
            sys.stdout.write(f"the page is at http://{host}:{port} (Ctrl-C ends it)\n")
            sys.stdout.flush()
            _wait()
        finally:
            page.close(verbose=False)


class _WithHeaders:
    """ASGI middleware: `HEADERS` on every answer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        async def send_with(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *extra]
            await send(message)

        await self.app(scope, receive, send_with)


def _launch_options(host: str, port: int) -> dict[str, Any]:
    import gradio as gr
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    middleware = [Middleware(_WithHeaders)]
    if _is_loopback(host) and ":" not in host:
        # Another site whose name is made to lead here is no name of this machine.
        middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=[host, "localhost", "127.0.0.1"]))
    return {
        "server_name": host,
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
        "app_kwargs": {"middleware": middleware},
        "css": STYLE,
        "theme": gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
    }


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _wait() -> None:
    """Until Ctrl-C; SIGTERM ends the process in order too, so that uploads are deleted."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    threading.Event().wait()
