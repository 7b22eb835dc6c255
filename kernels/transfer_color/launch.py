"""Colour transfer: statistics of the masked pixels, split over the image, then one pass that recolours and composites.

Whoever needs the statistics merges the splits in the same order, and histograms are counted in integers, so the same
inputs give the same bits. No intermediate colour image is written; nothing waits for the device.
"""

import torch
import triton
from torch import Tensor

from scsco_fast.kernels.cases import Case
from scsco_fast.kernels.launch import case, empty, mask_rows, on_device, pointers, rows
from scsco_fast.kernels.memory import contiguous_like
from scsco_fast.kernels.sums import shares
from scsco_fast.kernels.transfer_color.forward import (
    AFFINE,
    BINS,
    MOMENTS,
    SPLITS,
    transfer_color_counts_kernel,
    transfer_color_distribution_kernel,
    transfer_color_gaussian_kernel,
    transfer_color_histogram_kernel,
    transfer_color_moments_kernel,
    transfer_color_reinhard_kernel,
    transfer_color_transport_kernel,
)

PROGRAMS = 528  # wanted: four for each of an H100's 132 SMs
BLOCK = 1024  # pixels
WARPS = 4
MATCH_WARPS = 16  # of the histogram's last kernel: with 4 or 8, one of the two compilers spills 8 bytes


def forward(source: Tensor, reference: Tensor, mask: Tensor, reference_mask: Tensor, method: str) -> Tensor:
    """Source with its masked pixels recoloured, (B, 3, H, W) in its dtype."""
    out = contiguous_like(source)
    if source.shape[0] == 0:
        return out
    with on_device(source):
        _METHODS[method](_image(source, mask), _image(reference, reference_mask), out)
    return out


def _image(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Colours (B, 3, N) and which of the pixels are measured (B, N)."""
    return rows(image), mask_rows(mask)


def _reinhard(source: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor], out: Tensor) -> None:
    own, wanted = (_moments(*image, lab=True) for image in (source, reference))
    transfer_color_reinhard_kernel[_grid(*source)](
        *source, own, wanted, out, *_sizes(*source), own.shape[1], wanted.shape[1], BLOCK=BLOCK, num_warps=WARPS
    )


def _gaussian(source: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor], out: Tensor) -> None:
    own, wanted = (_moments(*image, lab=False) for image in (source, reference))
    affine = empty((own.shape[0], AFFINE.value), own)
    transfer_color_transport_kernel[(own.shape[0],)](own, wanted, affine, own.shape[1], wanted.shape[1], num_warps=2)
    transfer_color_gaussian_kernel[_grid(*source)](*source, affine, out, *_sizes(*source), BLOCK=BLOCK, num_warps=WARPS)


def _histogram(source: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor], out: Tensor) -> None:
    own, wanted = (_distribution(*image) for image in (source, reference))
    transfer_color_histogram_kernel[_grid(*source)](
        *source, own, wanted, out, *_sizes(*source), BLOCK=BLOCK, num_warps=MATCH_WARPS
    )


_METHODS = {"reinhard": _reinhard, "gaussian": _gaussian, "histogram": _histogram}


def _grid(image: Tensor, mask: Tensor) -> tuple[int, int]:
    return triton.cdiv(image.shape[2], BLOCK), image.shape[0]


def _sizes(image: Tensor, mask: Tensor) -> tuple[int, ...]:
    return (*image.stride(), *mask.stride(), image.shape[2])


def _splits(image: Tensor, mask: Tensor) -> tuple[int, int]:
    """Into how many splits the pixels are cut, and how many blocks each has."""
    blocks, batch = _grid(image, mask)
    return shares(batch, blocks, PROGRAMS, SPLITS.value)


def _moments(image: Tensor, mask: Tensor, lab: bool) -> Tensor:
    splits, each = _splits(image, mask)
    moments = empty((image.shape[0], splits, MOMENTS.value), image)
    transfer_color_moments_kernel[(splits, image.shape[0])](
        image, mask, moments, *_sizes(image, mask), each, LAB=lab, BLOCK=BLOCK, num_warps=WARPS
    )
    return moments


def _distribution(image: Tensor, mask: Tensor) -> Tensor:
    splits, each = _splits(image, mask)
    counts = empty((image.shape[0], splits, 3, BINS.value), image, torch.int32)
    transfer_color_counts_kernel[(splits, image.shape[0])](
        image, mask, counts, *_sizes(image, mask), each, BLOCK=BLOCK, num_warps=WARPS
    )
    shares = empty((image.shape[0], 3, BINS.value + 1), image)
    transfer_color_distribution_kernel[(3, image.shape[0])](counts, shares, splits, num_warps=WARPS)
    return shares


def compile_cases() -> list[Case]:
    """Every kernel for every dtype."""
    cases = []
    types = pointers("mask", "u8") | pointers("moment wanted affine share") | pointers("count", "i32")
    ones = {"stride_n": 1, "stride_mn": 1, "BLOCK": BLOCK}
    for dtype in ("fp32", "fp16", "bf16"):
        images = types | pointers("image out", dtype)
        for lab in (True, False):
            label = f"{dtype} {'Lab' if lab else 'RGB'}"
            cases.append(case(label, transfer_color_moments_kernel, images, ones | {"LAB": lab}, WARPS))
        for kernel in (
            transfer_color_reinhard_kernel,
            transfer_color_gaussian_kernel,
            transfer_color_counts_kernel,
            transfer_color_histogram_kernel,
        ):
            warps = MATCH_WARPS if kernel is transfer_color_histogram_kernel else WARPS
            cases += [case(dtype, kernel, images, ones, warps, ragged=ragged) for ragged in (False, True)]
    cases.append(case("float64", transfer_color_transport_kernel, types, {}, 2))
    cases.append(case("256 bins", transfer_color_distribution_kernel, types, {}, WARPS))
    return cases
