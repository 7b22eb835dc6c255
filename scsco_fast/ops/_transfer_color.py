"""Colour transfer: give the masked pixels of one picture the colours of another."""

import torch
from torch import Tensor

from scsco_fast.kernels.memory import contiguous_like
from scsco_fast.ops.backend import choose, implementation, is_reference
from scsco_fast.ops.checks import check_device, check_map, check_regions, check_same
from scsco_fast.ops.registration import register_operation, register_reference
from scsco_fast.reference import transfer_color as reference_backend
from scsco_fast.regions import RegionLevel, Regions

TRANSFERS = tuple(reference_backend.METHODS)


@torch.no_grad()
def transfer_color(
    source: Tensor,
    reference: Tensor,
    method: str,
    mask: Regions | RegionLevel | Tensor | None = None,
    backend: str = "auto",
    reference_mask: Regions | RegionLevel | Tensor | None = None,
) -> Tensor:
    """Recolour the masked pixels of `source` so that their colour statistics become those of `reference`.

    - "reinhard": mean and deviation of every CIE Lab channel.
    - "gaussian": mean and full covariance in RGB, by the linear optimal transport between two Gaussians.
    - "histogram": the histogram of every YCbCr channel.

    Args:
        source: (B, 3, H, W) in [0, 1].
        reference: (B, 3, H', W') in [0, 1].
        method: one of the above.
        mask: which pixels of source are measured and changed, `Regions` or a mask of any resolution; None: all.
        backend: "auto" or one of `scsco_fast.ops.backends()`.
        reference_mask: which pixels of reference are measured; None: all.

    Returns:
        (B, 3, H, W) in [0, 1] in the dtype of source; pixels outside the mask are those of source, bit for bit. An
        image whose mask or reference mask is empty is returned as it is. Where a measured pixel is not finite, the
        masked pixels of that image become NaN. Computed in float32, or float64 if an input is. No gradient flows.

    Raises:
        TypeError, ValueError: an argument's type, shape or device, or an unknown method; the message names it.
        RuntimeError: an explicit backend cannot serve.

    Source: Reinhard et al. 2001; Pitie and Kokaram 2007; histogram matching as Fecker et al. 2008.

    Examples:
        >>> import torch, scsco_fast as sf
        >>> source, reference = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16) / 2
        >>> out = sf.ops.transfer_color(source, reference, "gaussian")
        >>> bool((out.mean() - reference.mean()).abs() < 0.02)
        True
    """
    if method not in TRANSFERS:
        raise ValueError(f"method must be one of {', '.join(TRANSFERS)}, got {method!r}")
    for name, image in {"source": source, "reference": reference}.items():
        check_map(name, image)
        check_same(f"the channels of {name}", image.shape[1], "RGB", 3)
    check_same("the batch of reference", reference.shape[0], "source", source.shape[0])
    check_device("reference", reference, "source is", source.device)
    inside = _region(mask, source)
    there = _region(reference_mask, reference)
    chosen = choose(backend, "transfer_color", source, reference)
    if is_reference(chosen):
        return torch.ops.scsco_fast.transfer_color_reference(source, reference, inside, there, method)
    return _transfer_color(source, reference, inside, there, method, chosen)


def _region(mask: Regions | RegionLevel | Tensor | None, image: Tensor) -> Tensor:
    if mask is None:
        return torch.ones_like(image[:, :1], dtype=torch.bool)
    return check_regions(mask, image).foreground


register_reference(
    "transfer_color_reference(Tensor source, Tensor reference, Tensor mask, Tensor reference_mask, str method) "
    "-> Tensor",
    reference_backend.transfer_color,
    like=0,
)


def _fake(source: Tensor, reference: Tensor, mask: Tensor, reference_mask: Tensor, method: str, backend: str) -> Tensor:
    return contiguous_like(source)


@register_operation("transfer_color", _fake, differentiable=False)
def _transfer_color(
    source: Tensor, reference: Tensor, mask: Tensor, reference_mask: Tensor, method: str, backend: str
) -> Tensor:
    return implementation(backend, "transfer_color").forward(source, reference, mask, reference_mask, method)
