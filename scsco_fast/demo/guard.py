"""What keeps other sites out of the page: they can have a visitor's browser ask, but not in this page's name."""

from collections.abc import Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

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
_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


class Guard:
    """ASGI middleware: `HEADERS` on every answer, and no answer but a refusal to what another site has asked for.

    Args:
        hosts: the names that the page answers to; None is any.
    """

    def __init__(self, app: Any, hosts: frozenset[str] | None = None) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        async def send_with(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *extra]
            await send(message)

        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        given = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refused = refusal(given, str(scope.get("method", "GET")), self.hosts)
        if refused is None:
            return await self.app(scope, receive, send_with)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        status, text = refused
        plain = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
        await send_with({"type": "http.response.start", "status": status, "headers": plain})
        await send({"type": "http.response.body", "body": text.encode()})


def refusal(headers: MutableMapping[str, str], method: str, hosts: Iterable[str] | None) -> tuple[int, str] | None:
    """Why a request is refused, as HTTP's status and a line; None for one that is answered.

    A browser says where a request comes from: `Origin`, and newer ones `Sec-Fetch-Site`. A program that is no browser
    says neither, and is answered. A link on another site may lead to the page.

    Args:
        headers: names in small letters.
        hosts: the names that the page answers to; None is any. A foreign site's own name can be made to lead here.

    Examples:
        >>> refusal({"host": "localhost:7860", "origin": "http://elsewhere.example"}, "POST", None)
        (403, 'another site may not use this page')
        >>> refusal({"host": "localhost:7860", "origin": "http://localhost:7860"}, "POST", {"localhost"})
    """
    name = _site(f"//{headers.get('host', '')}")
    if hosts is not None and (name is None or name[0] not in hosts):
        return 400, "this page answers to no such host name"
    origin = headers.get("origin")
    if origin is not None:
        scheme = origin.partition(":")[0].lower()
        # A proxy in front of the page may give it another Host; the first one is then here. No site can set it: the
        # browser would ask with an OPTIONS first, which has the site's Origin too.
        own = {_site(f"//{headers.get(header, '')}", scheme) for header in ("host", "x-forwarded-host")}
        if _site(origin, scheme) is None or _site(origin, scheme) not in own:
            return 403, "another site may not use this page"
    navigates = method in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"
    framed = headers.get("sec-fetch-dest") not in (None, "document")
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and (framed or not navigates):
        return 403, "another site may not use this page"
    return None


def _site(url: str, scheme: str = "http") -> tuple[str, int] | None:
    """Host and port; None where there are none."""
    try:
        parts = urlsplit(url)
        return None if not parts.hostname else (parts.hostname, parts.port or _PORTS.get(scheme, 0))
    except ValueError:
        return None
