"""The Python files of the package, and the names that they are installed under."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "scsco_fast": "scsco_fast",
    "kernels": "scsco_fast.kernels",
    "train": "scsco_fast.train",
    "benchmarks": "scsco_fast.benchmarks",
}
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def installed_name(path: Path) -> str:
    folder, *rest = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([FOLDERS[folder], *(part for part in rest if part != "__init__")])
