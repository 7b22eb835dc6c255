"""bain_attention: backends against the formula in float64, gradients, memory, and what holds for any mask."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from oracle import MASKS, assert_matches, make_mask, random, run

import scsco_fast as sf
from scsco_fast.eager import bain_attention as eager
from scsco_fast.regions import Regions

BACKENDS = ["reference", "eager"]


def inputs(batch: int, height: int, width: int, dtype: torch.dtype = torch.float64, keys: int = 4, channels: int = 5):
    shapes = [(batch, keys, height, width)] * 2 + [(batch, channels, height, width)]
    return [random(*shape, seed=seed, dtype=dtype, offset=seed - 1.0) for seed, shape in enumerate(shapes)]


@pytest.mark.usefixtures("exact_shape")
@pytest.mark.parametrize("mask", ["random", "one pixel", "all but one"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (15, 16), (17, 31), (1, 130)])
def test_odd_shapes(shape: tuple[int, int], mask: str) -> None:
    """Where nearly all pixels are keys, no others are left to round their number up with."""
    valid = make_mask("random", 2, *shape, seed=5) if mask == "random" else None
    regions = Regions(make_mask(mask, 2, *shape), valid)
    assert_matches(lambda q, k, v: sf.ops.bain_attention(q, k, v, regions), inputs(2, *shape, torch.float32))


@pytest.mark.usefixtures("either_product")
@pytest.mark.parametrize("shape", [(31, 33), (32, 64)])
def test_blocks_join(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eager, "BLOCK_ELEMENTS", 1)
    monkeypatch.setattr(eager, "MIN_ROWS", 7)
    regions = Regions(make_mask("random", 2, *shape))
    assert_matches(lambda q, k, v: sf.ops.bain_attention(q, k, v, regions), inputs(2, *shape, torch.float32))


def test_no_gradient_through_a_variance_below_zero() -> None:
    """Rounding makes b smaller than a^2 where the values are alike; at exactly 0 the gradient flows."""
    ones = torch.ones(1, 3, 1)
    moments = torch.cat([torch.full((1, 1, 3), 2.0), torch.tensor([[[3.999, 4.0, 5.0]]])], dim=1)
    da, db = eager._moments_gradient(ones.view(1, 1, 3), ones.view(1, 1, 3), moments, 1.0)[0]
    assert db.tolist() == pytest.approx([0, 0.5, 0.5 / 2**0.5])
    assert da.tolist() == pytest.approx([1, 1 - 4 * 0.5, 1 - 4 * 0.5 / 2**0.5])


@pytest.mark.parametrize("static", [False, True])
def test_a_constant_whose_square_overflows(static: bool) -> None:
    level, value = Regions(make_mask("random", 1, 5, 7)).at(5, 7), torch.full((1, 2, 5, 7), 1e25)
    query, key = random(1, 3, 5, 7, dtype=torch.float32), random(1, 3, 5, 7, seed=1, dtype=torch.float32)
    mean, std, *saved = eager.forward(query, key, value, level.order, level.counts, 0.5, 1e-5, static=static)
    grads = [torch.ones_like(value)] * 2
    results = eager.backward(*grads, query, key, value, level.order, level.counts, *saved, 0.5, 1e-5, static=static)
    assert all(result.isfinite().all() for result in (mean, std, *results))


@pytest.mark.parametrize("mask", MASKS)
def test_static_shape_equals_exact_shape(mask: str) -> None:
    """The path that a GPU takes, without a shape that depends on the mask."""
    level = Regions(make_mask(mask, 3, 5, 7), make_mask("random", 3, 5, 7, seed=9)).at(5, 7)
    query, key, value = inputs(3, 5, 7)
    excluded = ~(level.foreground | level.background)
    exact = eager.forward(query, key, value, level.order, level.counts, 0.5, 1e-5, static=False)
    query, key, value = (t.masked_fill(excluded, torch.nan) for t in (query, key, value))
    static = eager.forward(query, key, value, level.order, level.counts, 0.5, 1e-5, static=True)
    for ours, theirs in zip(static[:2], exact[:2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    grads = [random(3, 5, 5, 7, seed=seed) for seed in (1, 2)]
    results = [
        eager.backward(*grads, query, key, value, level.order, level.counts, *saved, 0.5, 1e-5, static=flag)
        for saved, flag in ((exact[2:], False), (static[2:], True))
    ]
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mask", ["random", "one pixel", "all but one", "empty", "full"])
def test_gradcheck(backend: str, mask: str) -> None:
    regions = Regions(make_mask(mask, 2, 3, 4))
    tensors = [t.requires_grad_() for t in inputs(2, 3, 4, keys=2, channels=2)]
    assert torch.autograd.gradcheck(lambda q, k, v: sf.ops.bain_attention(q, k, v, regions, backend=backend), tensors)


@pytest.mark.parametrize("backend", BACKENDS)
def test_uniform_attention_is_the_background_moments(backend: str) -> None:
    query, key, value = inputs(2, 6, 6)
    mask = make_mask("random", 2, 6, 6)
    mean, std = sf.ops.bain_attention(torch.zeros_like(query), key, value, mask, backend=backend)
    for image in range(2):
        inside = mask[image, 0] > 0.5
        back = value[image][:, ~inside]
        wanted = torch.sqrt(back.var(1, correction=0) + 1e-5)[:, None].expand(-1, int(inside.sum()))
        torch.testing.assert_close(std[image][:, inside], wanted)
        torch.testing.assert_close(mean[image][:, inside], back.mean(1)[:, None].expand_as(wanted))
        assert (mean[image][:, ~inside] == 0).all()
        assert (std[image][:, ~inside] == 1).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_background_gives_zero_one_and_no_gradient(backend: str) -> None:
    tensors = inputs(2, 4, 4)
    mean, std, *grads = run(
        lambda q, k, v: sf.ops.bain_attention(q, k, v, make_mask("full", 2, 4, 4)), tensors, backend
    )
    assert (mean == 0).all()
    assert (std == 1).all()
    assert all((grad == 0).all() for grad in grads)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_constant_background_gives_sqrt_eps_and_finite_gradients(backend: str, dtype: torch.dtype) -> None:
    query, key, _ = inputs(1, 4, 4, dtype)
    value = torch.full((1, 3, 4, 4), 0.7, dtype=dtype)
    mask = make_mask("block", 1, 4, 4)
    _, std, *grads = run(lambda q, k, v: sf.ops.bain_attention(q, k, v, mask), [query, key, value], backend)
    # 0.7 is no float: its mean over 12 pixels may be off by a bit, which the square makes negligible beside eps.
    torch.testing.assert_close(std[..., 0, 0], torch.full((1, 3), 1e-5, dtype=dtype).sqrt(), rtol=1e-4, atol=0)
    assert all(torch.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize("backend", BACKENDS)
def test_permuting_the_background_changes_nothing(backend: str) -> None:
    tensors = inputs(1, 6, 6)
    mask = make_mask("random", 1, 6, 6)
    back = (mask.flatten() < 0.5).nonzero().squeeze(1)
    shuffled = back[torch.randperm(len(back), generator=torch.Generator().manual_seed(1))]
    moved = []
    for tensor in tensors:
        rows = tensor.flatten(2).clone()
        rows[..., back] = rows[..., shuffled]
        moved.append(rows.reshape(tensor.shape))
    for before, after in zip(
        sf.ops.bain_attention(*tensors, mask, backend=backend),
        sf.ops.bain_attention(*moved, mask, backend=backend),
        strict=True,
    ):
        torch.testing.assert_close(before, after, rtol=1e-12, atol=1e-12)


def test_large_means_keep_their_digits() -> None:
    """|mean| / std = 1000: without the pivot, float32 would lose six of its seven digits of the variance."""
    query, key, value = inputs(1, 12, 12, torch.float32)
    value = value + 1000
    mask = make_mask("block", 1, 12, 12)
    _, std = sf.ops.bain_attention(query, key, value, mask, backend="eager")
    _, truth = sf.ops.bain_attention(query.double(), key.double(), value.double(), mask, backend="reference")
    torch.testing.assert_close(std.double(), truth, rtol=1e-5, atol=0)


def test_extreme_logits_stay_finite() -> None:
    query, key, value = inputs(1, 6, 6, torch.float32)
    results = run(
        lambda q, k, v: sf.ops.bain_attention(q, k, v, make_mask("block", 1, 6, 6), scale=1e4),
        [query, key, value],
        "eager",
    )
    assert all(torch.isfinite(result).all() for result in results)


def test_layouts_and_expanded_inputs() -> None:
    mask = make_mask("random", 2, 6, 4)
    tensors = [t.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) for t in inputs(2, 6, 4, torch.float32)]
    assert_matches(lambda q, k, v: sf.ops.bain_attention(q, k, v, mask), tensors)
    expanded = [t[:1].expand(2, -1, -1, -1) for t in tensors]
    assert_matches(lambda q, k, v: sf.ops.bain_attention(q, k, v, mask), expanded)
    repeats = [sf.ops.bain_attention(*tensors, mask, backend="eager") for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*repeats, strict=True))


def test_autocast_rounds_query_and_key_only() -> None:
    query, key, value = inputs(1, 6, 6, torch.float32)
    mask = make_mask("block", 1, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        mean, _ = sf.ops.bain_attention(query, key, value, mask)
    assert mean.dtype == torch.float32
    wanted, _ = sf.ops.bain_attention(query.bfloat16(), key.bfloat16(), value, mask)
    assert torch.equal(mean, wanted)


@pytest.mark.parametrize(
    ("position", "shape", "message"),
    [
        (1, (1, 3, 4, 4), "shape of key"),
        (2, (1, 3, 4, 5), "batch and size of value"),
        (0, (3, 4, 4), "query must have shape"),
    ],
)
def test_bad_shapes_are_named(position: int, shape: tuple[int, ...], message: str) -> None:
    tensors = inputs(1, 4, 4)
    tensors[position] = torch.zeros(shape)
    with pytest.raises(ValueError, match=message):
        sf.ops.bain_attention(*tensors, make_mask("block", 1, 4, 4))


MEMORY_PROGRAM = """
import torch, scsco_fast as sf
from scsco_fast.benchmarks.timing import reset_resident_peak, resident

def step(size, channels):
    query, key, value = (torch.randn(1, channels, size, size, requires_grad=True) for _ in range(3))
    mask = torch.zeros(1, 1, size, size)
    mask[..., : size // 2, : size // 2] = 1
    mean, std = sf.ops.bain_attention(query, key, value, mask, backend="{backend}")
    torch.autograd.grad(mean.sum() + std.square().sum(), [query, key, value])

torch.set_num_threads(1)
step(8, 8)
before = reset_resident_peak()
step({size}, 64)
print(resident("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize(("backend", "size", "most"), [("eager", 128, 2**30), ("reference", 64, None)])
def test_memory_is_not_that_of_the_attention_matrix(backend: str, size: int, most: int | None) -> None:
    """At 128x128 the matrix alone is 1 GiB; the eager backend never holds it. The reference shows that this is seen."""
    program = MEMORY_PROGRAM.format(backend=backend, size=size)
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root)
    peak = 1024 * int(done.stdout)
    if most is None:
        assert peak > 2 * 4 * (size * size) ** 2
    else:
        assert 2**20 < peak < most
