"""`scsco serve`: a process that keeps the model loaded and does what it is asked over a local socket.

HTTP on a Unix domain socket, so that `curl --unix-socket` and any HTTP library can use it, and no other machine and no
web page can. Threads read the requests and write the answers; all work is done in the main thread, one request after
the other, so that a signal ends it in order and what it prints belongs to one request.

What a request does is not known here: `serve` is given a function for it.
"""

import json
import os
import queue
import signal
import socket
import socketserver
import sys
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import Any

from scsco_fast.errors import ScscoError

MAX_BODY = 1 << 20  # bytes of a request
PATIENCE = 10.0  # seconds that a client may take to send its request, or to take its answer
LONGEST_IDLE = 525_600.0  # minutes, a year

# Arguments of a command to its exit code, what it printed, and its errors and warnings.
Run = Callable[[list[str]], tuple[int, str, str]]
# A status of HTTP, and what is sent as JSON.
Answer = tuple[int, Mapping[str, Any]]


def default_socket() -> Path:
    """Where the server listens, and its clients look, if nothing else is said.

    SCSCO_SOCKET; else scsco/serve.sock in XDG_RUNTIME_DIR, if that is a folder; else scsco-fast/serve/serve.sock in
    XDG_CACHE_HOME or ~/.cache. The plug-in for GIMP has the same rule.
    """
    if given := os.environ.get("SCSCO_SOCKET"):
        return Path(given)
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.path.isdir(runtime):
        return Path(runtime) / "scsco" / "serve.sock"
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "scsco-fast" / "serve" / "serve.sock"


