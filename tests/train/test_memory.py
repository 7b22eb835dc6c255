"""Memory that a run on a CPU keeps: what glibc does with it, and that it goes back afterwards."""

import ctypes
import os
import platform
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
