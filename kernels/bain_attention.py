"""BAIN's attention: every foreground pixel's mean and deviation of the background pixels it resembles.

Online softmax over blocks of keys with two float32 accumulators, sum P v' and sum P v'^2; v'^2 is formed in registers
and no attention matrix is kept. The backward recomputes P from the saved log-sum-exp: one kernel owns a block of
queries (dq), others a block of keys (dk, dv), so nothing is added atomically and the same inputs give the same bits.
Blocks past an image's count of queries or keys, which is read on the device, have an empty loop. The pictures and the
derivation are in docs/kernels/bain_attention.md.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from scsco_fast.kernels import refusal
from scsco_fast.kernels.bain_attention_kernels import (
    bain_attention_bwd_dkv_kernel,
    bain_attention_bwd_dq_kernel,
    bain_attention_fwd_kernel,
)
from scsco_fast.kernels.bain_attention_table import CHANNELS, KEYS, TABLE, Config
from scsco_fast.kernels.launch import common_dtype, on_device, precision, rows
from scsco_fast.kernels.packing import (
    BLOCK_P,
    argument_type,
    bain_attention_moments_kernel,
    bain_attention_pack_kernel,
    pack,
    pack_cases,
)
from scsco_fast.kernels.packing_gradients import BLOCK_P as GRADIENT_BLOCK_P
from scsco_fast.kernels.packing_gradients import (
    bain_attention_bwd_pack_kernel,
    bain_attention_bwd_range_kernel,
    pack_gradients,
)
from scsco_fast.kernels.resources import CLASSES, Case

BLOCK_C = 128  # channels are padded to a multiple of this, or to a power of two below it


def supports(query: Tensor, key: Tensor, value: Tensor) -> str | None:
    """Why the kernels cannot serve these inputs, in one line; None if they can."""
    return refusal("bain_attention", value, query, key)


def forward(
    query: Tensor, key: Tensor, value: Tensor, order: Tensor, counts: Tensor, scale: float, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Mean and deviation (B, C, H, W) in the dtype of value, and what the backward needs in float32.

    Matrices are multiplied in the dtype of query and key, so a float32 value under float16 or bfloat16 queries is
    centred in float32 and then rounded to that dtype. float32 ones follow `torch.get_float32_matmul_precision()`.

    Returns:
        mean, std, first (B, N, C): sum_j A_ij (v_j - pivot), variance (B, N, C) before the clamp, and lse (B, N), the
        logits' log-sum-exp; the last three by pixel, 0 outside the foreground.

    Raises:
        ValueError: `supports` has a reason.
    """
    mean, std = (torch.empty_like(value, memory_format=torch.contiguous_format) for _ in range(2))
    saved = attend(query, key, value, order, counts, scale, eps, mean, std, None, None)
    return mean, std, *saved


@dataclass(frozen=True)
class Plan:
    """Padded widths, and the configuration of every kernel, of one call."""

    key_width: int
    width: int
    kind: str
    configs: Mapping[str, Config]

    def block_c(self, name: str) -> int:
        return min(self.configs[name].block_c, self.width)

    def fused(self) -> bool:
        """dk and dv in one kernel: its one block of channels must hold them all."""
        return "dkv" in self.configs and self.block_c("dkv") == self.width

    def constants(self, name: str) -> dict[str, Any]:
        """The constexpr arguments and launch options that every kernel takes."""
        config = self.configs[name]
        return {
            "KEY_WIDTH": self.key_width,
            "WIDTH": self.width,
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
            "BLOCK_C": self.block_c(name),
            "BLOCK_D": min(config.block_d, self.key_width),
            "PRECISION": "tf32" if self.kind == "tf32" else "ieee",
            "num_warps": config.warps,
            "num_stages": config.stages,
        }


