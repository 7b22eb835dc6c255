"""Make a run's model one of the package's: python -m scsco_fast.train.ship RUN/model.safetensors NAME [WORKING_SIZE].

Writes it in float16, which halves the file, and says which checksum belongs into scsco_fast/nn/weights.py.
"""

import argparse
import sys
from pathlib import Path

from scsco_fast.errors import ScscoError
from scsco_fast.nn.weights import SHIPPED_SHA256, load_model, read_metadata, save_model, shipped_file
from scsco_fast.system.files import sha256


def ship(path: str | Path, target: Path, working_size: int | None = None) -> str:
    """Write the model file `path` to `target` in float16 and return the SHA-256 of what was written.

    Args:
        path: model.safetensors of a run.
        target: file to write.
        working_size: long side in pixels at which the model is to work; None is the size that it was trained at.

    Raises:
        ScscoError: not a model file, or `target` cannot be written.
    """
    metadata = read_metadata(path)
    extra: dict[str, object] = {name: metadata[name] for name in ("working_size", "step") if name in metadata}
    if working_size is not None:
        extra["working_size"] = working_size
    save_model(load_model(path).half(), target, {**extra, "dtype": "float16"})
    return sha256(target)


def main() -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model.safetensors of a run")
    parser.add_argument("name", choices=sorted(SHIPPED_SHA256), help="of the model in the package")
    parser.add_argument("working_size", type=int, nargs="?", help="long side at which it works; else its training size")
    options = parser.parse_args()
    target = shipped_file(options.name)
    try:
        digest = ship(options.model, target, options.working_size)
    except ScscoError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"wrote {target}\nSHIPPED_SHA256 of {options.name} in scsco_fast/nn/weights.py: {digest}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
