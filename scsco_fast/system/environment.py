"""What a result depends on besides its settings: versions, the revision of this source, the processor.

Importing this needs neither torch nor numpy, and asking it imports neither.
"""

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

_SECONDS = 10  # that git may take


def version(package: str) -> str:
    """Installed version of a distribution, or "missing".

    Examples:
        >>> version("no-such-package")
        'missing'
    """
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def versions() -> dict[str, str]:
    """Versions of what a training depends on, and the git revision.

    Examples:
        >>> list(versions())
        ['scsco_fast', 'git', 'python', 'torch', 'numpy']
    """
    return {
        "scsco_fast": version("scsco-fast"),
        "git": git_revision(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "numpy": version("numpy"),
    }


@functools.cache
def git_revision(short: bool = False) -> str:
    """Commit of this source in 40 digits, with "-dirty" behind it where tracked files were changed since.

    Args:
        short: as in the rows of the benchmarks: as many digits as git finds enough, and "+" instead of "-dirty".

    Returns:
        "unknown" where this source is not in a git repository of its own.
    """
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=_SECONDS).stdout.strip()

    form = ("--dirty=+",) if short else ("--dirty", "--abbrev=40")
    try:
        git("ls-files", "--error-unmatch", here.name)  # an installed copy may lie in somebody else's repository
        return git("describe", "--always", "--exclude=*", *form)
    except (OSError, subprocess.SubprocessError):
        return "unknown"


@functools.cache
def cpu_name() -> str:
    """The processor's name as Linux knows it, elsewhere its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
