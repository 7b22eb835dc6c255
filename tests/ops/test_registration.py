"""Every operation behind the dispatcher: opcheck, one graph under torch.compile, no recompiles, fakes, export."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from oracle import OPCHECKS, every_operation, every_operation_inputs, make_mask, random
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import scsco_fast as sf

OPS = torch.ops.scsco_fast


def arguments(name: str) -> tuple:
    """Inputs of the registered operation `name`."""
    level = sf.Regions(make_mask("random", 2, 4, 5), make_mask("random", 2, 4, 5, seed=4)).at(4, 5)
    x, query, key = (random(2, 3, 4, 5, seed=s, dtype=torch.float32).requires_grad_() for s in range(3))
    others = random(2, 3, 3, 4, 5, seed=5, dtype=torch.float32).requires_grad_()
    affine = random(4, 3, seed=6, dtype=torch.float32).requires_grad_()
    image, back = torch.rand(2, 3, 4, 5), level.background
    return {
        "region_norm": (x, level.foreground, level.valid, affine, 1e-5, True, "eager"),
        "bain_attention": (query, key, x, level.order, level.counts, 0.5, 1e-5, "eager"),
        "masked_gram": (x, level.foreground, "eager"),
        "cross_gram": (x, query, "eager"),
        "feature_distances": (x, others, "eager"),
        "gram_distances": (x, query, others, "eager"),
        "transfer_color": (image, image.flip(0), level.foreground, back, "reinhard", "eager"),
    }[name]


NAMES = [
    "region_norm",
    "bain_attention",
    "masked_gram",
    "cross_gram",
    "feature_distances",
    "gram_distances",
    "transfer_color",
]


@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name: str) -> None:
    """What the attention saves holds anything behind the queries: `test_aot_dispatch_dynamic` would compare it."""
    checks = list(OPCHECKS)
    if name != "bain_attention":
        checks.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(getattr(OPS, name).default, arguments(name), test_utils=checks)


@pytest.mark.parametrize("name", NAMES)
def test_fake_cuda_tensors_have_the_real_shapes(name: str) -> None:
    real = getattr(OPS, name)(*arguments(name))
    with FakeTensorMode() as mode:
        there = [
            torch.empty_strided(a.shape, a.stride(), dtype=a.dtype, device="cuda") if isinstance(a, Tensor) else a
            for a in arguments(name)
        ]
        fake = getattr(OPS, name)(*there)
    assert mode is not None
    pairs = [(real, fake)] if isinstance(real, Tensor) else zip(real, fake, strict=True)
    for ours, theirs in pairs:
        assert theirs.device.type == "cuda"
        assert (ours.shape, ours.dtype, ours.stride()) == (theirs.shape, theirs.dtype, theirs.stride())


@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_one_graph_forward_and_backward(backend: str) -> None:
    torch._dynamo.reset()
    plain, traced = every_operation_inputs(), every_operation_inputs()
    with sf.use_backend(backend):
        wanted = every_operation(*plain)
        got = torch.compile(every_operation, fullgraph=True, backend="aot_eager")(*traced)
    wanted.backward()
    got.backward()
    torch.testing.assert_close(got, wanted)
    for ours, theirs in zip(traced, plain, strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_new_masks_and_sizes_do_not_recompile() -> None:
    torch._dynamo.reset()
    graphs = 0

    def count(module: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        nonlocal graphs
        graphs += 1
        return module.forward

    compiled = torch.compile(every_operation, fullgraph=True, backend=count, dynamic=True)
    for height, width in ((6, 8), (7, 10), (12, 5)):
        tensors = every_operation_inputs(height, width)
        for kind in ("random", "empty", "full", "one pixel"):
            tensors[3] = make_mask(kind, 2, height, width)
            torch.testing.assert_close(compiled(*tensors), every_operation(*tensors), rtol=1e-4, atol=1e-4)
    assert graphs == 1


def test_export_holds_the_operations() -> None:
    class Norm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = sf.BAIN(4)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.norm(x, mask)

    x, mask = random(2, 4, 6, 6, dtype=torch.float32), make_mask("random", 2, 6, 6).float()
    module = Norm()
    exported = torch.export.export(module, (x, mask))
    torch.testing.assert_close(exported.module()(x, mask), module(x, mask))
    targets = {str(node.target) for node in exported.graph.nodes}
    assert "scsco_fast.bain_attention.default" in targets


def test_a_backward_cannot_be_differentiated() -> None:
    x, *rest = arguments("region_norm")
    output = OPS.region_norm(x, *rest)[0]
    (gradient,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="region_norm_backward cannot be differentiated"):
        gradient.sum().backward()


def test_transfer_color_cannot_be_differentiated() -> None:
    image, *rest = arguments("transfer_color")
    output = OPS.transfer_color(image.requires_grad_(), *rest)
    with pytest.raises(RuntimeError, match="transfer_color cannot be differentiated"):
        output.sum().backward()


def test_calling_an_operation_does_not_import_the_compiler() -> None:
    code = (
        "import sys, torch, scsco_fast as sf\n"
        "x = torch.rand(1, 3, 4, 4, requires_grad=True)\n"
        "sf.ops.region_norm(x, torch.ones(1, 1, 4, 4)).sum().backward()\n"
        "print('torch._dynamo' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
