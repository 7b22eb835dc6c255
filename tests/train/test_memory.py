"""Memory that a run on a CPU keeps: what glibc does with it, and that it goes back afterwards."""

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scsco_fast.train import memory

needs_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not Path("/proc/self/statm").exists(), reason="needs glibc and /proc"
)
BLOCK = 64 * 2**20  # more than the 32 MiB from which glibc takes each block from the system


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@needs_glibc
def test_freed_memory_stays_within_the_block_and_goes_back_after_it() -> None:
    torch.ones(BLOCK, dtype=torch.uint8)
    before = resident()
    with memory.kept_memory() as arranged:
        assert arranged
        torch.ones(BLOCK, dtype=torch.uint8)
        assert resident() - before > BLOCK // 2
    assert resident() - before < BLOCK // 4
    torch.ones(BLOCK, dtype=torch.uint8)
    assert resident() - before < BLOCK // 4


@needs_glibc
def test_an_inner_block_does_not_end_the_outer_one() -> None:
    torch.ones(BLOCK, dtype=torch.uint8)
    before = resident()
    with memory.kept_memory():
        with memory.kept_memory():
            pass
        torch.ones(BLOCK, dtype=torch.uint8)
        assert resident() - before > BLOCK // 2
    assert resident() - before < BLOCK // 4


@needs_glibc
def test_small_blocks_stay_with_the_process_afterwards() -> None:
    """glibc raises its thresholds by itself, until one is set: then they stay as they are set."""
    program = (
        "import resource, torch\n"
        "from scsco_fast.train.memory import kept_memory\n"
        "with kept_memory():\n    pass\n"
        "def faults():\n    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "torch.ones(2**22, dtype=torch.uint8)\n"
        "before = faults()\n"
        "for _ in range(20):\n    torch.ones(2**22, dtype=torch.uint8)\n"
        "print(faults() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    pages = 2**22 // os.sysconf("SC_PAGE_SIZE")
    assert int(done.stdout) < 20 * pages * 3 // 4  # all 20 times without the thresholds; 1 to 5 times with them


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda *_: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("mallopt was called"))
    with memory.kept_memory() as arranged:
        assert not arranged


def take_and_fail() -> None:
    with memory.kept_memory():
        torch.ones(BLOCK, dtype=torch.uint8)
        raise ZeroDivisionError


@needs_glibc
def test_an_exception_gives_the_memory_back() -> None:
    before = resident()
    with pytest.raises(ZeroDivisionError):
        take_and_fail()
    assert resident() - before < BLOCK // 4
