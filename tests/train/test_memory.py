"""Memory that a run on a CPU keeps: what glibc does with it, and that it goes back afterwards."""

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from scsco_fast.train import memory

needs_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not Path("/proc/self/statm").exists(), reason="needs glibc and /proc"
)
# A process of its own: in one that has run other tests, the heap may hold enough free pages for the whole block.
# 64 MiB are more than the 32 MiB from which glibc takes each block from the system.
PROGRAM = """
import os, resource, torch
from scsco_fast.train.memory import kept_memory

BLOCK = 64 * 2**20

def take():
    torch.ones(BLOCK, dtype=torch.uint8)

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def added():  # since the start, in blocks
    return (resident() - before) / BLOCK

take()
before = resident()
"""


def run(lines: str) -> list[float]:
    """The numbers that a fresh process prints which runs these lines."""
    done = subprocess.run([sys.executable, "-c", PROGRAM + lines], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [float(number) for number in done.stdout.split()]


@needs_glibc
def test_freed_memory_stays_within_the_block_and_goes_back_after_it() -> None:
    within, after, later = run("""
with kept_memory() as arranged:
    assert arranged
    take()
    print(added())
print(added())
take()
print(added())
""")
    assert within > 1 / 2
    assert after < 1 / 4
    assert later < 1 / 4


@needs_glibc
def test_an_inner_block_does_not_end_the_outer_one() -> None:
    within, after = run("""
with kept_memory():
    with kept_memory():
        pass
    take()
    print(added())
print(added())
""")
    assert within > 1 / 2
    assert after < 1 / 4


@needs_glibc
def test_an_exception_gives_the_memory_back() -> None:
    within, after = run("""
try:
    with kept_memory():
        take()
        print(added())
        raise ZeroDivisionError
except ZeroDivisionError:
    print(added())
""")
    assert within > 1 / 2
    assert after < 1 / 4


@needs_glibc
def test_small_blocks_stay_with_the_process_afterwards() -> None:
    """glibc raises its thresholds by itself, until one is set: then they stay as they are set."""
    (faults,) = run("""
with kept_memory():
    pass

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

torch.ones(2**22, dtype=torch.uint8)
start = faults()
for _ in range(20):
    torch.ones(2**22, dtype=torch.uint8)
print(faults() - start)
""")
    pages = 2**22 // os.sysconf("SC_PAGE_SIZE")
    assert faults < 20 * pages * 3 // 4  # all 20 times without the thresholds; 1 to 5 times with them


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda *_: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("mallopt was called"))
    with memory.kept_memory() as arranged:
        assert not arranged
