"""What BAIN's attention has to beat: attention of libraries on [v', v'^2], and the dense formula, compiled."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from scsco_fast.benchmarks.truth import rows, take
from scsco_fast.regions import RegionLevel

PACKED = "rows packed and centred beforehand"  # what library attention is given on a GPU, untimed
FROM_MAPS = "from maps to maps"  # on a CPU: packing, centring and unpacking are timed, as they are for the backends
EPS = 1e-5
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def packed(level: RegionLevel, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
    """Foreground rows of the query and background rows of the key (B, 1, n, D), and of [v', v'^2] (B, 1, n, 2 C).

    v' is the value less the background's mean: the comparison would be a strawman without.
    """
    n_fg = int(level.counts[0, 0])
    q, k, v = (rows(tensor.detach()) for tensor in (query, key, value))
    foreground, background = level.order[:, :n_fg], level.order[:, n_fg:]
    q, k, v = take(q, foreground), take(k, background), take(v, background).float()
    centred = v - v.mean(dim=1, keepdim=True)
    moments = torch.cat([centred, centred.square()], dim=2).to(value.dtype)
    return [tensor.unsqueeze(1).contiguous().requires_grad_() for tensor in (q, k, moments)]


def from_maps(
    attention: Attention, level: RegionLevel, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor]:
    """BAIN's mean and deviation of maps by an attention of rows.

    All images have as many foreground pixels as the first, and no excluded ones.
    Columns are gathered and scattered, and handed over as views: of what PyTorch offers the fastest, forward and
    backward (index_select, index_copy and contiguous rows were tried too).
    """
    n_fg = int(level.counts[0, 0])
    foreground, background = level.order[:, :n_fg], level.order[:, n_fg:]
    q, k, v = columns(query, foreground), columns(key, background), columns(value, background)
    pivot = v.mean(dim=2, keepdim=True)
    centred = v - pivot
    moments = torch.cat([centred, centred.square()], dim=1)
    found = attention(*(t.transpose(1, 2).unsqueeze(1) for t in (q, k, moments)))
    first, second = found.squeeze(1).transpose(1, 2).chunk(2, dim=1)
    std = ((second - first.square()).clamp(min=0) + EPS).sqrt()
    at, empty = foreground.unsqueeze(1).expand_as(std), torch.zeros_like(value).flatten(2)
    mean, std = empty.scatter(2, at, first + pivot), (empty + 1).scatter(2, at, std)
    return mean.view(value.shape), std.view(value.shape)


def columns(maps: Tensor, pixels: Tensor) -> Tensor:
    """Pixels (B, n) of maps (B, C, H, W): (B, C, n)."""
    return maps.flatten(2).gather(2, pixels.unsqueeze(1).expand(-1, maps.shape[1], -1))


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """By whatever kernel PyTorch takes for query and key of their own width and a wider value."""
    return F.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5)


def sdpa_padded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Query and key padded to the value's width, which most fused kernels want."""
    scale, wide = q.shape[-1] ** -0.5, v.shape[-1]
    q, k = (F.pad(t, (0, max(0, wide - t.shape[-1]))) for t in (q, k))
    q, k, v = (t.contiguous() for t in (q, k, v))  # as views a CPU's flash kernel takes twice as long
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


def forced(kernel: SDPBackend, function: Attention) -> Attention:
    """The function with one kernel of PyTorch's allowed, which raises where that kernel refuses the shapes."""

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(kernel):
            return function(q, k, v)

    return attention


def flex(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if not q.is_cuda:  # refused where an input wants a gradient
        q, k, v = q.detach(), k.detach(), v.detach()
    return compiled_flex()(q, k, v, scale=q.shape[-1] ** -0.5)


@cache
def compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return compiled(flex_attention)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function under torch.compile, with a backward that can run more than once, as a benchmark wants it."""
    import torch._functorch.config as settings

    settings.donated_buffer = False
    return torch.compile(function, dynamic=False)


def libraries(device: str, compile: bool) -> dict[str, Attention]:
    """Library attention of rows by name. FlexAttention has no backward on a CPU.

    Query and key are padded to the value's width where the name says so, on a GPU where it does not say "unpadded":
    flash kernels take one width, on a CPU too, cuDNN two. PyTorch's unpadded kernel on a CPU holds the whole attention.
    """
    found: dict[str, Attention] = {"SDPA": sdpa, "SDPA padded": sdpa_padded}
    if device == "cuda":
        found = {"SDPA": sdpa_padded, "SDPA unpadded": sdpa}
        for name, kernel in (("cuDNN", SDPBackend.CUDNN_ATTENTION), ("flash", SDPBackend.FLASH_ATTENTION)):
            found[f"SDPA {name}"] = forced(kernel, sdpa_padded)
            found[f"SDPA {name} unpadded"] = forced(kernel, sdpa)
    if compile:
        found["FlexAttention"] = flex
    return found
