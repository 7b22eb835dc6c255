"""What the plug-in does outside of GIMP: ask scsco to harmonize a picture file.

Only the standard library, and nothing of GIMP: GIMP brings a Python of its own, in which scsco is not installed. So
another process does the work: `scsco serve` if one is listening, which has its model loaded, else the program `scsco`.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

NOTHING = "nothing"  # of the colours is kept
KEPT = (NOTHING, "luma", "colour")
PATIENCE = 600.0  # seconds for a picture
PROGRAM = "scsco"


class HarmonizeError(Exception):
    """Why there is no result, in one line."""


@dataclass(frozen=True)
class Settings:
    """What the user chooses.

    Attributes:
        strength: 0 changes nothing, 1 is all that the network changes.
        grow: pixels by which the mask grows; negative shrinks it.
        keep: one of `KEPT`: what of the foreground stays as it is.
        program: path of the program `scsco`; empty looks for it.
    """

    strength: float = 1.0
    grow: int = 0
    keep: str = NOTHING
    program: str = ""


@dataclass(frozen=True)
class Answer:
    """What `scsco harmonize` ended with: its exit code, and its errors and warnings."""

    code: int
    errors: str


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that only this user can read, and that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="scsco-gimp-") as folder:
        yield Path(folder)


def harmonize(picture: Path, mask: Path, layer: Path, settings: Settings) -> None:
    """Write the recoloured foreground of a picture as a layer: a picture of its size, transparent where the mask is 0.

    Args:
        picture: the composite.
        mask: of the same size; white is foreground.
        layer: the PNG to write.

    Raises:
        HarmonizeError: there is no scsco, or it could not do it.
    """
    arguments = harmonize_arguments(picture, mask, layer, settings)
    answer = ask_server(socket_path(), arguments)
    if answer is None:
        answer = run_program(find_program(settings.program), arguments)
    if answer.code != 0 or not layer.is_file():
        raise HarmonizeError(reason(answer, {picture: "the picture", mask: "the mask", layer: "the result"}))


def write_mask(path: Path, width: int, height: int, values: bytes) -> None:
    """Write a mask as a PGM file; one byte for each pixel, 255 is foreground.

    Raises:
        HarmonizeError: it has no foreground, or no background.
    """
    if values.count(0) == len(values):
        raise HarmonizeError("nothing of the layer is inside of the picture and the selection; there is no foreground")
    if values.count(255) == len(values):
        raise HarmonizeError("the layer covers the whole picture; select what was pasted, or cut it out first")
    path.write_bytes(b"P5\n%d %d\n255\n" % (width, height) + values)


def harmonize_arguments(picture: Path, mask: Path, layer: Path, settings: Settings) -> list[str]:
    """The arguments of `scsco harmonize`; all paths are full."""
    arguments = ["--image", str(picture), "--mask", str(mask), "--output", str(layer), "--layer"]
    arguments += ["--strength", repr(settings.strength), "--grow-mask", str(settings.grow)]
    return arguments if settings.keep == NOTHING else [*arguments, "--keep", settings.keep]


def socket_path() -> Path:
    """Where `scsco serve` listens: the same rule as scsco's own."""
    if given := os.environ.get("SCSCO_SOCKET"):
        return Path(given)
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.path.isdir(runtime):
        return Path(runtime) / "scsco" / "serve.sock"
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "scsco-fast" / "serve" / "serve.sock"


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


def ask_server(path: Path, arguments: list[str], patience: float = PATIENCE) -> Answer | None:
    """What the server on the socket answers; None where none does, or where it ends before it has answered.

    Raises:
        HarmonizeError: it takes too long, or answers what no scsco does.
    """
    if not hasattr(socket, "AF_UNIX"):  # Windows
        return None
    connection = _UnixConnection(path, patience)
    try:
        connection.request("POST", "/harmonize", json.dumps({"arguments": arguments}))
        content = json.loads(connection.getresponse().read())
        return Answer(int(content["code"]), str(content["errors"]))
    except TimeoutError:
        raise HarmonizeError(
            f"scsco serve did not answer within {patience:g} seconds; make the picture smaller"
        ) from None
    except (OSError, http.client.HTTPException):
        return None
    except (ValueError, KeyError, TypeError):
        raise HarmonizeError(f"what listens on {path} is no scsco serve; end it, or set SCSCO_SOCKET") from None
    finally:
        connection.close()


def find_program(given: str) -> str:
    """The program `scsco`: the one given, else SCSCO_PROGRAM, else the one in PATH.

    Raises:
        HarmonizeError: there is none.
    """
    wanted = given or os.environ.get("SCSCO_PROGRAM") or PROGRAM
    found = shutil.which(os.path.expanduser(wanted))
    if found is None:
        where = "is not in PATH" if wanted == PROGRAM else f"is not at {wanted}"
        raise HarmonizeError(
            f"the program scsco {where}; install scsco-fast, then name the program here, by its full path, "
            "or start scsco serve"
        )
    return found


def run_program(program: str, arguments: list[str], patience: float = PATIENCE) -> Answer:
    """What the program ends with.

    Raises:
        HarmonizeError: it cannot be started, or takes too long.
    """
    # GIMP's bundles point these to their own Python, which is not scsco's.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "PYTHONPATH")}
    try:
        done = subprocess.run(
            [program, "harmonize", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            timeout=patience,
            check=False,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),  # no black window on Windows
        )
    except subprocess.TimeoutExpired:
        raise HarmonizeError(f"{program} did not end within {patience:g} seconds; make the picture smaller") from None
    except OSError as error:
        raise HarmonizeError(f"{program} cannot be started ({error.strerror or error}); name another program") from None
    return Answer(done.returncode, done.stderr)


def reason(answer: Answer, names: dict[Path, str]) -> str:
    """One line of what was printed: the error, else the last line. Temporary files have the names that users know."""
    lines = [line.strip() for line in answer.errors.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("scsco: error: ")]
    text = (errors or lines or [f"scsco ended with the exit code {answer.code} and said nothing"])[-1]
    for path, name in names.items():
        text = text.replace(str(path), name)
    return text.removeprefix("scsco: error: ")
