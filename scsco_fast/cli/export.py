"""`scsco export`: a model for other programs."""

from dataclasses import dataclass
from pathlib import Path

from scsco_fast.cli.parsing import parse
from scsco_fast.cli.shared import read_model
from scsco_fast.export.formats import Format, check


@dataclass(frozen=True)
class ExportOptions:
    """Write a model for programs that know nothing of this one: torch.export, ONNX, AOTInductor (docs/export.md)."""

    output: Path
    """File to write: .pt2, .onnx, .pt2."""
    format: Format
    """pt2: torch.export. onnx: ONNX, opset 18. aoti: compiled for this CPU by AOTInductor; needs a C++ compiler."""
    model: Path | None = None
    """Model file: model.safetensors of a run; "compact" (the default) or "compact-free", the models in the package."""
    size: tuple[int, int] | None = None
    """Height and width of the pictures, one at a time; if not given, any; of aoti, the working size squared."""


def command(arguments: list[str]) -> int:
    options = parse(ExportOptions, arguments, "scsco export")
    check(options.output, options.format, options.size)
    from scsco_fast.export.program import export

    export(read_model(options.model, "cpu"), options.output, options.format, options.size)
    print(f"wrote {options.output}")
    return 0
