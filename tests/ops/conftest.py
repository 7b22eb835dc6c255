"""Fixtures for tests of many calls on tiny tensors."""

from collections.abc import Iterator

import pytest
import torch

from scsco_fast.eager import bain_attention, products


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Two threads that meet after each operation on 40 numbers take ten times as long where another process runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["PyTorch's products", "oneDNN's products"])
def either_product(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny products are PyTorch's own; oneDNN serves large ones, which tests would wait for."""
    if request.param.startswith("oneDNN"):
        monkeypatch.setattr(products, "FEWEST_MULTIPLICATIONS", 0)


@pytest.fixture
def exact_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small maps too are computed image by image, at the numbers of their pixels, as large ones are."""
    monkeypatch.setattr(bain_attention, "SMALL_MAP", 0)