def plan(sm: int, kind: str, channels: int, keys: int) -> Plan:
    """Widths and configurations for an architecture, a kind ("half", "tf32", "ieee"), C and D."""
    width = max(16, triton.next_power_of_2(channels)) if channels <= BLOCK_C else -(-channels // BLOCK_C) * BLOCK_C
    key_width = max(16, triton.next_power_of_2(keys))
    channel_class = next(c for c in CHANNELS if width <= c)
    key_class = next(d for d in KEYS if key_width <= d)
    configs = TABLE[sm, kind, channel_class, key_class].configs
    if channels % 16:
        # Rows that 16 bytes do not divide are written word by word, and those addresses need registers.
        configs = {name: config._replace(block_c=min(config.block_c, 64)) for name, config in configs.items()}
    return Plan(key_width, width, kind, configs)


def _plan(query: Tensor, key: Tensor, value: Tensor) -> Plan:
    reason = supports(query, key, value)
    if reason is not None:
        raise ValueError(f"bain_attention: {reason}")
    return plan(architecture(value.device), precision(common_dtype(query, key)), value.shape[1], query.shape[1])


def architecture(device: torch.device) -> int:
    """The architecture whose table serves `device`; devices with 99 KiB of shared memory share one."""
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return {(8, 0): 80, (9, 0): 90, (10, 0): 100, (10, 3): 100}.get((major, minor), 86)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    order: Tensor,
    counts: Tensor,
    scale: float,
    eps: float,
    mean: Tensor,
    std: Tensor | None,
    normalised: Tensor | None,
    affine: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Write `mean` and `std`, or BAIN's output into `mean` where `normalised` is given; return what backward needs.

    `affine` (4, C) float32: the foreground's gain and offset, the background's gain and offset.
    """
    chosen = _plan(query, key, value)
    batch, channels = value.shape[:2]
    pixels = order.shape[1]
    first = value.new_empty((batch, pixels, channels), dtype=torch.float32)
    variance = torch.empty_like(first)
    lse = value.new_empty((batch, pixels), dtype=torch.float32)
    if not first.numel():
        return first, variance, lse
    config = chosen.configs["fwd"]
    with on_device(value):
        order, counts = order.contiguous(), counts.contiguous()
        packed = pack(query, key, value, order, counts, chosen.key_width, chosen.width)
        x = None if normalised is None else rows(normalised)
        grid = (triton.cdiv(pixels, config.block_m), chosen.width // chosen.block_c("fwd"), batch)
        bain_attention_fwd_kernel[grid](
            packed.query,
            packed.key,
            packed.value,
            packed.pivot,
            packed.unit,
            order,
            counts,
            mean,
            std,
            first,
            variance,
            lse,
            x,
            affine,
            *((0, 0, 0) if x is None else x.stride()),
            scale,
            eps,
            pixels,
            channels,
            **chosen.constants("fwd"),
            NORM=x is not None,
        )
    return first, variance, lse


def backward(
    grad_mean: Tensor,
    grad_std: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    order: Tensor,
    counts: Tensor,
    first: Tensor,
    variance: Tensor,
    lse: Tensor,
    scale: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, contiguous and in their dtypes, from what `forward` saved."""
    saved = (query, key, value, order, counts, first, variance, lse)
    return attend_backward(grad_mean, grad_std, None, *saved, scale, eps)[0]


def attend_backward(
    grad_mean: Tensor,
    grad_std: Tensor,
    gain: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    order: Tensor,
    counts: Tensor,
    first: Tensor,
    variance: Tensor,
    lse: Tensor,
    scale: float,
    eps: float,
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """Gradients of query, key and value, and the background's mean (B, width) of each channel.

    With the foreground's `gain` (C,) float32, `grad_mean` is the gradient of BAIN's output and `grad_std` its
    normalised map.
    """
    chosen = _plan(query, key, value)
    batch, channels = value.shape[:2]
    keys, pixels = query.shape[1], order.shape[1]
    d_query, d_key, d_value = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (query, key, value))
    if not first.numel():
        return (d_query, d_key, d_value), first.new_zeros((batch, chosen.width))
    with on_device(value):
        order, counts = order.contiguous(), counts.contiguous()
        packed = pack(query, key, value, order, counts, chosen.key_width, chosen.width)
        grads = pack_gradients(grad_mean, grad_std, packed, order, counts, first, variance, lse, eps, gain)
        shared = (packed.query, packed.key, packed.value, grads.first, grads.second, grads.delta, grads.lse, grads.span)
        scaled = packed.value.dtype == torch.float16
        blocks = triton.cdiv(pixels, chosen.configs["dq"].block_m)
        bain_attention_bwd_dq_kernel[(blocks, batch)](
            *shared, order, counts, d_query, scale, pixels, keys, **chosen.constants("dq"), SCALED=scaled
        )
        # One kernel where its three accumulators fit, else dv by blocks of channels and dk over all of them.
        for name in ("dkv",) if chosen.fused() else ("dk", "dv"):
            blocks = triton.cdiv(pixels, chosen.configs[name].block_n)
            columns = chosen.width // chosen.block_c(name) if name == "dv" else 1
            bain_attention_bwd_dkv_kernel[(blocks, columns, batch)](
                *shared,
                packed.unit,
                order,
                counts,
                d_key if "k" in name else None,
                d_value if "v" in name else None,
                scale,
                pixels,
                keys,
                channels,
                **chosen.constants(name),
                SCALED=scaled,
                DK="k" in name,
                DV="v" in name,
            )
    return (d_query, d_key, d_value), packed.pivot


def compile_cases() -> list[Case]:
    """Every configuration of the table as its launcher compiles it, and the packing kernels."""
    packing = {
        bain_attention_moments_kernel: BLOCK_P,
        bain_attention_pack_kernel: BLOCK_P,
        bain_attention_bwd_range_kernel: GRADIENT_BLOCK_P,
        bain_attention_bwd_pack_kernel: GRADIENT_BLOCK_P,
    }
    return [*pack_cases(packing), *(case for key in TABLE for case in cases_of(*key))]


def cases_of(
    sm: int, kind: str, channels: int, keys: int, names: tuple[str, ...] = ("fwd", "dq", "dkv", "dk", "dv")
) -> Iterator[Case]:
    """The kernels of one line of the table, or those of `names` that it has, at its widest channels and keys."""
    chosen = plan(sm, kind, channels, keys)
    dtype = "fp16" if kind == "half" else "fp32"
    label = f"{kind} C={channels} D={keys}"
    launched = ("fwd", "dq", *(("dkv",) if chosen.fused() else ("dk", "dv")))
    for name in (name for name in launched if name in names):
        yield _case(chosen, name, sm, f"{label} {name}", dtype)
        if name == "fwd":
            yield _case(chosen, name, sm, f"{label} fwd norm", dtype, norm=True)


def _case(chosen: Plan, name: str, sm: int, label: str, dtype: str, norm: bool = False) -> Case:
    kernels = {"fwd": bain_attention_fwd_kernel, "dq": bain_attention_bwd_dq_kernel}
    kernel = kernels.get(name, bain_attention_bwd_dkv_kernel)
    constants = chosen.constants(name)
    warps, stages = constants.pop("num_warps"), constants.pop("num_stages")
    constants |= {"NORM": norm, "SCALED": dtype == "fp16", "DK": "k" in name, "DV": "v" in name}
    absent = {"std_ptr": norm, "x_ptr": not norm, "affine_ptr": not norm}
    absent |= {"d_key_ptr": "k" not in name, "d_value_ptr": "v" not in name}
    constants |= {argument: None for argument, missing in absent.items() if missing}
    constants = {argument: value for argument, value in constants.items() if argument in kernel.arg_names}
    types = {argument: argument_type(argument, dtype) for argument in kernel.arg_names if argument not in constants}
    core = sm != 86 and chosen.key_width == 64 and (chosen.kind == "half" or chosen.width == 64)
    return Case(label, kernel, types, constants, warps, stages, chosen.kind != "ieee", CLASSES[sm], core=core)
