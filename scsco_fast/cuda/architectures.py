"""Which GPUs the library is compiled for, and which it serves: lists of compute capabilities, as TORCH_CUDA_ARCH_LIST.

It needs the standard library alone, as do `compilers` and `build`: setup.py imports them where there is no torch.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence

from scsco_fast.cuda.compilers import BuildError

OLDEST_CAPABILITY = (7, 5)
# Where no GPU is seen: what this nvcc knows of these, the last also as PTX, which newer GPUs' drivers compile. A cubin
# also runs on later GPUs of the same major version: that for 8.0 on 8.6 and 8.9, 10.0 on 10.3, 12.0 on 12.1.
DEFAULT_CAPABILITIES = ((7, 5), (8, 0), (9, 0), (10, 0), (12, 0))
# Entries of TORCH_CUDA_ARCH_LIST that torch's own builds take.
NAMED_ARCHITECTURES = {
    "Kepler+Tesla": "3.7",
    "Kepler": "3.5+PTX",
    "Maxwell+Tegra": "5.3",
    "Maxwell": "5.0;5.2+PTX",
    "Pascal": "6.0;6.1+PTX",
    "Volta+Tegra": "7.2",
    "Volta": "7.0+PTX",
    "Turing": "7.5+PTX",
    "Ampere+Tegra": "8.7",
    "Ampere": "8.0;8.6+PTX",
    "Ada": "8.9+PTX",
    "Hopper": "9.0+PTX",
    "Blackwell+Tegra": "11.0",
    "Blackwell": "10.0;10.3;12.0;12.1+PTX",
}
ENTRY = r"(?P<major>\d+)\.(?P<minor>\d)(?P<suffix>[af]?)(?P<ptx>\+PTX)?"  # of a list of architectures


def chosen_architectures(
    known: Sequence[tuple[int, int]], text: str | None = None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What to compile for, and one line for each reason why an entry of the list is left out.

    Args:
        known: the compute capabilities that nvcc compiles for.
        text: as TORCH_CUDA_ARCH_LIST, which is read if this is None. Without one: this machine's GPUs, else
            `DEFAULT_CAPABILITIES`.

    Raises:
        BuildError: an entry cannot be read, or no entry is left.
    """
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip() if text is None else text
    if text is None and not listed:
        return _of_gpus(known) or _with_ptx([entry for entry in DEFAULT_CAPABILITIES if entry in known]), ()
    entries = parse_architectures(listed, known)
    old = [entry for entry in entries if _capability(entry) < OLDEST_CAPABILITY]
    unknown = [entry for entry in entries if entry not in old and _capability(entry) not in known]
    reasons = [
        f"{' '.join(some)} of TORCH_CUDA_ARCH_LIST left out: {reason}"
        for some, reason in ((old, "the kernels need 7.5 or newer"), (unknown, "this nvcc does not know it"))
        if some
    ]
    chosen = tuple(entry for entry in entries if entry not in old and entry not in unknown)
    if not chosen:
        raise BuildError(f"{', '.join(reasons)}; nothing is left to compile for")
    return chosen, tuple(reasons)


def parse_architectures(text: str, known: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    """ "8.0;Hopper" as ("8.0", "9.0+PTX"); "native" stands for the GPUs of this machine.

    Raises:
        BuildError: an entry is no compute capability and no name of some; "native" without a GPU.
    """
    chosen: list[str] = []
    for entry in re.split(r"[;,\s]+", text.strip()):
        if entry == "native":
            chosen += _of_gpus(known)
            if not chosen:
                raise BuildError("TORCH_CUDA_ARCH_LIST is 'native', but nvidia-smi shows no GPU; name them: '8.0;9.0'")
        elif entry in NAMED_ARCHITECTURES:
            chosen += NAMED_ARCHITECTURES[entry].split(";")
        elif re.fullmatch(ENTRY, entry):
            chosen.append(entry)
        else:
            raise BuildError(
                f"TORCH_CUDA_ARCH_LIST has {entry!r}; wanted capabilities such as '8.0;9.0+PTX', 'Hopper', or 'native'"
            )
    return tuple(entry for entry in dict.fromkeys(chosen) if f"{entry}+PTX" not in chosen)


def serves(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether a library for `architectures` ("8.0 9.0+PTX") has code that a GPU of this capability can run."""
    for entry in architectures.split():
        suffix, ptx = re.fullmatch(ENTRY, entry).group("suffix", "ptx")  # type: ignore[union-attr]
        built = _capability(entry)
        if built < (8, 0) <= capability:  # PTX of 7.5 has no bfloat16, TF32 or wide tiles: those kernels are empty
            continue
        if built == capability or (suffix != "a" and built[0] == capability[0] and built <= capability):
            return True
        if ptx and not suffix and built <= capability:
            return True
    return False


def _capability(entry: str) -> tuple[int, int]:
    """(9, 0) of "9.0a+PTX"."""
    major, minor = re.fullmatch(ENTRY, entry).group("major", "minor")  # type: ignore[union-attr]
    return int(major), int(minor)


def _with_ptx(capabilities: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    """Entries of a list; the last one also as PTX."""
    *entries, last = (f"{major}.{minor}" for major, minor in capabilities)
    return (*entries, f"{last}+PTX")


def _of_gpus(known: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    """For this machine's GPUs, as nvidia-smi lists them; those too old are left out.

    A GPU that this nvcc does not know gets PTX of the newest one before it that it knows.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    query = [program, "--query-gpu=compute_cap", "--format=csv,noheader"]
    text = subprocess.run(query, capture_output=True, text=True, check=False).stdout
    found = {(int(major), int(minor)) for major, minor in re.findall(r"^(\d+)\.(\d)\s*$", text, re.MULTILINE)}
    fit = sorted(capability for capability in found if capability >= OLDEST_CAPABILITY)
    entries = [f"{major}.{minor}" for major, minor in fit if (major, minor) in known]
    for major, minor in (capability for capability in fit if capability not in known):
        before = [capability for capability in known if capability < (major, minor)]
        if not before:
            raise BuildError(f"a GPU has compute capability {major}.{minor}, which this nvcc no longer compiles for")
        entries += _with_ptx(before[-1:])
    return tuple(entry for entry in dict.fromkeys(entries) if f"{entry}+PTX" not in entries)
