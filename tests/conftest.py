"""Skips `gpu` tests where there is no GPU, keeps torch to two threads, and gives the tests small networks."""

import pytest
import torch

from scsco_fast.nn.unet import HarmonizationUNet


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(min(2, torch.get_num_threads()))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, torch.cuda.is_available() is False")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture
def small_model() -> HarmonizationUNet:
    """An untrained network that changes the foreground visibly, in eval mode; its working size is 64."""
    torch.manual_seed(0)
    model = HarmonizationUNet(base_channels=4, levels=5, head="residual").eval()
    with torch.no_grad():
        for parameter in model.up[0].parameters():
            parameter.mul_(20)
    model.working_size = 64
    return model
