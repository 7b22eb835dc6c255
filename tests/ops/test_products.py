"""The eager backend's matrix products: who computes them, and that both libraries give the same."""

import pytest
import torch
from oracle import random
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from scsco_fast.eager import products
from scsco_fast.eager.products import product

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of PyTorch lacks oneDNN")


class Calls(TorchDispatchMode):
    """The names of the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names = set[str]()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):  # type: ignore[no-untyped-def]
        self.names.add(function.overloadpacket.__name__)
        return function(*arguments, **(keywords or {}))


def by_onednn(left: Tensor, right: Tensor) -> bool:
    with Calls() as calls:
        product(left, right)
    return "_linear_pointwise" in calls.names


@needs_onednn
@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_large_float32_products_are_onednns(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = torch.rand(1, 16, 8), torch.rand(1, 8, 32)
    assert not by_onednn(left, right)
    monkeypatch.setattr(products, "FEWEST_MULTIPLICATIONS", 16 * 8 * 32)
    assert by_onednn(left, right)
    assert not by_onednn(left[:, 1:], right)
    assert product(left[:0], right[:0]).shape == (0, 16, 32)
    assert not by_onednn(left.double(), right.double())
    with torch.backends.mkldnn.flags(enabled=False):
        assert not by_onednn(left, right)


@needs_onednn
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_both_libraries_are_as_exact(batch: int, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any strides; twice the error of a float32 sum of 40 terms is allowed."""
    left, right = random(batch, 17, 40), random(batch, 40, 33, seed=1)
    truth = left @ right
    allowed = 2 * 40 * torch.finfo(torch.float32).eps * float((left.abs() @ right.abs()).max())
    operands = [t.float() for t in (left, right)]
    if layout == "columns":
        operands = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in operands]
    for fewest in (0, 1 << 62):
        monkeypatch.setattr(products, "FEWEST_MULTIPLICATIONS", fewest)
        target = torch.ones(truth.shape)
        products.add_product(target, *operands)
        for found in (product(*operands), target - 1):
            assert found.shape == truth.shape
            assert float((found - truth).abs().max()) <= allowed


@needs_onednn
@pytest.mark.parametrize("spoiled", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_row_and_column(spoiled: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that no width of vectors divides: what lies beside a row in memory must not enter it."""
    monkeypatch.setattr(products, "FEWEST_MULTIPLICATIONS", 0)
    left, right = torch.rand(1, 19, 37) + 1, torch.rand(1, 37, 35) + 1
    left[0, 4, 36], right[0, 0, 7] = spoiled, spoiled
    wanted = torch.ones(1, 19, 35, dtype=torch.bool)
    wanted[0, 4], wanted[0, :, 7] = False, False
    assert torch.equal(product(left, right).isfinite(), wanted)
