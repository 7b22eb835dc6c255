"""`scsco import-rainnet`: a checkpoint of RainNet as a model file."""

from dataclasses import dataclass
from pathlib import Path

from scsco_fast.cli.parsing import parse
from scsco_fast.errors import ScscoError
from scsco_fast.system.files import check_writable


@dataclass(frozen=True)
class ImportRainnetOptions:
    """Convert a RainNet checkpoint into a model file that `scsco harmonize` and `scsco evaluate` read as --model.

    The file must be the generator's state dict, such as net_G_last.pth; only tensors are read from it. What it computes
    stays the same, to float32 rounding: docs/rainnet.md.
    """

    checkpoint: Path
    """RainNet's net_G_last.pth; `scsco import-rainnet FILE` is short for it."""
    output: Path | None = None
    """Model file to write; if not given, the checkpoint's name with .safetensors. It must not exist yet."""


def command(arguments: list[str]) -> int:
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--checkpoint", *arguments]
    options = parse(ImportRainnetOptions, arguments, "scsco import-rainnet")
    if not options.checkpoint.name:
        raise ScscoError(f"{options.checkpoint}: is a folder; wanted RainNet's net_G_last.pth")
    output = options.output or options.checkpoint.with_suffix(".safetensors")
    if output.exists():
        raise ScscoError(f"{output}: exists already; name another file with --output")
    check_writable(output.parent)
    from scsco_fast.nn.rainnet import read_rainnet
    from scsco_fast.nn.weights import save_model

    model = read_rainnet(options.checkpoint)
    save_model(model, output, {"source": f"RainNet, {options.checkpoint.name}"})
    print(f"wrote {output}")
    return 0
