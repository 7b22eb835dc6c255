"""A client of `scsco serve`, and the server in a process of its own."""

import http.client
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PATIENCE = 120  # seconds


class Connection(http.client.HTTPConnection):
    """HTTP on a Unix domain socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


def get(path: Path, where: str = "/") -> tuple[int, Any]:
    """Status and content of a GET."""
    return _exchange(path, "GET", where, None)


def post(path: Path, body: bytes, where: str = "/harmonize", method: str = "POST") -> tuple[int, Any]:
    """Status and content of what a body is answered with."""
    return _exchange(path, method, where, body)


def ask(path: Path, *arguments: str) -> tuple[int, Any]:
    """Status and content of what the arguments of `scsco harmonize` are answered with."""
    return post(path, json.dumps({"arguments": arguments}).encode())


def _exchange(path: Path, method: str, where: str, body: bytes | None) -> tuple[int, Any]:
    connection = Connection(path)
    with suppress(BrokenPipeError):  # a refusal may come before the body is sent
        connection.request(method, where, body)
    answer = connection.getresponse()
    content = json.loads(answer.read())
    connection.close()
    return answer.status, content


@contextmanager
def started(command: list[str], **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has said that it listens; it is ended with the block, if it has not ended by then."""
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert line.startswith("listening on "), server.communicate()
        yield server
    finally:
        server.kill()
        server.communicate()


def scsco_serve(path: Path, *options: str) -> list[str]:
    """The command line of a server on the socket `path`."""
    return [sys.executable, "-m", "scsco_fast", "serve", "--socket", str(path), *options]
