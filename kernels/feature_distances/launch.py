"""Mean absolute differences between one feature map and several others; the one map is read once for all of them."""

import dataclasses

import triton
from torch import Tensor

from scsco_fast.kernels import MAX_PIXELS
from scsco_fast.kernels.cases import Case
from scsco_fast.kernels.feature_distances import allocate_gradients
from scsco_fast.kernels.feature_distances.backward import feature_distances_bwd_kernel
from scsco_fast.kernels.feature_distances.forward import feature_distances_fwd_kernel
from scsco_fast.kernels.launch import case, empty, on_device, pointers, rows
from scsco_fast.kernels.sums import shares, sum_cases, sum_parts

PROGRAMS = 1056  # wanted: eight for each of an H100's 132 SMs
SPLITS = 256  # at most, of one image: bounds the buffer of partial sums
OTHERS = 8  # at once: a tile is (others, channels, pixels); one that is not there costs no memory traffic
TILES = {"flat": (1, 512), "channels last": (64, 8)}  # channels, pixels
# With 4 warps, or where the compiler is free to aim at more threads, one of the two Tritons spills 8 to 12 bytes.
OPTIONS = {"num_warps": 8, "maxnreg": 255}


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
    splits, each = shares(batch, blocks, PROGRAMS, SPLITS)
    meta = {"BLOCK_J": OTHERS, "BLOCK_C": block_c, "BLOCK_N": block_n, **OPTIONS}
    sizes = (o.shape[1], channels, pixels, columns, each, 1 / (channels * pixels))
    return f, o, sizes, splits, meta


def forward(anchor: Tensor, others: Tensor) -> Tensor:
    """mean |f - o_j|: (B, J), float32."""
    batch, count = others.shape[:2]
    if 0 in (batch, count):
        return empty((batch, count), anchor)
    f, o, sizes, splits, meta = _launch(rows(anchor), rows(others))
    parts = empty((batch, count, splits), anchor)
    grid = (splits, triton.cdiv(count, meta["BLOCK_J"]), batch)
    with on_device(anchor):
        feature_distances_fwd_kernel[grid](f, o, parts, *f.stride(), *o.stride(), *sizes, **meta)
        return sum_parts(parts)


def backward(grad: Tensor, anchor: Tensor, others: Tensor, anchor_only: bool) -> tuple[Tensor, ...]:
    """df = sum_j g_j sign(f - o_j) / n, do_j = -g_j sign(f - o_j) / n, with n = C H W; with `anchor_only` df alone."""
    grads = allocate_gradients(anchor, others, anchor_only)
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
