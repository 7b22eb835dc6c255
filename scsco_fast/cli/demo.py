"""`scsco demo`: a page in the browser."""

from dataclasses import dataclass
from pathlib import Path

from scsco_fast.cli.parsing import parse
from scsco_fast.cli.shared import check_backend, read_model


@dataclass(frozen=True)
class DemoOptions:
    """Show a page where a picture and its mask are uploaded, harmonized and downloaded (docs/demo.md).

    Only this machine can open it, unless --host says otherwise; there is no password.
    """

    model: Path | None = None
    """Model file: model.safetensors of a run; "compact" (the default) or "compact-free", the models in the package."""
    host: str = "127.0.0.1"
    """Address to listen on; the default is reached from this machine only."""
    port: int = 7860
    """Port to listen on."""
    max_megapixels: float = 24.0
    """Larger pictures are refused."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def command(arguments: list[str]) -> int:
    options = parse(DemoOptions, arguments, "scsco demo")
    check_backend()
    from scsco_fast.demo import require_gradio, serve

    require_gradio()
    serve(read_model(options.model, options.device), options.host, options.port, options.max_megapixels)
    return 0
