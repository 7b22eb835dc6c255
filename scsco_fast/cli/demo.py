"""`scsco demo`: a page in the browser."""

from dataclasses import dataclass
from pathlib import Path

from scsco_fast.cli.parsing import parse
from scsco_fast.cli.shared import check_backend, read_model


@dataclass(frozen=True)
class DemoOptions:
    """Show a page where pictures are uploaded, harmonized and downloaded: a composite and its mask, a cut-out that is
    dragged over its background, or a picture before and after an edit (docs/demo.md).

    Only this machine can open it, unless --host says otherwise; there is no password.
    """

    model: Path | None = None
    """Model file: model.safetensors of a run; "compact" (the default) or "compact-free", the models in the package."""
    host: str = "127.0.0.1"
    """Address to listen on; the default is reached from this machine only."""
    port: int = 7860
    """Port to listen on, from 1 to 65535."""
    max_megapixels: float = 24.0
    """Larger pictures are refused."""
    segment: Path | None = None
    """File u2netp.onnx, with which the page also offers to find the mask (docs/demo.md says where it comes from)."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def command(arguments: list[str]) -> int:
    options = parse(DemoOptions, arguments, "scsco demo")
    from scsco_fast.demo.address import check_address, check_megapixels, require_packages

    check_megapixels(options.max_megapixels)
    require_packages()
    check_address(options.host, options.port)
    check_backend()
    from scsco_fast.demo import serve

    model = read_model(options.model, options.device)
    serve(model, options.host, options.port, options.max_megapixels, options.segment)
    return 0
