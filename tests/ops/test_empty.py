"""A batch without images, and a comparison with no others: empty results, zero gradients, and no error."""

from collections.abc import Callable

import pytest
import torch
from oracle import every_operation, random
from torch import Tensor

import scsco_fast as sf
from scsco_fast.ops._transfer_color import TRANSFERS

OPS = torch.ops.scsco_fast
BACKENDS = ("reference", "eager")


def maps(batch: int, count: int) -> list[Tensor]:
    return [random(batch, 3, 4, 5, seed=seed, dtype=torch.float32) for seed in range(count)]


def calls(batch: int) -> dict[str, tuple[Callable[..., Tensor | tuple[Tensor, ...]], list[Tensor], list[tuple]]]:
    """Each operation, its inputs, and the shapes of its outputs."""
    mask = torch.zeros(batch, 1, 4, 5)
    regions, gain, others = sf.Regions(mask, torch.ones_like(mask)), torch.ones(3), torch.zeros(batch, 2, 3, 4, 5)
    shape = (batch, 3, 4, 5)
    return {
        "region_norm": (lambda x, w: sf.ops.region_norm(x, regions, w), [*maps(batch, 1), gain], [shape]),
        "bain_attention": (lambda *x: sf.ops.bain_attention(*x, regions), maps(batch, 3), [shape, shape]),
        "bain_norm": (lambda *x: sf.ops.bain_norm(*x[:4], regions, x[4]), [*maps(batch, 4), gain], [shape]),
        "masked_gram": (lambda x: sf.ops.masked_gram(x, regions), maps(batch, 1), [(batch, 3, 3)]),
        "cross_gram": (sf.ops.cross_gram, maps(batch, 2), [(batch, 3, 3)]),
        "feature_distances": (sf.ops.feature_distances, [*maps(batch, 1), others], [(batch, 2)]),
        "gram_distances": (sf.ops.gram_distances, [*maps(batch, 2), others], [(batch, 2)]),
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", calls(0))
def test_no_images(name: str, backend: str) -> None:
    operation, tensors, shapes = calls(0)[name]
    leaves = [tensor.requires_grad_() for tensor in tensors]
    with sf.use_backend(backend):
        outputs = operation(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert [tuple(output.shape) for output in outputs] == shapes
    grads = torch.autograd.grad([output.sum() for output in outputs], leaves)
    assert [grad.shape for grad in grads] == [leaf.shape for leaf in leaves]
    assert all((grad == 0).all() for grad in grads)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("operation", [sf.ops.feature_distances, sf.ops.gram_distances])
@pytest.mark.parametrize("constants", [True, False])
def test_no_others(operation: Callable[..., Tensor], backend: str, constants: bool) -> None:
    inputs = [*maps(2, 1 if operation is sf.ops.feature_distances else 2), torch.zeros(2, 0, 3, 4, 5)]
    leaves = [inputs[0].requires_grad_(), *(tensor.requires_grad_(not constants) for tensor in inputs[1:])]
    found = operation(*leaves, backend=backend)
    assert found.shape == (2, 0)
    grads = torch.autograd.grad(found.sum(), [leaf for leaf in leaves if leaf.requires_grad])
    assert all((grad == 0).all() for grad in grads)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", TRANSFERS)
def test_no_pictures_to_recolour(method: str, backend: str) -> None:
    picture = torch.zeros(0, 3, 4, 5)
    assert sf.ops.transfer_color(picture, picture, method, backend=backend).shape == picture.shape


def test_opcheck() -> None:
    """Fakes and gradients of the registered forms agree with what they compute."""
    level = sf.Regions(torch.zeros(0, 1, 4, 5), torch.ones(0, 1, 4, 5)).at(4, 5)
    x, query, key = (tensor.requires_grad_() for tensor in maps(0, 3))
    others, affine = torch.zeros(0, 2, 3, 4, 5, requires_grad=True), torch.ones(4, 3, requires_grad=True)
    arguments = {
        "region_norm": (x, level.foreground, level.valid, affine, 1e-5, True, "eager"),
        "bain_attention": (query, key, x, level.order, level.counts, 0.5, 1e-5, "eager"),
        "masked_gram": (x, level.foreground, "eager"),
        "cross_gram": (x, query, "eager"),
        "feature_distances": (x, others, "eager"),
        "gram_distances": (x, query, others, "eager"),
        "transfer_color": (x.detach(), key.detach(), level.foreground, level.background, "reinhard", "eager"),
    }
    for name, given in arguments.items():
        torch.library.opcheck(getattr(OPS, name).default, given)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_graph(backend: str) -> None:
    torch._dynamo.reset()
    inputs = [*(tensor.requires_grad_() for tensor in maps(0, 3)), torch.zeros(0, 1, 4, 5), torch.ones(3)]
    with sf.use_backend(backend):
        total = torch.compile(every_operation, fullgraph=True, backend="aot_eager")(*inputs)
    total.backward()
    assert total == 0
    assert all(tensor.grad.shape == tensor.shape for tensor in inputs[:3])
