"""Cases and derived tolerances that the operations' tests share.

A result is held to the float64 reference on the same (rounded) inputs, in the maximum norm. It may err by twice what
the float32 reference errs plus the rounding band, which is one rounding to its own dtype and log2(n) float32 roundings,
the bound of a pairwise sum of n terms:

    2 * (|reference32 - oracle| + (eps(dtype) + log2(n) eps(float32)) |oracle|)

Without the logarithm one lucky sum of the reference decides. A float64 result has no wider oracle: two float64 sums of
up to 10^3 terms in different orders differ by at most 10^3 eps, 2e-13 of the terms' magnitude; `FLOAT64` is 1e-12.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import scsco_fast as sf

FLOAT64 = 1e-12
MASKS = ("random", "empty", "full", "one pixel", "all but one", "ragged", "soft", "block")
# Of torch.library.opcheck, for any backend; tests/ops/test_registration.py adds the comparison of traced gradients.
OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


def make_mask(kind: str, batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    """(B, 1, H, W) float64; in "ragged" every image of the batch has another number of foreground pixels, one none."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(batch, 1, height, width, dtype=torch.float64)
    noise = torch.rand(mask.shape, generator=generator, dtype=torch.float64)
    if kind == "random":
        mask = (noise > 0.6).double()
    elif kind == "full":
        mask.fill_(1)
    elif kind == "one pixel":
        mask[..., height // 2, width // 3] = 1
    elif kind == "all but one":
        mask.fill_(1)[..., height // 2, width // 3] = 0
    elif kind == "ragged":
        mask = (noise < torch.linspace(0, 1, batch, dtype=torch.float64).reshape(-1, 1, 1, 1)).double()
    elif kind == "soft":
        mask = noise
    elif kind == "block":
        mask[..., : max(1, height // 2), : max(1, width // 2)] = 1
    return mask


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64, offset: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) + offset).to(dtype)


def run(operation: Callable[..., Tensor | tuple[Tensor, ...]], tensors: Sequence[Tensor], backend: str) -> list[Tensor]:
    """Outputs, and gradients of a fixed random projection of them, for every tensor."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    with sf.use_backend(backend):
        outputs = operation(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    # Rounded to bfloat16 first, so that the projection is the same number in every dtype.
    weights = [random(*o.shape, seed=7 + i, dtype=torch.bfloat16).to(o.dtype) for i, o in enumerate(outputs)]
    loss = sum((o * w).sum() for o, w in zip(outputs, weights, strict=True))
    grads = torch.autograd.grad(loss, leaves)
    return [*(o.detach() for o in outputs), *grads]


def assert_matches(
    operation: Callable[..., Tensor | tuple[Tensor, ...]],
    tensors: Sequence[Tensor],
    backend: str = "eager",
    products: torch.dtype = torch.float64,
) -> None:
    """Hold a backend, forward and backward, to the float64 reference.

    `products` is the dtype in which matrices are multiplied, where a result has a finer one of its own.
    """
    got = run(operation, tensors, backend)
    wide = [torch.float64 if t.dtype == torch.float64 else torch.float32 for t in tensors]
    near = run(operation, [t.to(d) for t, d in zip(tensors, wide, strict=True)], "reference")
    oracle = run(operation, [t.double() for t in tensors], "reference")
    terms = max(t.numel() for t in tensors)
    for index, (ours, theirs, truth) in enumerate(zip(got, near, oracle, strict=True)):
        assert torch.isfinite(ours).all(), f"result {index} is not finite"
        size = float(truth.abs().max())
        band = max(torch.finfo(ours.dtype).eps, torch.finfo(products).eps)
        band += math.log2(max(terms, 2)) * torch.finfo(torch.float32).eps
        allowed = 2 * (float((theirs.double() - truth).abs().max()) + band * size)
        if ours.dtype == torch.float64:
            allowed = FLOAT64 * (1 + size)
        error = float((ours.double() - truth).abs().max())
        assert error <= allowed, f"result {index} is off by {error:.3g}, allowed {allowed:.3g}"


def every_operation(query: Tensor, key: Tensor, x: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """One number of every differentiable operation, from the mask on."""
    regions = sf.Regions(mask)
    y = sf.ops.region_norm(x, regions, fg_weight=weight)
    mean, std = sf.ops.bain_attention(query, key, y, regions)
    z = sf.ops.bain_norm(query, key, y, y, regions, weight)
    others = torch.stack([mean, std], 1)
    distances = sf.ops.feature_distances(y, others) + sf.ops.gram_distances(y, x, others)
    return distances.sum() + sf.ops.masked_gram(z, regions).sum() + sf.ops.cross_gram(mean, std).sum()


def every_operation_inputs(height: int = 6, width: int = 8) -> list[Tensor]:
    tensors = [random(2, 4, height, width, seed=s, dtype=torch.float32).requires_grad_() for s in range(3)]
    return [*tensors, make_mask("random", 2, height, width), torch.ones(4, requires_grad=True)]


class NoReading(TorchFunctionMode):
    """Raises where Python asks a tensor for its values."""

    READS = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "nonzero", "equal")

    def __torch_function__(self, function, types, arguments=(), keywords=None):  # type: ignore[no-untyped-def]
        if getattr(function, "__name__", "") in self.READS:
            raise AssertionError(f"{function} waits for the device")
        return function(*arguments, **(keywords or {}))


class NoWaiting(TorchDispatchMode):
    """Raises where torch's own code reads a value back, out of Python's sight."""

    WAITS = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select")

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):  # type: ignore[no-untyped-def]
        if function.overloadpacket.__name__ in self.WAITS:
            raise AssertionError(f"{function} waits for the device")
        return function(*arguments, **(keywords or {}))
