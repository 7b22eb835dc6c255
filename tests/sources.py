"""The Python files of the package, the names that they are installed under, and the order in which they import."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "scsco_fast": "scsco_fast",
    "kernels": "scsco_fast.kernels",
    "train": "scsco_fast.train",
    "benchmarks": "scsco_fast.benchmarks",
}
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

# A module may import what stands before it here, and its own package. The package's root imports all up to `info`.
ORDER = (
    *("errors", "system", "architecture", "reference", "kernels", "cuda", "eager", "regions", "ops", "style", "nn"),
    *("data", "synthesis", "harmonizing", "evaluation", "export", "demo", "serve", "info"),
    *("scsco_fast", "train", "benchmarks", "cli", "__main__"),
)


def installed_name(path: Path) -> str:
    folder, *rest = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([FOLDERS[folder], *(part for part in rest if part != "__init__")])
