"""Every operation in every dtype, at ordinary and at extreme values, on both backends, held to float64.

Everything between input and result is float32 or wider. So a result may be infinite only where the true value does not
fit its dtype: with inputs of 1e4, which float16 holds, some gradients are beyond its 65504.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from oracle import make_mask, random, run
from torch import Tensor

import scsco_fast as sf
from scsco_fast.ops._transfer_color import TRANSFERS

pytestmark = pytest.mark.usefixtures("one_thread", "either_product", "exact_shape")
BACKENDS = ("reference", "eager")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MASKS = ("random", "one pixel", "empty", "full", "all but one")
VALUES = ("ordinary", "large", "constant", "tiny")
SHAPE = (2, 3, 5, 6)
SLACK = 4  # where big terms cancel, the float32 reference's own error is one draw, and may be a lucky one

Operation = Callable[..., Tensor | tuple[Tensor, ...]]


def maps(values: str, count: int) -> list[Tensor]:
    """`count` different float64 maps."""
    found = [random(*SHAPE, seed=seed, offset=0.5 * seed) for seed in range(count)]
    if values == "constant":
        return [torch.full(SHAPE, 0.75 + seed) for seed in range(count)]
    return [tensor * {"ordinary": 1, "large": 1e4, "tiny": 1e-4}[values] for tensor in found]


def distant(anchor: Tensor) -> Tensor:
    """Others (B, 2, C, H, W) on both sides of the anchor: no difference is so small that rounding chooses its sign."""
    return torch.stack([2 * anchor, -anchor], dim=1)


def parameters() -> list[Tensor]:
    return [random(SHAPE[1], seed=seed) for seed in (11, 12, 13, 14)]


def masked_cases(values: str) -> dict[str, tuple[Callable[..., Operation], list[Tensor]]]:
    """Of each operation that takes a mask: the operation with it, and its inputs."""
    query, key, value, normalised = maps(values, 4)
    return {
        "region_norm": (lambda m: lambda x, *p: sf.ops.region_norm(x, m, *p), [value, *parameters()]),
        "region_norm, not adapting": (
            lambda m: lambda x, *p: sf.ops.region_norm(x, m, *p, adapt=False),
            [value, *parameters()],
        ),
        "bain_attention": (lambda m: lambda q, k, v: sf.ops.bain_attention(q, k, v, m), [query, key, value]),
        "bain_norm": (
            lambda m: lambda q, k, v, n, *p: sf.ops.bain_norm(q, k, v, n, m, *p),
            [query, key, value, normalised, *parameters()],
        ),
        "masked_gram": (lambda m: lambda f: sf.ops.masked_gram(f, m), [value]),
    }


def free_cases(values: str) -> dict[str, tuple[Operation, list[Tensor]]]:
    """The same of those that take none."""
    anchor, background = (tensor.abs() for tensor in maps(values, 2))
    return {
        "cross_gram": (sf.ops.cross_gram, [anchor, background]),
        "feature_distances": (sf.ops.feature_distances, [anchor, distant(anchor)]),
        "gram_distances": (sf.ops.gram_distances, [anchor, background, distant(anchor)]),
    }


def assert_precise(operation: Operation, tensors: Sequence[Tensor], dtype: torch.dtype, where: str) -> int:
    """Hold both backends to the float64 reference of the rounded inputs (oracle.py); how many values do not fit."""
    rounded = [tensor.to(dtype) for tensor in tensors]
    oracle = run(operation, [tensor.double() for tensor in rounded], "reference")
    near = run(operation, [tensor.float() for tensor in rounded], "reference")
    terms = math.log2(max(tensor.numel() for tensor in tensors)) * torch.finfo(torch.float32).eps
    unfit = 0
    for backend in BACKENDS:
        got = run(operation, rounded, backend)
        for index, (ours, theirs, truth) in enumerate(zip(got, near, oracle, strict=True)):
            info = torch.finfo(ours.dtype)
            assert truth.isfinite().all(), where
            fits = truth.abs() <= info.max
            band = info.eps + terms
            size = truth.abs().where(fits, 0).max()
            subnormal = info.smallest_normal * info.eps  # below the smallest normal number steps are equal
            allowed = SLACK * ((theirs - truth).abs().where(fits, 0).max() + band * size + subnormal)
            fits &= truth.abs() + allowed <= info.max
            error = (ours.double() - truth).abs().where(fits, 0).max()  # NaN or infinite if such a value is
            assert error <= allowed, f"{where}, {dtype}, {backend}, result {index}: {error:.3g}, allowed {allowed:.3g}"
            unfit += int((~fits).sum())
    return unfit


def may_overflow(name: str, values: str, dtype: torch.dtype) -> bool:
    """Gradients of float16 gains are sums over pixels; with values of 1e4 they pass 65504."""
    return name in ("region_norm", "bain_norm") and values == "large" and dtype == torch.float16


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("name", masked_cases("ordinary"))
def test_masked_operations(name: str, values: str) -> None:
    operation, tensors = masked_cases(values)[name]
    unfit = dict.fromkeys(DTYPES, 0)
    for mask in MASKS:
        regions = sf.Regions(make_mask(mask, SHAPE[0], *SHAPE[2:]))
        for dtype in DTYPES:
            unfit[dtype] += assert_precise(operation(regions), tensors, dtype, mask)
    for dtype, number in unfit.items():
        assert (number > 0) == may_overflow(name, values, dtype)


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("name", free_cases("ordinary"))
def test_operations_without_a_mask(name: str, values: str) -> None:
    operation, tensors = free_cases(values)[name]
    for dtype in DTYPES:
        assert assert_precise(operation, tensors, dtype, values) == 0


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("method", TRANSFERS)
def test_transfer_color(method: str, values: str) -> None:
    """Pictures; "large" ones are far outside of [0, 1], where the operation only has to stay in it."""
    pictures = [tensor.abs() if values == "large" else tensor.abs().clamp(max=1) for tensor in maps(values, 2)]
    edge = 1 / 256 if method == "histogram" else 0  # a value on a bin's edge may fall into the next bin
    for mask in MASKS:
        regions = sf.Regions(make_mask(mask, SHAPE[0], *SHAPE[2:]))
        for dtype in DTYPES:
            source, reference = (picture.to(dtype) for picture in pictures)
            for backend in BACKENDS:
                transfer = partial(sf.ops.transfer_color, method=method, mask=regions, backend=backend)
                got = transfer(source, reference)
                assert got.dtype == dtype
                outside = regions.at(*SHAPE[2:]).background.expand_as(got)
                assert torch.equal(got[outside], source[outside])
                inside = got[~outside].double()
                if values == "large" or mask == "empty":
                    assert ((inside >= 0) & (inside <= 1)).all()
                    continue
                near, truth = (
                    transfer(source.to(d), reference.to(d))[~outside] for d in (torch.float32, torch.float64)
                )
                allowed = SLACK * ((near - truth).abs().max() + torch.finfo(dtype).eps) + edge
                assert ((inside - truth).abs() <= allowed).all(), (mask, dtype, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_results_have_the_dtypes_that_are_promised(backend: str, dtype: torch.dtype) -> None:
    mask = make_mask("random", SHAPE[0], *SHAPE[2:])
    own = {"region_norm", "region_norm, not adapting", "bain_attention", "bain_norm"}
    cases = {name: (build(mask), tensors) for name, (build, tensors) in masked_cases("ordinary").items()}
    for name, (operation, tensors) in (cases | free_cases("ordinary")).items():
        for widest in (dtype, torch.float32, torch.float64):
            given = [tensors[0].to(dtype), *(tensor.to(widest) for tensor in tensors[1:])]
            results = run(operation, given, backend)
            outputs, gradients = results[: -len(given)], results[-len(given) :]
            assert [g.dtype for g in gradients] == [t.dtype for t in given], name
            wide = torch.float64 if torch.float64 in {tensor.dtype for tensor in given} else torch.float32
            like = {"bain_attention": given[2:3], "bain_norm": given[3:4]}.get(name, given[:1])
            assert {o.dtype for o in outputs} == ({like[0].dtype} if name in own else {wide}), name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_reaches_nothing_but_query_and_key(backend: str, dtype: torch.dtype) -> None:
    """Neither forward nor, where `backward` is called under autocast too, the backward of our own formulas."""
    mask = make_mask("random", SHAPE[0], *SHAPE[2:])
    cases = {name: (build(mask), tensors) for name, (build, tensors) in masked_cases("ordinary").items()}
    for name, (operation, tensors) in (cases | free_cases("ordinary")).items():
        given = [tensor.float() for tensor in tensors]
        if name.startswith("bain"):
            given[:2] = [tensor.to(dtype) for tensor in given[:2]]
        wanted = run(operation, given, backend)
        with torch.autocast("cpu", dtype):
            got = run(operation, given, backend)
        # Of the reference, autograd multiplies the matrices of the backward, by the rules of where it is called.
        count = len(wanted) - len(given) if backend == "reference" else len(wanted)
        for ours, theirs in zip(got[:count], wanted[:count], strict=True):
            assert torch.equal(ours, theirs), name
    pictures = [tensor.abs().clamp(max=1).float() for tensor in maps("ordinary", 2)]
    for method in TRANSFERS:
        plain = sf.ops.transfer_color(*pictures, method, mask, backend)
        with torch.autocast("cpu", dtype):
            assert torch.equal(sf.ops.transfer_color(*pictures, method, mask, backend), plain), method
