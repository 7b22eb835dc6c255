"""Matrix products of the eager backend, by the faster of the libraries that PyTorch brings."""

import math

import torch
from torch import Tensor

# Below so many multiplications oneDNN gains less than 0.1 ms, and every new shape costs 0.3 ms for which it compiles.
FEWEST_MULTIPLICATIONS = 1 << 24


def product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right of (B, M, K) by (B, K, N).

    `@` on a CPU is MKL's, which uses half the width of an AMD processor's vectors: on a Zen 5 it reaches 200 GFLOP/s
    on two cores and oneDNN's float32 product 440. oneDNN compiles code for each shape that it meets and keeps the
    last 1024, so shapes that follow a mask should be rounded up to few.
    """
    if not served_by_onednn(left, right):
        return left @ right
    found = [
        torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "") for a, b in zip(left, right, strict=True)
    ]
    return found[0].unsqueeze(0) if len(found) == 1 else torch.stack(found)


def add_product(target: Tensor, left: Tensor, right: Tensor) -> None:
    """target += left @ right, in place."""
    if served_by_onednn(left, right):
        target += product(left, right)
    else:
        target.baddbmm_(left, right)


def served_by_onednn(left: Tensor, right: Tensor) -> bool:
    return (
        left.device.type == "cpu"
        and left.dtype == right.dtype == torch.float32
        and len(left) > 0
        and math.prod(left.shape[1:]) * right.shape[2] >= FEWEST_MULTIPLICATIONS
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
    )
