"""What a CUDA machine would run, seen without one: a training step on fake CUDA tensors, and what is traced."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from oracle import make_mask, random
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import scsco_fast as sf
from scsco_fast import kernels
from scsco_fast.ops import backend
from scsco_fast.ops.backend import choose


class Calls(TorchDispatchMode):
    """Operations of ours that were called, and the backends they were given."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, set[str]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.namespace == "scsco_fast":
            name = func.name().removeprefix("scsco_fast::")
            self.found.setdefault(name, set()).update(a for a in args if isinstance(a, str))
        return func(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore:VGG-16 has RANDOM weights")
def test_training_step_takes_triton_and_never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernels can serve, `auto` gives them every operation, forward and backward; and no value is read.

    Meta tensors have none to read. (Fake CUDA tensors cannot be sliced by a torch without CUDA.)
    """
    monkeypatch.setattr(kernels, "unavailable", lambda: None)
    monkeypatch.setattr(kernels, "interpreted", lambda: True)  # for any device
    model = sf.HarmonizationUNet(base_channels=4, levels=5).to("meta")
    loss = sf.SCSCoLoss(sf.VGG16Features(weights="random")).to("meta")
    composite, real, mask = (torch.rand(2, channels, 64, 64, device="meta") for channels in (3, 3, 1))
    with Calls() as calls:
        negatives = [sf.ops.transfer_color(real, real.flip(0), method, mask) for method in ("reinhard", "gaussian")]
        output = model(composite, mask)
        loss(output, real, composite, mask, negatives=torch.stack(negatives, 1)).total.backward()
    forward = {"bain_norm", "region_norm", "feature_distances", "gram_distances", "transfer_color"}
    backward = {f"{name}_backward" for name in forward if name != "transfer_color"}
    assert {name: {"triton"} for name in forward | backward} == {
        name: chosen & set(backend.ORDER) for name, chosen in calls.found.items()
    }


def test_auto_falls_through_with_the_reason(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(kernels, "unavailable", lambda: None)
    monkeypatch.setattr(backend, "_told", set())
    with FakeTensorMode():
        x = torch.empty(1, 4, 4, 4, device="cuda")
        assert choose("auto", "region_norm", x) == "triton"
        with caplog.at_level("INFO", logger="scsco_fast"):
            assert choose("auto", "region_norm", x.double()) == "eager"
        assert "backend triton is not used for region_norm: float64 inputs" in caplog.text
        monkeypatch.setattr(kernels, "unavailable", lambda: "Triton cannot be imported (no)")
        assert choose("auto", "region_norm", x) == "eager"
        with pytest.raises(RuntimeError, match=r"backend 'triton' cannot be used: Triton cannot be imported \(no\)"):
            choose("triton", "region_norm", x)


def test_availability_is_not_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Imports and device queries cannot be part of a graph: with fullgraph=True a traced one would raise."""

    def unavailable() -> str:
        return Path(__file__).read_text()[:3] + "no device"

    monkeypatch.setattr(kernels, "unavailable", unavailable)
    monkeypatch.setattr(kernels, "interpreted", lambda: True)
    torch._dynamo.reset()
    x, mask = random(1, 3, 4, 4, dtype=torch.float32), make_mask("block", 1, 4, 4)
    norm: Callable[..., Tensor] = torch.compile(sf.ops.region_norm, fullgraph=True, backend="eager")
    torch.testing.assert_close(norm(x, mask), sf.ops.region_norm(x, mask, backend="eager"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:VGG-16 has RANDOM weights")
def test_training_step_is_one_graph() -> None:
    """Model and loss, forward and backward, under torch.compile(fullgraph=True); it holds no constant of the CPU."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = sf.HarmonizationUNet(base_channels=4, levels=5)
    loss = sf.SCSCoLoss(sf.VGG16Features(weights="random"))
    real, composite, negatives = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32), torch.rand(1, 2, 3, 32, 32)
    mask = make_mask("block", 1, 32, 32).float()

    def step() -> Tensor:
        return loss(model(composite, mask), real, composite, mask, negatives=negatives).total

    seen = set()

    def keep(graph: torch.fx.GraphModule, inputs: Any) -> Callable:
        seen.update(str(node.target) for node in graph.graph.nodes)
        return make_boxed_func(graph.forward)

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend=aot_autograd(fw_compiler=keep))):
        model.zero_grad()
        total = function()
        total.backward()
        results.append([total.detach(), *(parameter.grad for parameter in model.parameters())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert {"scsco_fast.region_norm.default", "scsco_fast.region_norm_backward.default"} <= seen
    assert not any("constant" in name or "lift_fresh" in name for name in seen)
