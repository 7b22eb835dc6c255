"""`scsco serve`: harmonize what is asked for over a local socket, with the model kept loaded."""

import contextlib
import io
import sys
import warnings
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from scsco_fast.cli.harmonize import HarmonizeOptions
from scsco_fast.cli.parsing import parse
from scsco_fast.cli.shared import check_backend, read_model
from scsco_fast.errors import ScscoError

if TYPE_CHECKING:
    from scsco_fast.nn.unet import HarmonizationUNet


@dataclass(frozen=True)
class ServeOptions:
    """Stay in memory with the model loaded, and harmonize what is asked for over a local socket (docs/integrations.md).

    An editor that asks it does not pay the start of Python and PyTorch for each picture. A request takes the arguments
    of `scsco harmonize`, with full paths. Only this user can open the socket.

      curl --unix-socket SOCKET -d '{"arguments": ["--image", "/a.png", ...]}' http://localhost/harmonize
    """

    socket: Path | None = None
    """Where to listen; if not given, SCSCO_SOCKET, else scsco/serve.sock in XDG_RUNTIME_DIR, or in the user's cache."""
    model: Path | None = None
    """Model of the requests that name none: model.safetensors of a run, "compact" (the default) or "compact-free"."""
    idle_minutes: float = 0
    """End when nothing was asked for this many minutes; 0 is never."""


def command(arguments: list[str]) -> int:
    options = parse(ServeOptions, arguments, "scsco serve")
    from scsco_fast import __version__
    from scsco_fast.serve import check_idle, default_socket, serve

    check_idle(options.idle_minutes)
    check_backend()
    from scsco_fast.nn.weights import DEFAULT

    default = None if options.model is None else _full_or_name(options.model)
    _warm_up(read_model(default, "auto"))
    facts = {"version": __version__, "model": DEFAULT if default is None else str(default)}
    serve(options.socket or default_socket(), lambda asked: _run(asked, default), facts, options.idle_minutes)
    return 0


def _warm_up(model: "HarmonizationUNet") -> None:
    """What a first picture waits for, imports and first calls of operations, before anybody asks for one."""
    import numpy as np

    import scsco_fast.harmonizing.files  # noqa: F401
    from scsco_fast.harmonizing.pictures import harmonize

    picture, mask = np.full((64, 64, 3), 128, np.uint8), np.zeros((64, 64), np.float32)
    mask[24:40, 24:40] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a picture that nobody has
        harmonize(picture, mask, model)


def _full_or_name(model: Path) -> Path:
    """The full path, or the name of a model in the package."""
    from scsco_fast.nn.weights import SHIPPED_SHA256

    return model if str(model) in SHIPPED_SHA256 and not model.exists() else model.absolute()


def _run(arguments: list[str], model: Path | None) -> tuple[int, str, str]:
    """`scsco harmonize` with these arguments: its exit code, what it printed, its errors and warnings."""
    from scsco_fast.cli import main

    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            code = main(["harmonize", *_completed(arguments, model)])
        except ScscoError as error:
            print(f"scsco: error: {' '.join(str(error).split())}", file=sys.stderr)
            code = 2
    return code, output.getvalue(), errors.getvalue()


def _completed(arguments: list[str], model: Path | None) -> list[str]:
    """The arguments, with the server's model where they name none; ScscoError for a path that is not full."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            options = parse(HarmonizeOptions, arguments, "scsco harmonize")
    except SystemExit:  # --help
        return arguments
    from scsco_fast.nn.weights import SHIPPED_SHA256

    named = str(options.model) in SHIPPED_SHA256  # of a model in the package
    for field in fields(options):
        path = getattr(options, field.name)
        if isinstance(path, Path) and not path.is_absolute() and not (field.name == "model" and named):
            raise ScscoError(f"{path}: not a full path, and the server's folder is another than yours; start it with /")
    return arguments if model is None or options.model is not None else [*arguments, "--model", str(model)]
