"""One number that is NaN or infinite spoils what depends on it, and nothing else.

What depends on a number is found out, not written down: the results that change when it does, in float64. Every other
one has to stay as it is when the number is NaN. Numbers are put into every input and into the gradients that arrive,
in the foreground, in the background and among the excluded pixels, of images that have both regions or only one.
"""

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from oracle import random
from torch import Tensor

import scsco_fast as sf
from scsco_fast.eager import bain_attention, region_norm
from scsco_fast.ops._transfer_color import TRANSFERS

pytestmark = pytest.mark.usefixtures("one_thread")
BACKENDS = ("reference", "eager", "eager as on a GPU")
SHAPE = (3, 2, 4, 5)
CHANGES = (0.37, -1e3, 1e3)  # large ones turn signs, which is what the gradients of distances depend on
NOISE = 1e-9  # a change below it is rounding


def regions() -> sf.Regions:
    """Images with both regions, without foreground, and without background; each has excluded pixels."""
    mask, valid = torch.zeros(SHAPE[0], 1, *SHAPE[2:]), torch.ones(SHAPE[0], 1, *SHAPE[2:])
    mask[0, ..., :2], mask[2] = 1, 1
    valid[:, :, 1, ::2] = 0
    return sf.Regions(mask, valid)


def operations() -> dict[str, tuple[Callable[..., Tensor | tuple[Tensor, ...]], list[Tensor]]]:
    """Every differentiable operation and its inputs."""
    query, key, value, normalised = (random(*SHAPE, seed=seed) for seed in range(4))
    gains = [random(SHAPE[1], seed=seed) for seed in (11, 12, 13, 14)]
    others = torch.stack([random(*SHAPE, seed=5), random(*SHAPE, seed=6)], dim=1)
    where = regions()
    return {
        "region_norm": (lambda x, *p: sf.ops.region_norm(x, where, *p), [value, *gains]),
        "region_norm, not adapting": (lambda x, *p: sf.ops.region_norm(x, where, *p, adapt=False), [value, *gains]),
        "bain_attention": (lambda q, k, v: sf.ops.bain_attention(q, k, v, where), [query, key, value]),
        "bain_norm": (
            lambda q, k, v, n, *p: sf.ops.bain_norm(q, k, v, n, where, *p),
            [query, key, value, normalised, *gains],
        ),
        "masked_gram": (lambda f: sf.ops.masked_gram(f, where), [value]),
        "cross_gram": (sf.ops.cross_gram, [query, key]),
        "feature_distances": (sf.ops.feature_distances, [query, others]),
        "gram_distances": (sf.ops.gram_distances, [query, key, others]),
    }


def results_of(operation: Callable[..., Tensor | tuple[Tensor, ...]], inputs: list[Tensor], backend: str) -> Tensor:
    """Outputs and gradients in one row; the first inputs are the operation's, the others what its outputs get."""
    count = len(inputs) - 1
    with sf.use_backend(backend):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs[:count]]
        outputs = operation(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    arriving = inputs[count].split([output.numel() for output in outputs])
    grads = torch.autograd.grad(outputs, leaves, [g.view(o.shape) for g, o in zip(arriving, outputs, strict=True)])
    return torch.cat([tensor.detach().flatten() for tensor in (*outputs, *grads)])


def places(tensor: Tensor) -> Iterator[int]:
    """A pixel of each region of each image, in one channel; of what is no map, the first and the last number."""
    level = regions().at(*SHAPE[2:])
    if tensor.shape[-2:] != SHAPE[2:]:
        yield from (0, tensor.numel() - 1)
        return
    index = torch.arange(tensor.numel()).view(tensor.shape).flatten(1, -3)[:, -1].flatten(1)  # (B, H W)
    for region in (level.foreground, level.background, ~level.foreground & ~level.background):
        for image in range(SHAPE[0]):
            yield from index[image][region[image].flatten()][:1].tolist()


def changed(tensor: Tensor, place: int, value: float) -> Tensor:
    result = tensor.clone()
    result.view(-1)[place] = value
    return result


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", operations())
def test_what_is_not_finite_stays_where_it_is(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == "eager as on a GPU":
        for function in ("forward", "backward"):
            monkeypatch.setattr(bain_attention, function, partial(getattr(bain_attention, function), static=True))
        monkeypatch.setattr(region_norm, "_region_sums", region_norm._sums_apart)
        backend = "eager"
    else:
        monkeypatch.setattr(bain_attention, "SMALL_MAP", 0)
    operation, tensors = operations()[name]
    outputs = operation(*tensors)
    size = sum(output.numel() for output in (outputs if isinstance(outputs, tuple) else (outputs,)))
    inputs = [*tensors, random(size, seed=20)]
    clean = results_of(operation, inputs, backend)
    spoiled = 0
    for position, tensor in enumerate(inputs):
        for place in places(tensor):

            def put(value: float, position: int = position, place: int = place) -> Tensor:
                these = list(inputs)
                these[position] = changed(these[position], place, value)
                return results_of(operation, these, backend)

            depends = torch.zeros_like(clean, dtype=torch.bool)
            for change in CHANGES:
                depends |= (put(change) - clean).abs() > NOISE
            for value in (torch.nan, torch.inf):
                got = put(value)
                spoiled += int((~got.isfinite()).sum())
                leaked = (~depends & ~((got - clean).abs() <= NOISE)).nonzero().flatten().tolist()
                assert not leaked, f"input {position} at {place} is {value}: results {leaked[:9]} of {len(clean)}"
    assert spoiled > 0


@pytest.mark.parametrize("backend", BACKENDS[:2])
@pytest.mark.parametrize("method", TRANSFERS)
def test_a_colour_that_is_not_finite_spoils_its_images_masked_pixels(method: str, backend: str) -> None:
    source, reference = (torch.rand(3, 3, 4, 5, generator=torch.Generator().manual_seed(s)).double() for s in (0, 1))
    level = regions().at(4, 5)
    mask, there = level.foreground, ~level.foreground
    there[2] = True  # image 1 has no mask, and image 2 is measured as a whole

    def transfer(source: Tensor, reference: Tensor) -> Tensor:
        return sf.ops.transfer_color(source, reference, method, mask.double(), backend, there.double())

    clean = transfer(source, reference)
    for value in (torch.nan, torch.inf):
        for picture, region in ((source, mask), (reference, there)):
            for image in range(3):
                for inside in (True, False):
                    pixels = (region[image, 0] == inside).flatten().nonzero().flatten().tolist()[:1]
                    for pixel in pixels:
                        place = (3 * image + 1) * 20 + pixel
                        changes = {id(picture): changed(picture, place, value)}
                        these = [changes.get(id(p), p) for p in (source, reference)]
                        wanted = clean.clone()
                        if inside and image != 1:  # nothing of image 1 is measured
                            wanted[image] = torch.where(mask[image], torch.nan, clean[image])
                        elif picture is source:
                            wanted.view(-1)[place] = value
                        torch.testing.assert_close(transfer(*these), wanted, rtol=0, atol=NOISE, equal_nan=True)
