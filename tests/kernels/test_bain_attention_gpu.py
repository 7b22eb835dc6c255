"""bain_attention's kernels, Triton's and the compiled ones, on a CUDA device: accuracy of every dtype and of TF32,
equal bits, streams, CUDA graphs."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from attention_oracle import EPS, KINDS, SCALE, assert_accurate, both, inputs
from oracle import make_mask, random
from second_gpu import assert_same_on_the_second_gpu, two_gpus
from torch import Tensor

import scsco_fast as sf
from scsco_fast import cuda, kernels
from scsco_fast.ops.backend import implementation
from scsco_fast.regions import Regions

pytestmark = pytest.mark.gpu
ROOMS = {"triton": kernels, "cuda": cuda}


@pytest.fixture(params=["triton", "cuda"])
def module(request: pytest.FixtureRequest) -> Any:
    """A backend's forward and backward."""
    reason = ROOMS[request.param].unavailable()
    if reason is not None:
        pytest.skip(reason)
    return implementation(request.param, "bain_attention")


@pytest.fixture
def tf32(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if request.node.callspec.params["kind"] == "tf32" else "highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("size", "keys", "channels"),
    [(32, 64, 64), (24, 64, 128), (16, 64, 512), (9, 20, 40), (16, 256, 256), (7, 70, 100)],
)
def test_accuracy(module: Any, kind: str, size: int, keys: int, channels: int) -> None:
    tensors, level = inputs(kind, 3, size, keys, channels, "cuda")
    assert_accurate(module, tensors, level, kind)


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("kind", KINDS)
def test_repeated_runs_and_side_streams_give_the_same_bits(module: Any, kind: str) -> None:
    tensors, level = inputs(kind, 4, 32, 64, 128, "cuda")
    first = both(module, tensors, level)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        aside = both(module, tensors, level)
    torch.cuda.current_stream().wait_stream(stream)
    for again in (both(module, tensors, level), aside):
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@two_gpus
@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("keys", "channels"), [(64, 64), (64, 128), (256, 256)])
def test_on_another_gpu_than_the_current_one(module: Any, kind: str, keys: int, channels: int) -> None:
    tensors, level = inputs(kind, 3, 17, keys, channels, "cuda")

    def compute(*found: Tensor) -> list[Tensor]:
        *maps, order, counts = found
        return both(module, maps, SimpleNamespace(order=order, counts=counts))

    assert_same_on_the_second_gpu(compute, [*tensors, level.order, level.counts])


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("kind", KINDS)
def test_cuda_graph_replays_with_other_inputs_and_masks(module: Any, kind: str) -> None:
    tensors, level = inputs(kind, 3, 16, 64, 64, "cuda")
    both(module, tensors, level)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both(module, tensors, level)
    for seed, mask in enumerate(("block", "empty", "full", "one pixel", "random")):
        other = Regions(make_mask(mask, 3, 16, 16).cuda()).at(16, 16)
        for tensor in tensors:
            tensor.copy_(random(*tensor.shape, seed=seed + 50, dtype=tensor.dtype))
        level.order.copy_(other.order)
        level.counts.copy_(other.counts)
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(captured, both(module, tensors, other), strict=True))


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "keys", "channels"), [(32, 64, 64), (16, 64, 256), (9, 20, 40)])
def test_norm_is_the_attention_s_statistics_and_the_affine(kind: str, size: int, keys: int, channels: int) -> None:
    """bain_norm, forward and backward, against the formula on bain_attention's own mean and std in float32."""
    reason = kernels.unavailable()
    if reason is not None:
        pytest.skip(reason)
    (query, key, value, normalised, grad), level = inputs(kind, 3, size, keys, channels, "cuda")
    regions = Regions(level.foreground.float())
    parameters = [random(channels, seed=seed, dtype=torch.float32, offset=0.5).cuda() for seed in range(10, 14)]
    results = []
    for fused in (True, False):
        leaves = [t.detach().requires_grad_() for t in (query, key, value, normalised, *parameters)]
        q, k, v, n, *p = leaves
        if fused:
            y = sf.ops.bain_norm(q, k, v, n, regions, *p, scale=SCALE, backend="triton")
        else:
            mean, std = sf.ops.bain_attention(q, k, v, regions, SCALE, EPS, "triton")
            wf, bf, wb, bb = (t.reshape(1, -1, 1, 1) for t in p)
            y = torch.where(level.foreground, (std * n + mean) * wf + bf, n * wb + bb)
        results.append([y, *torch.autograd.grad(y, leaves, grad.to(y.dtype))])
    # The unfused form rounds mean, std, their gradients and three products to the maps' dtype.
    eps = torch.finfo(torch.bfloat16 if kind == "bfloat16" else torch.float16).eps
    for index, (ours, theirs) in enumerate(zip(*results, strict=True)):
        error, size_of = float((ours.double() - theirs.double()).abs().max()), float(theirs.double().abs().max())
        assert error <= 8 * eps * size_of, f"result {index} is off by {error:.3g} of {size_of:.3g}"


def test_addresses_pass_2_to_the_31(module: Any) -> None:
    """512 channels of 2048 x 2056 pixels, of which a strip is valid: the last rows lie past 2^31 elements."""
    if torch.cuda.get_device_properties(0).total_memory < 70 * 2**30:
        pytest.skip("needs 70 GiB of GPU memory")
    height, width = 2048, 2056
    mask, valid = (torch.zeros(1, 1, height, width, device="cuda") for _ in range(2))
    mask[..., -1, :50] = 1
    valid[..., -1, :150] = 1
    level = Regions(mask, valid).at(height, width)
    query, key = (torch.randn(1, 16, height, width, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    value = torch.randn(1, 512, height, width, device="cuda", dtype=torch.bfloat16)
    mean, std, *_ = module.forward(query, key, value, level.order, level.counts, SCALE, EPS)
    strip = [t[:, :, -1:, :150].contiguous() for t in (query, key, value, mask)]
    near = Regions(strip[3]).at(1, 150)
    wanted = module.forward(*strip[:3], near.order, near.counts, SCALE, EPS)
    assert torch.equal(mean[:, :, -1:, :50], wanted[0][..., :50])
    assert torch.equal(std[:, :, -1:, :50], wanted[1][..., :50])
