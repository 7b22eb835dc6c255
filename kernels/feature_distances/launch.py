"""Mean absolute differences between one feature map and several others; the one map is read once for all of them."""

import dataclasses

import torch
import triton
import triton.language as tl
from torch import Tensor

from scsco_fast.kernels import MAX_PIXELS, refusal
from scsco_fast.kernels.launch import case, empty, on_device, pointers, require, rows, split
from scsco_fast.kernels.resources import Case
from scsco_fast.kernels.sums import sum_cases, sum_parts

PROGRAMS = 1056  # wanted: eight for each of an H100's 132 SMs
SPLITS = 256  # at most, of one image: bounds the buffer of partial sums
OTHERS = 8  # at once: a tile is (others, channels, pixels); one that is not there costs no memory traffic
TILES = {"flat": (1, 512), "channels last": (64, 8)}  # channels, pixels
# With 4 warps, or where the compiler is free to aim at more threads, one of the two Tritons spills 8 to 12 bytes.
OPTIONS = {"num_warps": 8, "maxnreg": 255}


@triton.jit
def _tile(block, columns, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr):
    """Channels and pixels of a block, as int64."""
    c = block // columns * BLOCK_C + tl.arange(0, BLOCK_C)
    n = block % columns * BLOCK_N + tl.arange(0, BLOCK_N)
    return c.to(tl.int64), n.to(tl.int64)


