"""Skips `gpu` tests where there is no GPU, shares the cores among test processes, and gives tests small networks."""

import os
import signal

import pytest
import torch

from scsco_fast.nn.unet import HarmonizationUNet


def pytest_configure(config: pytest.Config) -> None:
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(min(2, max(1, torch.get_num_threads() // processes)))
    # What starts the suite in the background may have it ignore these, and so would every program that tests start.
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


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
