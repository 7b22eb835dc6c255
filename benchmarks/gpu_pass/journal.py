"""The file of a stage: JSON Lines, appended and never edited, so that a killed stage loses one item at most."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FINISHED = ("done", "wrong")  # an item with such a line is not measured again; one that failed is
LOG_BYTES = 8 * 2**20


class Journal:
    """Appends records to a file; each is one line, written at once."""

    def __init__(self, path: Path, **common: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.common = path, common
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        size = os.fstat(self.descriptor).st_size
        if size and os.pread(self.descriptor, 1, size - 1) != b"\n":  # a stage was killed while it wrote
            os.write(self.descriptor, b"\n")

    def append(self, record: dict[str, Any]) -> None:
        os.write(self.descriptor, (json.dumps(self.common | record, default=str) + "\n").encode())

    def finished(self) -> set[str]:
        """Names of the items that need not be measured again: of this code, on this device."""
        found = set()
        for record in read(self.path):
            same = all(record.get(key) == value for key, value in self.common.items())
            if same and record.get("status") in FINISHED:
                found.add(str(record["item"]))
        return found


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a stage's file; a line that was cut off is left out."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            found.append(record)
    return found


def code_digest() -> str:
    """Of all source files: what was measured with other ones is measured again. A copy without .git has it too."""
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for path in sorted(_sources(root)):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _sources(root: Path) -> Iterable[Path]:
    kinds = {".py", ".txt", ".cu", ".cuh", ".h"}
    for folder in ("scsco_fast", "kernels", "train", "benchmarks", "csrc"):
        yield from (path for path in (root / folder).rglob("*") if path.suffix in kinds and path.is_file())
    yield from (root / "tests").glob("*oracle.py")


def trim(path: Path, limit: int = LOG_BYTES) -> None:
    """Keep the end of a log that has grown too large to be taken away."""
    if path.exists() and path.stat().st_size > limit:
        with path.open("rb") as file:
            file.seek(-limit, os.SEEK_END)
            end = file.read()
        path.write_bytes(b"(the beginning was cut off)\n" + end)
