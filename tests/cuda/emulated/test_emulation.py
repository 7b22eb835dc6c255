"""csrc/emulation.h: what CUDA gives works, and what CUDA leaves undefined is an error that Python sees."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from scsco_fast.cuda import build

CHECKS = Path(__file__).parent / "checks" / "checks.cu"


@pytest.fixture(scope="module")
def checks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The kernels of checks.cu, compiled with the headers of csrc/."""
    folder = tmp_path_factory.mktemp("checks")
    for path in (CHECKS, *build.source_folder().glob("*.h"), *build.source_folder().glob("*.cuh")):
        shutil.copy(path, folder)
    torch.ops.load_library(build.build(build.plan("emulated", sources=folder)))
    return torch.ops.scsco_fast_checks


def test_collectives(checks: Any) -> None:
    got = checks.collectives(torch.zeros(1)).long()
    thread = torch.arange(64)
    lane, warp = thread % 32, thread // 32
    votes = [sum(1 << i for i in range(32) if (32 * w + i) % 3 == 0) for w in (0, 1)]
    wanted = [
        32 * warp + 5,
        thread // 8 * 8 + 3,
        thread ^ 6,
        torch.where(lane < 28, thread + 4, thread),
        torch.where(thread % 16 >= 4, thread - 4, thread),
        torch.where(warp == 0, *(v - (v >> 31 << 32) for v in votes)),  # as a signed number
        3 * warp,
        torch.full((64,), 32),
        torch.full((64,), 1 + 4),
    ]
    assert torch.equal(got, torch.stack(wanted))


def test_block_sum(checks: Any) -> None:
    x = torch.arange(64, dtype=torch.float32)
    assert torch.equal(checks.sums(x), torch.stack([x.sum(), (x * x).sum()]).unsqueeze(1).expand(2, 64))


def test_shared_memory_holds_nan_until_it_is_written(checks: Any) -> None:
    assert checks.poison(torch.zeros(1)).isnan().all()


def test_a_warp_may_exchange_behind_its_own_barrier(checks: Any) -> None:
    assert torch.equal(checks.warp_exchange(torch.zeros(1)), (torch.arange(64) ^ 1).float())


