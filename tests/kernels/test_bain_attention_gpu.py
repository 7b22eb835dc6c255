"""bain_attention's kernels on a CUDA device: accuracy of every dtype and of TF32, equal bits, streams, CUDA graphs."""

import math
from collections.abc import Iterator

import pytest
import torch
from oracle import make_mask, random
from torch import Tensor

import scsco_fast as sf
from scsco_fast import kernels as room
from scsco_fast.eager import bain_attention as eager
from scsco_fast.regions import RegionLevel, Regions

pytestmark = pytest.mark.gpu
SCALE, EPS = 0.3, 1e-5
KINDS = ["bfloat16", "float16", "tf32", "float32"]


@pytest.fixture(autouse=True)
def served() -> None:
    reason = room.unavailable()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture
def tf32(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if request.node.callspec.params["kind"] == "tf32" else "highest")
    yield
    torch.set_float32_matmul_precision(before)


def inputs(kind: str, batch: int, size: int, keys: int, channels: int) -> tuple[list[Tensor], RegionLevel]:
    """query, key, value and both gradients on the device, and the regions of a ragged batch."""
    dtype = torch.float32 if kind == "tf32" else getattr(torch, kind)
    shapes = [(batch, keys, size, size)] * 2 + [(batch, channels, size, size)] * 3
    tensors = [random(*shape, seed=seed, dtype=dtype, offset=0.5).cuda() for seed, shape in enumerate(shapes)]
    return tensors, Regions(make_mask("ragged", batch, size, size).cuda()).at(size, size)


def both(tensors: list[Tensor], level: RegionLevel) -> list[Tensor]:
    """mean, std and the three gradients."""
    from scsco_fast.kernels import bain_attention as kernels

    query, key, value, grad_mean, grad_std = tensors
    mean, std, *saved = kernels.forward(query, key, value, level.order, level.counts, SCALE, EPS)
    grads = kernels.backward(grad_mean, grad_std, query, key, value, level.order, level.counts, *saved, SCALE, EPS)
    return [mean, std, *grads]


