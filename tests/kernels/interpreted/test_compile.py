"""The kernels behind torch.compile: one graph, forward and backward, and none more for other masks."""

from collections.abc import Callable

import pytest
import torch
from oracle import every_operation, every_operation_inputs, make_mask

import scsco_fast as sf


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def test_one_graph_forward_and_backward() -> None:
    results = []
    for function in (every_operation, torch.compile(every_operation, fullgraph=True, backend="aot_eager")):
        tensors = every_operation_inputs()
        with sf.use_backend("triton"):
            total = function(*tensors)
        leaves = [tensor for tensor in tensors if tensor.requires_grad]
        results.append([total, *torch.autograd.grad(total, leaves)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_auto_is_triton_and_new_masks_do_not_recompile() -> None:
    graphs: list[set[str]] = []

    def count(module: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        graphs.append({argument for node in module.graph.nodes for argument in node.args if isinstance(argument, str)})
        return module.forward

    compiled = torch.compile(every_operation, fullgraph=True, backend=count)
    tensors = every_operation_inputs(3, 4)
    for kind in ("random", "empty", "one pixel"):
        tensors[3] = make_mask(kind, 2, 3, 4)
        assert torch.isfinite(compiled(*tensors))
    (chosen,) = graphs
    assert chosen & {"triton", "eager", "cuda"} == {"triton"}