def test_rounding(checks: Any) -> None:
    special = [0.0, -0.0, 1.0, 65504.0, 65520.0, 1e-8, 6e-8, 3e38, float("inf"), float("-inf"), float("nan")]
    x = torch.cat([torch.tensor(special), torch.randn(500, generator=torch.manual_seed(0)) * 10])
    halves, bfloats, tf32 = checks.round(x)
    torch.testing.assert_close(halves, x.half(), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(bfloats, x.bfloat16(), rtol=0, atol=0, equal_nan=True)
    assert (tf32[11:].view(torch.int32) & 0x1FFF == 0).all()
    torch.testing.assert_close(tf32, x, rtol=2**-11, atol=0, equal_nan=True)


every_kind = pytest.mark.parametrize(
    ("dtype", "tf32"),
    [(torch.float16, False), (torch.bfloat16, False), (torch.float32, True), (torch.float32, False)],
    ids=["float16", "bfloat16", "tf32", "ieee"],
)


def rounded(checks: Any, x: torch.Tensor, dtype: torch.dtype, tf32: bool) -> torch.Tensor:
    return checks.round(x.flatten())[2].reshape(x.shape) if tf32 else x.to(dtype)


@pytest.mark.parametrize("a_by_rows", [True, False])
@pytest.mark.parametrize("b_by_rows", [True, False])
@every_kind
def test_products(checks: Any, dtype: torch.dtype, tf32: bool, a_by_rows: bool, b_by_rows: bool) -> None:
    generator = torch.manual_seed(0)
    a, b = torch.randn(32, 80, generator=generator), torch.randn(80, 64, generator=generator)
    stored, each = checks.product(a, b, torch.zeros(1, dtype=dtype), tf32, a_by_rows, b_by_rows)
    a, b = (rounded(checks, t, dtype, tf32) for t in (a, b))
    wanted = a.double() @ b.double()
    allowed = 80 * torch.finfo(torch.float32).eps * (a.double().abs() @ b.double().abs())
    assert ((stored - wanted).abs() <= allowed).all()
    assert torch.equal(stored, each)


@pytest.mark.parametrize(
    ("dtype", "tf32"), [(torch.float16, False), (torch.bfloat16, False), (torch.float32, True)], ids=str
)
def test_a_product_of_a_product(checks: Any, dtype: torch.dtype, tf32: bool) -> None:
    """Sums as the left operand in registers, squares of the right one, and rows' sums by a product with ones."""
    generator = torch.manual_seed(0)
    a, b, c = (torch.randn(*shape, generator=generator) for shape in ((32, 16), (16, 64), (64, 64)))
    out = checks.chain(a, b, c, torch.zeros(1, dtype=dtype), tf32)
    a, b, c = (rounded(checks, t, dtype, tf32) for t in (a, b, c))
    first = rounded(checks, (a.double() @ b.double()).float(), dtype, tf32).double()
    square = rounded(checks, (c * c).float(), dtype, tf32).double()
    eps = {torch.float16: 2**-11, torch.bfloat16: 2**-8, torch.float32: 2**-11}[dtype]
    for i, right in enumerate((c.double(), square)):
        got = out[i * 2048 : (i + 1) * 2048].reshape(32, 64)
        assert ((got - first @ right).abs() <= 2 * eps * (first.abs() @ right.abs())).all()
    assert ((out[4096:] - first.sum(1)).abs() <= 2 * eps * first.abs().sum(1)).all()


def test_copies_arrive_when_they_are_waited_for(checks: Any) -> None:
    x = torch.arange(4.0)
    assert torch.equal(checks.copies(x), torch.cat([x, torch.zeros(4)]))


@pytest.mark.parametrize(
    ("index", "reads"),
    [(0, True), (11, True), (12, False), (-1, False), (2**40, False)],
)
def test_reads_are_held_to_the_tensor(checks: Any, index: int, reads: bool) -> None:
    x = torch.arange(100.0)[20:44].view(4, 6)[:2, :6]  # elements 20 to 31 of a longer buffer
    if reads:
        assert checks.read(x, index).item() == 20 + index
        return
    with pytest.raises(RuntimeError) as error:
        checks.read(x, index)
    place = "kernel read_kernel, block (1, 0, 0), thread (3, 0, 0)"
    assert str(error.value) == f"{place}: reads element {index} of 12 in a tensor"


def test_writes_are_held_to_the_tensor(checks: Any) -> None:
    x = torch.zeros(20)
    with pytest.raises(RuntimeError, match="writes element 10 of 10"):
        checks.write(x[:10], 10)
    assert (x == 0).all()
    checks.write(x[:10], 9)
    assert x[9] == 7


def test_the_span_of_a_tensor_with_strides(checks: Any) -> None:
    x = torch.arange(100.0).as_strided((2, 3), (50, 10))  # its last element is 70 after its first
    assert checks.read(x, 70).item() == 70
    with pytest.raises(RuntimeError, match="element 71 of 71"):
        checks.read(x, 71)


def test_vectors_are_held_to_the_tensor_and_to_their_alignment(checks: Any) -> None:
    x = torch.arange(12.0)
    assert checks.load_four(x, 8).tolist() == [8, 9, 10, 11]
    with pytest.raises(RuntimeError, match="address 16 does not divide"):
        checks.load_four(x, 1)
    with pytest.raises(RuntimeError, match="reads element 8 of 10"):
        checks.load_four(x[:10], 8)


RACE = r"(reads|writes) byte \d+ of the shared memory, which thread \(\d+, 0, 0\) (wrote|read) with no barrier"
MISUSES = {
    "returns_before_a_barrier": r"waits for ever in __syncthreads at checks.cu:\d+: 20 of 64 threads have returned",
    "two_barriers": r"__syncthreads at checks.cu:\d+ while others wait at __syncthreads at checks.cu:\d+",
    "lane_missing": "waits for ever in __syncwarp",
    "lane_not_named": "by a lane that its mask does not name",
    "two_collectives": "while lanes of its warp wait at",
    "shared_overrun": "element 3 of 3 in an array in shared memory",
    "too_much_shared": "takes 262144 bytes of shared memory, the launch gave 4096",
    "reads_too_early": RACE,
    "writes_too_early": RACE,
    "warp_without_barrier": RACE,
    "misplaced_matrix": "whose address 16 does not divide",
    "copy_not_waited_for": r"reads byte 16 of the shared memory, for which a copy is under way",
    "copy_over_what_is_read": f"({RACE}|for which a copy is under way)",
    "copy_nobody_waits_for": "returns before its copies have arrived",
    "too_many_threads": "cannot be launched",
    "no_blocks": "cannot be launched",
}


@pytest.mark.parametrize("name", MISUSES)
def test_misuse_is_an_error_and_leaves_nothing_behind(checks: Any, name: str) -> None:
    for _ in range(3):
        with pytest.raises(RuntimeError, match=MISUSES[name]) as error:
            checks.misuse(name, torch.zeros(64))
        assert name in str(error.value)
        assert "\n" not in str(error.value)
        test_collectives(checks)
        test_block_sum(checks)