@triton.jit
def feature_distances_fwd_kernel(
    f_ptr,
    o_ptr,
    part_ptr,  # (B, J, splits)
    stride_fb,
    stride_fc,
    stride_fn,
    stride_ob,
    stride_oj,
    stride_oc,
    stride_on,
    others,
    channels,
    pixels,
    columns,  # tiles in a row of pixels
    blocks,  # tiles in one split
    factor,
    BLOCK_J: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    part = tl.program_id(0)
    image = tl.program_id(2).to(tl.int64)
    j = (tl.program_id(1) * BLOCK_J + tl.arange(0, BLOCK_J)).to(tl.int64)
    f_ptr += image * stride_fb
    o_ptr += image * stride_ob + j[:, None, None] * stride_oj
    total = tl.zeros((BLOCK_J, BLOCK_C, BLOCK_N), tl.float32)
    for block in range(part * blocks, (part + 1) * blocks):
        c, n = _tile(block, columns, BLOCK_C, BLOCK_N)
        inside = (c < channels)[:, None] & (n < pixels)[None, :]
        f = tl.load(f_ptr + c[:, None] * stride_fc + n[None, :] * stride_fn, mask=inside, other=0.0).to(tl.float32)
        at = c[None, :, None] * stride_oc + n[None, None, :] * stride_on
        o = tl.load(o_ptr + at, mask=inside[None, :, :] & (j < others)[:, None, None], other=0.0).to(tl.float32)
        total += tl.abs(f[None, :, :] - o)
    sums = tl.sum(tl.sum(total, 2), 1) * factor
    tl.store(part_ptr + (image * others + j) * tl.num_programs(0) + part, sums, mask=j < others)


@triton.jit
def feature_distances_bwd_kernel(
    f_ptr,
    o_ptr,
    grad_ptr,  # (B, J): of each distance
    df_ptr,  # (B, C, N)
    do_ptr,  # (B, J, C, N)
    stride_gb,
    stride_gj,
    stride_fb,
    stride_fc,
    stride_fn,
    stride_ob,
    stride_oj,
    stride_oc,
    stride_on,
    others,
    channels,
    pixels,
    columns,
    blocks,
    factor,
    ANCHOR_ONLY: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    part = tl.program_id(0)
    image = tl.program_id(2).to(tl.int64)
    f_ptr += image * stride_fb
    o_ptr += image * stride_ob
    for block in range(part * blocks, (part + 1) * blocks):
        c, n = _tile(block, columns, BLOCK_C, BLOCK_N)
        inside = (c < channels)[:, None] & (n < pixels)[None, :]
        f = tl.load(f_ptr + c[:, None] * stride_fc + n[None, :] * stride_fn, mask=inside, other=0.0).to(tl.float32)
        df = tl.zeros((BLOCK_C, BLOCK_N), tl.float32)
        for first in range(0, others, BLOCK_J):
            j = (first + tl.arange(0, BLOCK_J)).to(tl.int64)
            used = inside[None, :, :] & (j < others)[:, None, None]
            at = j[:, None, None] * stride_oj + c[None, :, None] * stride_oc + n[None, None, :] * stride_on
            o = tl.load(o_ptr + at, mask=used, other=0.0).to(tl.float32)
            grad = tl.load(grad_ptr + image * stride_gb + j * stride_gj, mask=j < others, other=0.0) * factor
            grad = grad[:, None, None]
            away = f[None, :, :] - o
            flow = tl.where(away > 0, grad, tl.where(away < 0, -grad, 0.0))
            df += tl.sum(flow, 0)
            if not ANCHOR_ONLY:
                to = ((image * others + j)[:, None, None] * channels + c[None, :, None]) * pixels + n[None, None, :]
                tl.store(do_ptr + to, (-flow).to(do_ptr.dtype.element_ty), mask=used)
        out = (image * channels + c[:, None]) * pixels + n[None, :]
        tl.store(df_ptr + out, df.to(df_ptr.dtype.element_ty), mask=inside)


def _layout(f: Tensor, o: Tensor) -> tuple[Tensor, Tensor, str]:
    """The maps as (B, C, N) and (B, J, C, N): one channel of C N pixels if all lie in raster order, else as they are.

    Only a sum over all elements, and outputs in raster order, allow this.
    """
    channels, pixels = f.shape[1:]
    raster = f.stride(2) == o.stride(3) == 1 and (channels == 1 or f.stride(1) == o.stride(2) == pixels)
    if raster and channels * pixels <= MAX_PIXELS:
        return f.flatten(1).unsqueeze(1), o.flatten(2).unsqueeze(2), "flat"
    return f, o, "flat" if f.stride(2) == 1 or pixels == 1 else "channels last"


def _launch(f: Tensor, o: Tensor) -> tuple[Tensor, Tensor, tuple[float, ...], int, dict[str, int]]:
    """Maps, the sizes that the kernels take, the number of splits, and the blocks."""
    f, o, layout = _layout(f, o)
    block_c, block_n = TILES[layout]
    batch, channels, pixels = f.shape
    columns = triton.cdiv(pixels, block_n)
    blocks = triton.cdiv(channels, block_c) * columns
    each = triton.cdiv(blocks, split(batch, blocks, PROGRAMS, SPLITS))
    meta = {"BLOCK_J": OTHERS, "BLOCK_C": block_c, "BLOCK_N": block_n, **OPTIONS}
    sizes = (o.shape[1], channels, pixels, columns, each, 1 / (channels * pixels))
    return f, o, sizes, triton.cdiv(blocks, each), meta


def supports(anchor: Tensor, others: Tensor) -> str | None:
    """Why `forward` cannot serve the maps, or None."""
    return refusal("feature_distances", anchor, others)


def forward(anchor: Tensor, others: Tensor) -> Tensor:
    """mean |f - o_j|: (B, J), float32."""
    require(supports(anchor, others))
    batch, count = others.shape[:2]
    if 0 in (batch, count):
        return empty((batch, count), anchor)
    f, o, sizes, splits, meta = _launch(rows(anchor), rows(others))
    parts = empty((batch, count, splits), anchor)
    grid = (splits, triton.cdiv(count, meta["BLOCK_J"]), batch)
    with on_device(anchor):
        feature_distances_fwd_kernel[grid](f, o, parts, *f.stride(), *o.stride(), *sizes, **meta)
        return sum_parts(parts)


def backward(grad: Tensor, anchor: Tensor, others: Tensor, anchor_only: bool = False) -> tuple[Tensor, ...]:
    """df = sum_j g_j sign(f - o_j) / n, do_j = -g_j sign(f - o_j) / n, with n = C H W; with `anchor_only` df alone."""
    wanted = (anchor,) if anchor_only else (anchor, others)
    grads = tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in wanted)
    if 0 in others.shape[:2]:
        return tuple(t.zero_() for t in grads)
    f, o, sizes, splits, meta = _launch(rows(anchor), rows(others))
    with on_device(anchor):
        feature_distances_bwd_kernel[(splits, 1, anchor.shape[0])](
            *(f, o, grad, grads[0], grads[-1], *grad.stride(), *f.stride(), *o.stride(), *sizes),
            ANCHOR_ONLY=anchor_only,
            **meta,
        )
    return grads


def compile_cases() -> list[Case]:
    """Both layouts for every dtype."""
    cases = []
    for dtype in ("fp32", "fp16", "bf16"):
        types = pointers("f o df do", dtype) | pointers("part grad") | {"factor": "fp32"}
        for layout, (block_c, block_n) in TILES.items():
            one = "c" if layout == "channels last" else "n"
            constants = {f"stride_f{one}": 1, f"stride_o{one}": 1}
            constants |= {"BLOCK_J": OTHERS, "BLOCK_C": block_c, "BLOCK_N": block_n}
            constants["stride_gj"] = 1
            for ragged in (False, True):
                label, warps = f"{dtype} {layout}", OPTIONS["num_warps"]
                cases.append(case(label, feature_distances_fwd_kernel, types, constants, warps, ragged=ragged))
                for only in (False, True):
                    form, flags = f"{label} anchor" if only else label, constants | {"ANCHOR_ONLY": only}
                    cases.append(case(form, feature_distances_bwd_kernel, types, flags, warps, ragged=ragged))
    options = {"maxnreg": OPTIONS["maxnreg"]}
    return [*(dataclasses.replace(made, options=options) for made in cases), *sum_cases()]