def rounded(tensor: Tensor, kind: str) -> Tensor:
    """float64 numbers as the operands of a product in `kind` would be."""
    if kind == "tf32":
        return ((tensor.float().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32).double()
    return tensor.to(getattr(torch, kind)).double()


def same_precision(tensors: list[Tensor], level: RegionLevel, kind: str) -> list[Tensor]:
    """The dense formulas with the operands of every product rounded to `kind`."""
    results = [torch.zeros_like(t, dtype=torch.float64) for t in (*tensors[2:3], *tensors[2:3], *tensors[:3])]
    results[1] += 1
    for image, (n_fg, n_bg) in enumerate(level.counts.tolist()):
        if not n_fg or not n_bg:
            continue
        at = level.order[image]
        fg, bg = at[:n_fg], at[len(at) - n_bg :]
        q, k, v, dm, ds = (t[image].double().flatten(1).T for t in tensors)
        q, k, v, dm, ds = rounded(q[fg], kind), rounded(k[bg], kind), v[bg], dm[fg], ds[fg]
        pivot = v.mean(0)
        v = rounded(v - pivot, kind)
        square = rounded(v * v, kind)
        p = (SCALE * q @ k.T).softmax(1)
        a, b = rounded(p, kind) @ v, rounded(p, kind) @ square
        std = ((b - a * a).clamp(min=0) + EPS).sqrt()
        d_var = 0.5 * ds / std
        da, db = rounded(dm - 2 * a * d_var, kind), rounded(d_var, kind)
        d_logits = rounded(p * (da @ v.T + db @ square.T - (da * a + db * b).sum(1, keepdim=True)), kind)
        d_value = rounded(p, kind).T @ da + 2 * v * (rounded(p, kind).T @ db)
        values = (a + pivot, std, SCALE * d_logits @ k, SCALE * d_logits.T @ q, d_value)
        for result, rows, where in zip(results, values, (fg, fg, fg, bg, bg), strict=True):
            result[image].flatten(1)[:, where] = rows.T
    return results


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("size", "keys", "channels"),
    [(32, 64, 64), (24, 64, 128), (16, 64, 512), (9, 20, 40), (16, 256, 256), (7, 70, 100)],
)
def test_accuracy(kind: str, size: int, keys: int, channels: int) -> None:
    tensors, level = inputs(kind, 3, size, keys, channels)
    wide = [t.double() for t in tensors]
    mean, std, *saved = eager.forward(*wide[:3], level.order, level.counts, SCALE, EPS)
    truths = [mean, std, *eager.backward(*wide[3:], *wide[:3], level.order, level.counts, *saved, SCALE, EPS)]
    terms = math.log2(max(t.numel() for t in tensors))
    for index, (ours, near, truth) in enumerate(
        zip(both(tensors, level), same_precision(tensors, level, kind), truths, strict=True)
    ):
        band = torch.finfo(ours.dtype).eps + terms * torch.finfo(torch.float32).eps
        allowed = 2 * (float((near - truth).abs().max()) + band * float(truth.abs().max()))
        error = float((ours.double() - truth).abs().max())
        assert error <= allowed, f"result {index} is off by {error:.3g}, allowed {allowed:.3g}"


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("kind", KINDS)
def test_repeated_runs_and_side_streams_give_the_same_bits(kind: str) -> None:
    tensors, level = inputs(kind, 4, 32, 64, 128)
    first = both(tensors, level)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        aside = both(tensors, level)
    torch.cuda.current_stream().wait_stream(stream)
    for again in (both(tensors, level), aside):
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("kind", KINDS)
def test_cuda_graph_replays_with_other_inputs_and_masks(kind: str) -> None:
    tensors, level = inputs(kind, 3, 16, 64, 64)
    both(tensors, level)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both(tensors, level)
    for seed, mask in enumerate(("block", "empty", "full", "one pixel", "random")):
        other = Regions(make_mask(mask, 3, 16, 16).cuda()).at(16, 16)
        for tensor in tensors:
            tensor.copy_(random(*tensor.shape, seed=seed + 50, dtype=tensor.dtype))
        level.order.copy_(other.order)
        level.counts.copy_(other.counts)
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(captured, both(tensors, other), strict=True))


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "keys", "channels"), [(32, 64, 64), (16, 64, 256), (9, 20, 40)])
def test_norm_is_the_attention_s_statistics_and_the_affine(kind: str, size: int, keys: int, channels: int) -> None:
    """bain_norm, forward and backward, against the formula on bain_attention's own mean and std in float32."""
    (query, key, value, normalised, grad), level = inputs(kind, 3, size, keys, channels)
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


def test_addresses_pass_2_to_the_31() -> None:
    """512 channels of 2048 x 2056 pixels, of which a strip is valid: the last rows lie past 2^31 elements."""
    if torch.cuda.get_device_properties(0).total_memory < 70 * 2**30:
        pytest.skip("needs 70 GiB of GPU memory")
    from scsco_fast.kernels import bain_attention as kernels

    height, width = 2048, 2056
    mask, valid = (torch.zeros(1, 1, height, width, device="cuda") for _ in range(2))
    mask[..., -1, :50] = 1
    valid[..., -1, :150] = 1
    level = Regions(mask, valid).at(height, width)
    query, key = (torch.randn(1, 16, height, width, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    value = torch.randn(1, 512, height, width, device="cuda", dtype=torch.bfloat16)
    mean, std, *_ = kernels.forward(query, key, value, level.order, level.counts, SCALE, EPS)
    strip = [t[:, :, -1:, :150].contiguous() for t in (query, key, value, mask)]
    near = Regions(strip[3]).at(1, 150)
    wanted = kernels.forward(*strip[:3], near.order, near.counts, SCALE, EPS)
    assert torch.equal(mean[:, :, -1:, :50], wanted[0][..., :50])
    assert torch.equal(std[:, :, -1:, :50], wanted[1][..., :50])
