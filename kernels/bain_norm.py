"""BAIN's output in the attention's own pass: mean and deviation are never written, no pass over the map follows.

The forward is `bain_attention`'s with another epilogue. In the backward the gradients of mean and deviation are formed
where the attention's backward reads them, and one more kernel gives those of the normalised map and of the affine.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from scsco_fast.kernels.bain_attention import attend, attend_backward, supports
from scsco_fast.kernels.launch import case, empty, mask_rows, on_device, rows, split
from scsco_fast.kernels.packing import argument_type, pack_cases
from scsco_fast.kernels.packing_gradients import BLOCK_P as GRADIENT_BLOCK_P
from scsco_fast.kernels.packing_gradients import bain_attention_bwd_pack_kernel, bain_attention_bwd_range_kernel
from scsco_fast.kernels.resources import Case

__all__ = ["backward", "compile_cases", "forward", "supports"]

BLOCK_C, BLOCK_P, WARPS, STAGES = 16, 64, 4, 2
SPLITS = 32  # at most: bounds the buffer of partial sums
PROGRAMS = 1056  # wanted: eight for each of an H100's 132 SMs


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    normalised: Tensor,
    foreground: Tensor,
    valid: Tensor | None,
    order: Tensor,
    counts: Tensor,
    fg_weight: Tensor,
    fg_bias: Tensor,
    bg_weight: Tensor,
    bg_bias: Tensor,
    scale: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """BAIN's output y (B, C, H, W) in the dtype of normalised, and first, variance and lse as of `bain_attention`.

        foreground: y = (std * normalised + mean) * fg_weight + fg_bias
        background: y = normalised * bg_weight + bg_bias
        excluded:   y = 0

    Args:
        normalised: (B, C, H, W) of any layout, each pixel normalised by its own region's moments.
        foreground, valid: (B, 1, H, W) bool; the forward reads `order` and `counts`, which say the same.
        fg_weight, fg_bias, bg_weight, bg_bias: (C,) gains and offsets.

    Raises:
        ValueError: `supports` has a reason.
    """
    y = torch.empty_like(normalised, memory_format=torch.contiguous_format)
    affine = torch.stack([fg_weight, fg_bias, bg_weight, bg_bias]).float()
    return y, *attend(query, key, value, order, counts, scale, eps, y, None, normalised, affine)


@triton.jit
def bain_norm_bwd_kernel(
    grad_ptr,  # (B, C, N)
    x_ptr,  # (B, C, N) normalised map
    fg_ptr,  # (B, N)
    valid_ptr,  # (B, N), None: every pixel counts
    counts_ptr,  # (B, 2)
    first_ptr,  # (B, N, C)
    variance_ptr,  # (B, N, C)
    pivot_ptr,  # (B, width)
    affine_ptr,  # (2, C): gains of foreground and background
    dx_ptr,  # (B, C, N)
    part_ptr,  # (B, splits, 4, C): sums for fg_weight, fg_bias, bg_weight, bg_bias
    stride_gb,
    stride_gc,
    stride_gn,
    stride_xb,
    stride_xc,
    stride_xn,
    stride_fb,
    stride_fn,
    stride_vb,
    stride_vn,
    stride_pb,
    eps,
    n_channels,
    n_pixels,
    blocks,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    part, image = tl.program_id(0), tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_channel = channel < n_channels
    has_background = tl.load(counts_ptr + 2 * image + 1) > 0
    pivot = tl.load(pivot_ptr + image * stride_pb + channel, mask=is_channel, other=0.0)[:, None]
    gain_f = tl.load(affine_ptr + channel, mask=is_channel, other=0.0)[:, None]
    gain_b = tl.load(affine_ptr + n_channels + channel, mask=is_channel, other=0.0)[:, None]
    grad_ptr += image * stride_gb + channel.to(tl.int64)[:, None] * stride_gc
    x_ptr += image * stride_xb + channel.to(tl.int64)[:, None] * stride_xc
    dx_ptr += (image * n_channels + channel)[:, None] * n_pixels
    rows = image * n_pixels * n_channels + channel[None, :]
    d_gain_f = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    d_bias_f = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    d_gain_b = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    d_bias_b = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    for block in range(part * blocks, (part + 1) * blocks):
        pixel = (block * BLOCK_P + tl.arange(0, BLOCK_P)).to(tl.int64)
        inside = pixel < n_pixels
        fg = tl.load(fg_ptr + image * stride_fb + pixel * stride_fn, mask=inside, other=0) != 0
        bg = inside & (fg == 0)
        if valid_ptr is not None:
            bg &= tl.load(valid_ptr + image * stride_vb + pixel * stride_vn, mask=inside, other=0) != 0
        is_fg, is_bg = fg[None, :], bg[None, :]
        mask = inside[None, :] & is_channel[:, None]
        at = rows + pixel[:, None] * n_channels
        is_query = (fg & has_background)[:, None] & is_channel[None, :]
        first = tl.trans(tl.load(first_ptr + at, mask=is_query, other=0.0))
        variance = tl.trans(tl.load(variance_ptr + at, mask=is_query, other=0.0))
        grad = tl.load(grad_ptr + pixel[None, :] * stride_gn, mask=mask, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + pixel[None, :] * stride_xn, mask=mask, other=0.0).to(tl.float32)
        std = tl.where(has_background, tl.sqrt_rn(tl.maximum(variance, 0.0) + eps), 1.0)
        mean = tl.where(has_background, first + pivot, 0.0)
        dx = tl.where(is_fg, grad * gain_f * std, tl.where(is_bg, grad * gain_b, 0.0))
        tl.store(dx_ptr + pixel[None, :], dx.to(dx_ptr.dtype.element_ty), mask=mask)
        # Summed element by element and reduced once: a reduction in every step would wait for the whole block.
        d_gain_f += tl.where(is_fg, grad * (std * x + mean), 0.0)
        d_bias_f += tl.where(is_fg, grad, 0.0)
        d_gain_b += tl.where(is_bg, grad * x, 0.0)
        d_bias_b += tl.where(is_bg, grad, 0.0)
    part_ptr += (image * tl.num_programs(0) + part) * 4 * n_channels + channel
    tl.store(part_ptr, tl.sum(d_gain_f, 1), mask=is_channel)
    tl.store(part_ptr + n_channels, tl.sum(d_bias_f, 1), mask=is_channel)
    tl.store(part_ptr + 2 * n_channels, tl.sum(d_gain_b, 1), mask=is_channel)
    tl.store(part_ptr + 3 * n_channels, tl.sum(d_bias_b, 1), mask=is_channel)


def backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    normalised: Tensor,
    foreground: Tensor,
    valid: Tensor | None,
    order: Tensor,
    counts: Tensor,
    fg_weight: Tensor,
    bg_weight: Tensor,
    first: Tensor,
    variance: Tensor,
    lse: Tensor,
    scale: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and normalised, and (4, C) float32 of fg_weight, fg_bias, bg_weight, bg_bias."""
    batch, channels = value.shape[:2]
    affine = torch.stack([fg_weight, bg_weight]).float()
    saved = (query, key, value, order, counts, first, variance, lse)
    d_rows, pivot = attend_backward(grad, normalised, affine[0], *saved, scale, eps)
    dx = torch.empty_like(normalised, memory_format=torch.contiguous_format)
    dy, x, fg = rows(grad), rows(normalised), mask_rows(foreground)
    ok = None if valid is None else mask_rows(valid)
    pixels, columns = x.shape[2], triton.cdiv(channels, BLOCK_C)
    blocks = triton.cdiv(pixels, BLOCK_P)
    each = triton.cdiv(blocks, split(batch * columns, blocks, PROGRAMS, SPLITS))
    parts = empty((batch, triton.cdiv(blocks, each), 4, channels), x)
    if not parts.numel():
        return *d_rows, dx, parts.sum((0, 1))
    with on_device(value):
        bain_norm_bwd_kernel[(parts.shape[1], columns, batch)](
            *(dy, x, fg, ok, counts.contiguous(), first, variance, pivot, affine, dx, parts),
            *(*dy.stride(), *x.stride(), *fg.stride(), *((0, 0) if ok is None else ok.stride()), pivot.stride(0)),
            *(eps, channels, pixels, each),
            BLOCK_C=BLOCK_C,
            BLOCK_P=BLOCK_P,
            num_warps=WARPS,
            num_stages=STAGES,
        )
    return *d_rows, dx, parts.sum((0, 1))


def compile_cases() -> list[Case]:
    """The backward's own kernel, and the attention's packing of gradients where it forms them from those of y."""
    packing = dict.fromkeys((bain_attention_bwd_range_kernel, bain_attention_bwd_pack_kernel), GRADIENT_BLOCK_P)
    cases = pack_cases(packing, norm=True)
    for dtype in ("fp16", "bf16", "fp32"):
        types = {name: argument_type(name, dtype) for name in bain_norm_bwd_kernel.arg_names}
        types |= {"fg_ptr": "*u8", "valid_ptr": "*u8"}
        ones = {"stride_gn": 1, "stride_xn": 1, "stride_fn": 1, "stride_vn": 1, "BLOCK_C": BLOCK_C, "BLOCK_P": BLOCK_P}
        cases.append(case(dtype, bain_norm_bwd_kernel, types, ones, WARPS, STAGES))
    return cases
