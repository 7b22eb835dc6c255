"""What can be checked of the page before it is loaded: its address, its limit, its packages. No gradio, no torch."""

import ipaddress
import socket

from scsco_fast.errors import ScscoError
from scsco_fast.system.extras import require

HOST, PORT = "127.0.0.1", 7860


def check_address(host: str, port: int) -> None:
    """Bind the address and let it go again.

    Raises:
        ScscoError: no port, no address of this machine, or one that is taken.

    Examples:
        >>> check_address("127.0.0.1", 99999)
        Traceback (most recent call last):
        scsco_fast.errors.ScscoError: --port is 99999; wanted 1 to 65535
    """
    if not 1 <= port <= 65535:
        raise ScscoError(f"--port is {port}; wanted 1 to 65535")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was used just now is free
            listener.bind(address)
    except UnicodeError as error:
        raise ScscoError(f"--host is {host[:80]!r}, which is no name of a machine; give an address, {HOST}") from error
    except OSError as error:
        raise ScscoError(
            f"{url_name(host)}:{port} cannot be bound ({error.strerror or error}); give another --port or --host"
        ) from error


def check_megapixels(most: float) -> None:
    """Refuse a limit that no picture is within."""
    if not most > 0:
        raise ScscoError(f"--max-megapixels is {most:g}; wanted more than 0")


def require_packages() -> None:
    """Refuse to go on without the packages of the page."""
    require("scsco demo", "demo", "gradio", "matplotlib", "scikit-image")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address.

    Examples:
        >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("0.0.0.0")
        (True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def url_name(host: str) -> str:
    """A host as it stands in a URL.

    Examples:
        >>> url_name("::1")
        '[::1]'
    """
    return f"[{host}]" if ":" in host else host
