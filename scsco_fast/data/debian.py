"""Freely licensed photographs out of Debian packages and installed wheels, the data of the shipped model.

::

    python -m scsco_fast.data.debian photographs                # apt-get download, on Debian 12; nothing is installed
    python -m scsco_fast.data.debian photographs --debs FOLDER  # from .deb files that lie there

    photographs/train/NAME  photographs/test/NAME               as they are in the packages
    photographs/sources.csv                                     package, version, licence, path and SHA-256 of each
    photographs/copyright/PACKAGE                               what the package says of its authors and licences

`debian.csv` beside this file lists them, one by one: drawings, abstract wallpapers, pictures with something drawn over
them and second sizes of a picture are not in it. `train/` and `test/` are its decision too, made before any training;
pictures of one scene are on one side.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import importlib.util
import io
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from scsco_fast.errors import ScscoError
from scsco_fast.system.files import replacing, sha256

TABLE = Path(__file__).with_name("debian.csv")
SOURCES, COPYRIGHT = "sources.csv", "copyright"
# Distribution of a wheel to the package that its files lie in.
WHEELS = {"scikit-image": "skimage", "scikit-learn": "sklearn", "matplotlib": "matplotlib"}
# A package whose copyright file lies in another one.
COPYRIGHT_IN = {"gimp-help-en": "gimp-help-common"}


@dataclass(frozen=True)
class Source:
    """One photograph: where it comes from, and on which side of the split it is.

    Attributes:
        split: "train" or "test".
        name: of the file that is written.
        package: of Debian, or the distribution of a wheel.
        version: of the package that the SHA-256 was taken from.
        licence: as the package's copyright file states it for this file.
        path: in the package.
        sha256: of the file.
    """

    split: str
    name: str
    package: str
    version: str
    licence: str
    path: str
    sha256: str


def read_sources(path: Path = TABLE) -> list[Source]:
    """The rows of a table of photographs.

    Raises:
        ScscoError: no such table, or columns other than `Source`'s.

    Examples:
        >>> sorted({source.split for source in read_sources()})
        ['test', 'train']
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [Source(**row) for row in rows]
    except OSError as error:
        raise ScscoError(f"{path}: cannot be read ({error.strerror})") from error
    except TypeError as error:
        raise ScscoError(f"{path}: wanted the columns {', '.join(each.name for each in fields(Source))}") from error


def fetch(output: Path, debs: Path | None = None, sources: Sequence[Source] | None = None) -> list[Source]:
    """Write the photographs of the table into `output`; see the module for what is there afterwards.

    Files that are there already, with the right checksum, are kept, so a second call costs nothing.

    Args:
        debs: folder with the .deb files; None: `apt-get download` fetches them (no root, nothing is installed).
        sources: rows to fetch; None: the table's.

    Returns:
        The photographs, with the version of the package that they were found in.

    Raises:
        ScscoError: a package cannot be had, or a file in it is missing or another one than the table's.
    """
    sources = read_sources() if sources is None else list(sources)
    found: list[Source] = []
    for package in sorted({source.package for source in sources}):
        own = [source for source in sources if source.package == package]
        with tempfile.TemporaryDirectory() as temporary:
            root, version, copyright_text = _unpack(package, debs, Path(temporary))
            for source in own:
                _copy(source, root, version, output)
                found.append(replace(source, version=version))
        with replacing(output / COPYRIGHT / package) as path:
            path.write_text(copyright_text, encoding="utf-8")
    text = io.StringIO()
    table = csv.DictWriter(text, [each.name for each in fields(Source)], lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(source) for source in found)
    with replacing(output / SOURCES) as path:
        path.write_text(text.getvalue(), encoding="utf-8")
    return found


def _unpack(package: str, debs: Path | None, temporary: Path) -> tuple[Path, str, str]:
    """Where the package's files are, its version and its copyright file."""
    if package in WHEELS:
        return _wheel(package)
    root = temporary / "files"
    deb = _deb(package, debs, temporary)
    _run(["dpkg-deb", "-x", str(deb), str(root)])
    version = _run(["dpkg-deb", "-f", str(deb), "Version"]).strip()
    owner = COPYRIGHT_IN.get(package, package)
    if owner != package:
        _run(["dpkg-deb", "-x", str(_deb(owner, debs, temporary)), str(root)])
    place = root / "usr" / "share" / "doc" / owner / "copyright"
    if not place.is_file():
        raise ScscoError(f"{deb.name}: holds no usr/share/doc/{owner}/copyright; its licences are unknown")
    return root, version, place.read_text(encoding="utf-8", errors="replace")


def _wheel(package: str) -> tuple[Path, str, str]:
    spec = importlib.util.find_spec(WHEELS[package])
    if spec is None or spec.origin is None:
        raise ScscoError(f"{package} is not installed, and photographs are taken from its wheel: pip install {package}")
    distribution = importlib.metadata.distribution(package)
    licences = [file for file in distribution.files or [] if "licen" in file.name.lower() and ".dist-info" in str(file)]
    text = "\n\n".join(file.read_text(encoding="utf-8") for file in licences)
    return Path(spec.origin).parent, distribution.version, text


def _deb(package: str, debs: Path | None, temporary: Path) -> Path:
    folder = debs
    if folder is None:
        folder = temporary
        _run(["apt-get", "download", package], cwd=folder)
    found = sorted(folder.glob(f"{package}_*.deb"))
    if len(found) != 1:
        raise ScscoError(f"{folder}: holds {len(found)} files {package}_*.deb; wanted one (apt-get download {package})")
    return found[0]


def _copy(source: Source, root: Path, version: str, output: Path) -> None:
    target = output / source.split / source.name
    if target.is_file() and sha256(target) == source.sha256:
        return
    place = root / source.path
    if not place.is_file():
        raise ScscoError(f"{source.package} {version}: holds no {source.path}; wanted version {source.version}")
    if sha256(place) != source.sha256:
        raise ScscoError(f"{source.package} {version}: {source.path} is not that of version {source.version}; use that")
    with replacing(target) as path:
        shutil.copyfile(place, path)


def _run(command: list[str], cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise ScscoError(
            f"{command[0]} is not installed; the photographs are taken from packages of Debian 12"
        ) from error
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip() or error.stdout.strip()).splitlines()[-1:] or ["no message"]
        raise ScscoError(f"{' '.join(command)}: {reason[0]} (is the list of packages there? apt-get update)") from error
    return done.stdout


def main(arguments: Iterable[str] | None = None) -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(prog="python -m scsco_fast.data.debian", description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="folder of the photographs")
    parser.add_argument("--debs", type=Path, help="folder with the .deb files; if not given, apt-get downloads them")
    options = parser.parse_args(None if arguments is None else list(arguments))
    try:
        found = fetch(options.output, options.debs)
    except ScscoError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    counts = {split: sum(source.split == split for source in found) for split in ("train", "test")}
    sys.stdout.write(f"{options.output}: {counts['train']} photographs to train on, {counts['test']} held out\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
