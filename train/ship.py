"""Make a run's model the one in the package: python -m scsco_fast.train.ship RUN/model.safetensors.

Writes it in float16, which halves the file, and says which checksum belongs into scsco_fast/weights.py.
"""

import hashlib
import sys
from pathlib import Path

from scsco_fast.errors import ScscoError
from scsco_fast.weights import SHIPPED, load_model, read_metadata, save_model


def ship(path: str | Path, target: Path = SHIPPED) -> str:
    """Write the model file `path` to `target` in float16 and return the SHA-256 of what was written.

    Raises:
        ScscoError: not a model file, or `target` cannot be written.
    """
    metadata = read_metadata(path)
    extra: dict[str, object] = {name: metadata[name] for name in ("working_size", "step") if name in metadata}
    save_model(load_model(path).half(), target, {**extra, "dtype": "float16"})
    return hashlib.sha256(target.read_bytes()).hexdigest()


def main() -> int:
    """Run the program."""
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python -m scsco_fast.train.ship RUN/model.safetensors\n")
        return 2
    try:
        digest = ship(sys.argv[1])
    except ScscoError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"wrote {SHIPPED}\nSHIPPED_SHA256 of scsco_fast/weights.py: {digest}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