def serve(path: Path, run: Run, facts: Mapping[str, Any], idle_minutes: float = 0) -> None:
    """Answer requests on the socket `path` until SIGTERM, Ctrl-C, or nothing was asked for `idle_minutes`.

    `POST /harmonize` with `{"arguments": [...]}` calls `run`, whose three results are the answer: status 200 where the
    exit code is 0, else 422. `GET /` answers `facts`. All that cannot be read as a request is answered with a status of
    its own and the same three keys.

    Args:
        path: the socket. It is made with mode 0600, its folder, if that is missing, with 0700. One that a killed
            server left behind is replaced.
        run: called in this thread, one request at a time. What it raises is answered with status 500.
        facts: what JSON can hold.
        idle_minutes: 0 is for ever.

    Raises:
        ScscoError: another server answers there, the path cannot be used, or the system has no such sockets.
        KeyboardInterrupt: after Ctrl-C, when the socket is gone.
    """
    check_idle(idle_minutes)
    server = listen(path.absolute(), facts)
    before = {number: signal.signal(number, _stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        sys.stdout.write(f"listening on {server.path} (Ctrl-C ends it)\n")
        sys.stdout.flush()
        work(server, run, idle_minutes * 60)
    except _Stopped as stopped:
        if stopped.number == signal.SIGINT:
            raise KeyboardInterrupt from None
    finally:
        server.end()
        for number, handler in before.items():
            signal.signal(number, handler)


def check_idle(minutes: float) -> None:
    """Refuse what is no time to wait for requests.

    Examples:
        >>> check_idle(-1)
        Traceback (most recent call last):
        scsco_fast.errors.ScscoError: --idle-minutes is -1; wanted 0 (for ever) to 525600
    """
    if not 0 <= minutes <= LONGEST_IDLE:
        raise ScscoError(f"--idle-minutes is {minutes:g}; wanted 0 (for ever) to {LONGEST_IDLE:g}")


def listen(path: Path, facts: Mapping[str, Any]) -> "Server":
    """A server that accepts requests, which `work` then answers.

    Raises:
        ScscoError: as `serve`.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise ScscoError("this system's Python has no Unix domain sockets; use scsco harmonize without scsco serve")
    mask = os.umask(0o077)  # from the first moment nobody else can open it; the folder gets 0700
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _make_room(path)
        os.umask(0o177)
        return Server(path, facts)
    except OSError as error:
        raise ScscoError(
            f"{path}: no socket can be made there ({error.strerror or error}); give another --socket or SCSCO_SOCKET"
        ) from error
    finally:
        os.umask(mask)


def work(server: "Server", run: Run, idle_seconds: float = 0) -> None:
    """Do what is asked, one request at a time, until nothing was asked for `idle_seconds` (0 is for ever)."""
    while True:
        try:
            request = server.requests.get(timeout=idle_seconds or None)
        except queue.Empty:
            return
        request.answer.set_result(_answer(run, request.arguments))


def _answer(run: Run, arguments: list[str]) -> Answer:
    """What `run` returns; a failure of the program has its traceback in the server's own log."""
    try:
        code, output, errors = run(arguments)
    except MemoryError:
        return 500, _error("not enough memory for this", code=1)
    except Exception:
        traceback.print_exc()
        return 500, _error("the server failed at this; what it printed in its own terminal says how", code=1)
    return (200 if code == 0 else 422), {"code": code, "output": output, "errors": errors}


def _error(text: str, code: int = 2) -> dict[str, Any]:
    return {"code": code, "output": "", "errors": f"scsco: error: {text}\n"}


class _Stopped(BaseException):
    """A signal asks the process to end. No `except` of a command may take it for its own."""

    def __init__(self, number: int) -> None:
        self.number = number


def _stop(number: int, frame: FrameType | None) -> None:
    raise _Stopped(number)


@dataclass(frozen=True)
class _Request:
    arguments: list[str]
    answer: "Future[Answer]" = field(default_factory=Future)


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Reads requests in threads and puts them into `requests`.

    Attributes:
        path: the socket.
        facts: the answer to `GET /`.
        requests: what is to be done, in the order in which it came.
    """

    address_family = getattr(socket, "AF_UNIX", socket.AF_INET)  # `listen` refuses where there is none
    daemon_threads = True  # none outlives the main thread
    request_queue_size = 64

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        self.path, self.facts = path, facts
        self.requests: queue.SimpleQueue[_Request] = queue.SimpleQueue()
        self._log = sys.stderr  # a request's stderr is captured while it is worked on
        super().__init__(os.fspath(path), _Handler)  # type: ignore[arg-type]
        self._inode = path.stat().st_ino
        Thread(target=self.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()

    def end(self) -> None:
        """Remove the socket, if it is still this server's, and accept nothing more."""
        with suppress(OSError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""
        if not isinstance(sys.exception(), OSError):
            traceback.print_exc(file=self._log)


class _RequestError(Exception):
    """A request that cannot be read: the status, and why."""

    def __init__(self, status: int, reason: str) -> None:
        self.status, self.reason = status, reason


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version, server_version, sys_version = "HTTP/1.1", "scsco", ""
    timeout = PATIENCE

    def do_GET(self) -> None:
        if self.path != "/":
            return self.send_error(404, _WANTED)
        self._send(200, self.server.facts)

    def do_POST(self) -> None:
        if self.path != "/harmonize":
            return self.send_error(404, _WANTED)
        try:
            request = _Request(_arguments(self._body()))
        except _RequestError as error:
            return self.send_error(error.status, error.reason)
        self.server.requests.put(request)
        self._send(*request.answer.result())

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """An error in the form of an answer; the standard library's own ones come here too."""
        self._send(int(code), _error(message or HTTPStatus(code).phrase))

    def log_message(self, *_: object) -> None:
        """Nothing: what is printed while a request is worked on is taken for its own."""

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise _RequestError(411, "the request says no Content-Length; send the JSON as a whole")
        if int(length) > MAX_BODY:
            raise _RequestError(413, f"the request has {length} bytes; at most {MAX_BODY} are read")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise ConnectionResetError
        return body

    def _send(self, status: int, content: Mapping[str, Any]) -> None:
        body = json.dumps(content).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


_WANTED = "wanted GET / or POST /harmonize"


def _arguments(body: bytes) -> list[str]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise _RequestError(400, 'the request is no JSON; wanted {"arguments": ["--image", "/a.png", ...]}') from None
    found = content.get("arguments") if isinstance(content, dict) else None
    if not isinstance(found, list) or not all(isinstance(text, str) and "\0" not in text for text in found):
        raise _RequestError(400, 'the request holds no list of texts "arguments"; wanted ["--image", "/a.png", ...]')
    return found


def _make_room(path: Path) -> None:
    """Remove a socket on which nobody answers."""
    if not os.path.lexists(path):
        return
    if not path.is_socket():
        raise ScscoError(f"{path}: is there and no socket; give another --socket or SCSCO_SOCKET")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        try:
            client.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise ScscoError(f"{path}: another server answers there; end it, or give another --socket or SCSCO_SOCKET")
