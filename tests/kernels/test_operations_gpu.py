"""Triton's and the compiled kernels of all operations but bain_attention on a CUDA device: accuracy, equal bits,
streams, CUDA graphs."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from oracle import make_mask, random
from second_gpu import assert_same_on_the_second_gpu, two_gpus
from torch import Tensor

import scsco_fast as sf
from scsco_fast import cuda, kernels
from scsco_fast.eager import cross_gram as eager_cross_gram
from scsco_fast.eager import feature_distances as eager_feature_distances
from scsco_fast.eager import gram_distances as eager_gram_distances
from scsco_fast.eager import masked_gram as eager_masked_gram
from scsco_fast.eager import region_norm as eager_region_norm
from scsco_fast.ops._transfer_color import TRANSFERS
from scsco_fast.ops.backend import implementation

pytestmark = pytest.mark.gpu
KINDS = ["bfloat16", "float16", "tf32", "float32"]
OPERATIONS = ["region_norm", "masked_gram", "cross_gram", "feature_distances", "gram_distances"]
EAGER = {
    "region_norm": eager_region_norm,
    "masked_gram": eager_masked_gram,
    "cross_gram": eager_cross_gram,
    "feature_distances": eager_feature_distances,
    "gram_distances": eager_gram_distances,
}
# One rounding of each operand of a product: of TF32's ten bits, or of the dtype's own.
OPERAND_EPS = {"bfloat16": 2**-7, "float16": 2**-10, "tf32": 2**-10, "float32": 2**-23}


ROOMS = {"triton": kernels, "cuda": cuda}


@pytest.fixture(params=["triton", "cuda"])
def backend(request: pytest.FixtureRequest) -> str:
    reason = ROOMS[request.param].unavailable()
    if reason is not None:
        pytest.skip(reason)
    return str(request.param)


@pytest.fixture
def tf32(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if request.node.callspec.params["kind"] == "tf32" else "highest")
    yield
    torch.set_float32_matmul_precision(before)


def kernels_of(backend: str, name: str) -> object:
    return implementation(backend, name)


def inputs(name: str, kind: str, channels: int, size: int, mask: str = "ragged") -> dict[str, Tensor]:
    """Maps, parameters, gradients and masks of an operation on the device."""
    dtype = torch.float32 if kind == "tf32" else getattr(torch, kind)
    batch, others = 3, 3
    x = random(batch, channels, size, size, offset=1.0).abs()
    shift = torch.tensor([2.0, 4.0, -6.0], dtype=torch.float64).reshape(1, -1, 1, 1, 1)
    tensors = {
        "x": x,
        "b": random(batch, channels, size, size, seed=1).abs(),
        "others": random(batch, others, channels, size, size, seed=2).abs() + x.unsqueeze(1) + shift,
        "grad": random(batch, channels, size, size, seed=3),
    }
    result = {key: tensor.to(dtype).cuda() for key, tensor in tensors.items()}
    result["parameters"] = random(4, channels, seed=4, dtype=torch.float32).cuda()
    result["grad_gram"] = random(batch, channels, channels, seed=5, dtype=torch.float32).cuda()
    result["grad_distance"] = random(batch, others, seed=6, dtype=torch.float32).cuda()
    result["foreground"] = sf.Regions(make_mask(mask, batch, size, size).cuda()).at(size, size).foreground
    return result


def both(module: object, name: str, t: dict[str, Tensor]) -> list[Tensor]:
    """Outputs and gradients of an implementation, `kernels` or `eager`."""
    x, b, others, fg = t["x"], t["b"], t["others"], t["foreground"]
    if name == "region_norm":
        y, mean, std = module.forward(x, fg, None, t["parameters"], 1e-5, True)
        grads = module.backward(t["grad"], x, fg, None, t["parameters"], mean, std, True)
        return [y, mean, std, *grads]
    if name == "masked_gram":
        return [module.forward(x, fg), module.backward(t["grad_gram"], x, fg)]
    if name == "cross_gram":
        return [module.forward(x, b), *module.backward(t["grad_gram"], x, b)]
    if name == "feature_distances":
        return [module.forward(x, others), *module.backward(t["grad_distance"], x, others, False)]
    distances, signs = module.forward(x, b, others)
    return [distances, *module.backward(t["grad_distance"], signs, x, b, others, False)]


def assert_accurate(module: object, name: str, kind: str, tensors: dict[str, Tensor]) -> None:
    """Within two roundings of every operand and of the result, and log2(n) float32 roundings of a sum."""
    wide = {key: t.double() if t.is_floating_point() else t for key, t in tensors.items()}
    terms = math.log2(max(t.numel() for t in tensors.values()))
    truths = both(EAGER[name], name, wide)
    products = 0.0 if name in ("region_norm", "feature_distances") else 2 * OPERAND_EPS[kind]
    for index, (ours, truth) in enumerate(zip(both(module, name, tensors), truths, strict=True)):
        band = torch.finfo(ours.dtype).eps + products + terms * torch.finfo(torch.float32).eps
        error, allowed = float((ours.double() - truth).abs().max()), 2 * band * float(truth.abs().max())
        assert error <= allowed, f"result {index} is off by {error:.3g}, allowed {allowed:.3g}"


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("channels", "size"), [(64, 32), (512, 16), (130, 9), (3, 65)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_accuracy(backend: str, name: str, channels: int, size: int, kind: str) -> None:
    assert_accurate(kernels_of(backend, name), name, kind, inputs(name, kind, channels, size))


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("channels", "size"), [(136, 17), (3, 9)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_channels_last(backend: str, name: str, channels: int, size: int, kind: str) -> None:
    tensors = inputs(name, kind, channels, size)
    for key in ("x", "b", "others", "grad"):
        tensors[key] = tensors[key].movedim(-3, -1).contiguous().movedim(-1, -3)
    assert_accurate(kernels_of(backend, name), name, kind, tensors)


def assert_same_bits(compute: Callable[[], list[Tensor]]) -> None:
    first = compute()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        aside = compute()
    torch.cuda.current_stream().wait_stream(stream)
    for again in (compute(), aside):
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_repeated_runs_and_side_streams_give_the_same_bits(backend: str, name: str, kind: str) -> None:
    tensors = inputs(name, kind, 128, 32)
    assert_same_bits(lambda: both(kernels_of(backend, name), name, tensors))


@two_gpus
@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [64, 256])
@pytest.mark.parametrize("name", OPERATIONS)
def test_on_another_gpu_than_the_current_one(backend: str, name: str, channels: int, kind: str) -> None:
    module, tensors = kernels_of(backend, name), inputs(name, kind, channels, 17)

    def compute(*found: Tensor) -> list[Tensor]:
        return both(module, name, dict(zip(tensors, found, strict=True)))

    assert_same_on_the_second_gpu(compute, list(tensors.values()))


@pytest.mark.parametrize("name", OPERATIONS)
def test_cuda_graph_replays_with_other_inputs_and_masks(backend: str, name: str) -> None:
    module, tensors = kernels_of(backend, name), inputs(name, "bfloat16", 64, 16)
    both(module, name, tensors)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both(module, name, tensors)
    for mask in ("block", "empty", "full", "one pixel", "random"):
        for key, tensor in inputs(name, "bfloat16", 64, 16, mask).items():
            tensors[key].copy_(tensor.flip(0))
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(captured, both(module, name, tensors), strict=True))


def pictures(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    source = torch.rand(2, 3, 96, 80, generator=generator) * 0.5 + 0.2
    return source.to(dtype).cuda(), (torch.rand(2, 3, 64, 90, generator=generator) ** 2).to(dtype).cuda()


@pytest.mark.parametrize("backend", ["triton"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", TRANSFERS)
def test_transfer_color(backend: str, method: str, dtype: torch.dtype) -> None:
    source, reference = pictures(dtype)
    masks = [make_mask(kind, 2, *t.shape[2:]).cuda() > 0.5 for kind, t in (("block", source), ("random", reference))]
    module = kernels_of(backend, "transfer_color")
    result = module.forward(source, reference, *masks, method)
    wanted = sf.ops.transfer_color(
        source.double(), reference.double(), method, masks[0], "eager", reference_mask=masks[1]
    )
    near = {"reinhard": 2e-4, "gaussian": 2e-5, "histogram": 1 / 256}[method] + torch.finfo(dtype).eps
    torch.testing.assert_close(result.double(), wanted, rtol=0, atol=near)
    assert_same_bits(lambda: [module.forward(source, reference, *masks, method)])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = module.forward(source, reference, *masks, method)
    for mask in ("empty", "full", "one pixel"):
        masks[0].copy_(make_mask(mask, 2, 96, 80).cuda() > 0.5)
        source.copy_(source.flip(1))
        graph.replay()
        assert torch.equal(captured, module.forward(source, reference, *masks, method))


@two_gpus
@pytest.mark.parametrize("backend", ["triton"], indirect=True)
@pytest.mark.parametrize("method", TRANSFERS)
def test_transfer_color_on_another_gpu_than_the_current_one(backend: str, method: str) -> None:
    source, reference = pictures(torch.float32)
    masks = [t[:, :1] > 0.4 for t in (source, reference)]
    module = kernels_of(backend, "transfer_color")
    assert_same_on_the_second_gpu(lambda *found: [module.forward(*found, method)], [source, reference, *masks])


@pytest.mark.parametrize("name", ["region_norm", "feature_distances"])
def test_addresses_pass_2_to_the_31(backend: str, name: str) -> None:
    """Two images of 3 * 2^30 bytes and more: the second lies past 2^31 elements."""
    if torch.cuda.get_device_properties(0).total_memory < 40 * 2**30:
        pytest.skip("needs 40 GiB of GPU memory")
    module = kernels_of(backend, name)
    x = torch.randn(2, 8, 11600, 11600, device="cuda", dtype=torch.bfloat16)
    if name == "feature_distances":
        assert torch.equal(module.forward(x, x.flip(0).unsqueeze(1))[1], module.forward(x[1:], x[:1].unsqueeze(1))[0])
        return
    foreground = torch.rand(2, 1, 11600, 11600, device="cuda") > 0.5
    affine = torch.tensor([[1.0], [0.0], [1.0], [0.0]], device="cuda").expand(4, 8)
    y, *_ = module.forward(x, foreground, None, affine, 1e-5, True)
    alone, *_ = module.forward(x[1:], foreground[1:], None, affine, 1e-5, True)
    torch.testing.assert_close(y[1:], alone)
