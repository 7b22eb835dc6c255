"""What the mode of this process needs; see tests/mode.py."""

import pytest
from guarded import guarded, nan_in_new_memory  # noqa: F401 (fixtures)
from mode import BACKEND

from scsco_fast.eager import bain_attention, products

if BACKEND == "triton":
    from interpreter import repair

    repair()

PRODUCTS = ["PyTorch's products", "oneDNN's products"] if BACKEND == "eager" else ["products of its own"]


@pytest.fixture(params=PRODUCTS)
def either_product(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny products are PyTorch's own; oneDNN serves large ones, which tests would wait for."""
    if request.param.startswith("oneDNN"):
        monkeypatch.setattr(products, "FEWEST_MULTIPLICATIONS", 0)


@pytest.fixture(autouse=True)
def exact_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """The eager backend computes small maps too image by image, at the numbers of their pixels, as large ones."""
    if BACKEND == "eager":
        monkeypatch.setattr(bain_attention, "SMALL_MAP", 0)
