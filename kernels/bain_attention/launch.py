"""BAIN's attention: every foreground pixel's mean and deviation of the background pixels it resembles.

One packing pass lays v' and v'^2 side by side, so that both moments are one ordinary attention with 2C columns: online
softmax over blocks of keys, no attention matrix kept. Small grids split the keys and merge the splits in their order.
The backward recomputes the weights from the saved log-sum-exp: one kernel owns a block of queries (dq), others a block
of keys (dk, dv), so nothing is added atomically and the same inputs give the same bits. Blocks past an image's count of
queries or keys, which is read on the device, end at once. The pictures and the derivation are in
docs/kernels/bain_attention.md.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import triton
from torch import Tensor

from scsco_fast.kernels.bain_attention import allocate, allocate_gradients, key_width, value_width
from scsco_fast.kernels.bain_attention.backward import (
    bain_attention_bwd_dkv_kernel,
    bain_attention_bwd_dq_kernel,
)
from scsco_fast.kernels.bain_attention.forward import (
    CHUNK,
    bain_attention_fwd_kernel,
    bain_attention_fwd_merge_kernel,
)
from scsco_fast.kernels.bain_attention.pack import (
    ALL_REGISTERS,
    argument_type,
    bain_attention_moments_kernel,
    bain_attention_pack_kernel,
    channels_last,
    pack,
)
from scsco_fast.kernels.bain_attention.pack import BLOCK_C as PACK_BLOCK_C
from scsco_fast.kernels.bain_attention.pack import BLOCK_P as PACK_BLOCK_P
from scsco_fast.kernels.bain_attention.pack import SPLITS as PACK_SPLITS
from scsco_fast.kernels.bain_attention.pack import STAGES as PACK_STAGES
from scsco_fast.kernels.bain_attention.pack import WARPS as PACK_WARPS
from scsco_fast.kernels.bain_attention.pack_gradients import BLOCK_P as GRADIENT_BLOCK_P
from scsco_fast.kernels.bain_attention.pack_gradients import (
    NORM_BLOCK_P,
    NORM_WARPS,
    NormGradient,
    bain_attention_bwd_pack_kernel,
    bain_attention_bwd_range_kernel,
    pack_gradients,
)
from scsco_fast.kernels.bain_attention.table import CHANNELS, KEYS, TABLE, Config
from scsco_fast.kernels.cases import ARCHITECTURES, CLASSES, Case
from scsco_fast.kernels.launch import common_dtype, on_device, precision, rows

PROGRAMS = 264  # wanted of the forward: two for each of an H100's 132 SMs
SPLITS = 8  # at most: each is read again by the merge
SPLIT_KEYS = 512  # at least, in each split: below, the merge costs more than it saves
MERGE_BLOCK_P, MERGE_WARPS = 32, 4

Saved = tuple[Tensor, Tensor, Tensor]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Padded widths, and the configuration of every kernel, of one call."""

    key_width: int
    width: int
    kind: str
    configs: Mapping[str, Config]

    @property
    def tf32(self) -> bool:
        return self.kind == "tf32"

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
            "PRECISION": "tf32" if self.tf32 else "ieee",
            "num_warps": config.warps,
            "num_stages": config.stages,
        }


def plan(sm: int, kind: str, channels: int, keys: int) -> Plan:
    """Widths and configurations for an architecture, a kind ("half", "tf32", "ieee"), C and D."""
    width, columns = value_width(channels), key_width(keys)
    channel_class = next(c for c in CHANNELS if width <= c)
    key_class = next(d for d in KEYS if columns <= d)
    return Plan(columns, width, kind, TABLE[sm, kind, channel_class, key_class].configs)


def _plan(query: Tensor, key: Tensor, value: Tensor) -> Plan:
    return plan(architecture(value.device), precision(common_dtype(query, key)), value.shape[1], query.shape[1])


def architecture(device: torch.device) -> int:
    """The architecture whose table serves `device`; devices with 99 KiB of shared memory share one."""
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return {(8, 0): 80, (9, 0): 90, (10, 0): 100, (10, 3): 100}.get((major, minor), 86)


def splits_of(batch: int, pixels: int, columns: int, block_m: int) -> int:
    """Into how many parts the keys are cut, by shapes only: with an eighth of an image foreground, which is a usual
    one, the queries' blocks alone may leave most of a GPU idle."""
    programs = batch * columns * triton.cdiv(triton.cdiv(pixels, 8), block_m)
    return max(1, min(PROGRAMS // programs, SPLITS, pixels // SPLIT_KEYS))


def forward(
    query: Tensor, key: Tensor, value: Tensor, order: Tensor, counts: Tensor, scale: float, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Mean and deviation (B, C, H, W) in the dtype of value, and the three buffers that the backward needs.

    Matrices are multiplied in the dtype of query and key, so a float32 value under float16 or bfloat16 queries is
    centred in float32 and then rounded to that dtype. float32 ones follow `torch.get_float32_matmul_precision()`.

    Returns:
        mean, std, in the memory format of value, and the buffers that `scsco_fast.kernels.bain_attention` describes.
    """
    mean, std, packed, moments, scalars = results = allocate(query, key, value)
    attend(query, key, value, order, counts, scale, eps, (mean, std), (packed, moments, scalars), None)
    return results


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    order: Tensor,
    counts: Tensor,
    scale: float,
    eps: float,
    outputs: tuple[Tensor, Tensor | None],
    saved: Saved,
    norm: tuple[Tensor, Tensor] | None,
) -> None:
    """Fill `saved` and `outputs`: mean and std, or with `norm`, the normalised map and the affine, BAIN's output."""
    chosen = _plan(query, key, value)
    packed, moments, scalars = saved
    if not moments.numel():
        return
    batch, channels, pixels = value.shape[0], value.shape[1], order.shape[1]
    config = chosen.configs["fwd"]
    with on_device(value):
        order, counts = order.contiguous(), counts.contiguous()
        pack(query, key, value, order, counts, saved, outputs, norm, scale < 0, chosen.tf32)
        columns = chosen.width // chosen.block_c("fwd")
        splits = splits_of(batch, pixels, columns, config.block_m)
        part = part_lse = None
        if splits > 1:
            part, part_lse = (scalars.new_empty(shape) for shape in (moments.shape, order.shape))
        y, std = rows(outputs[0]), None if outputs[1] is None else rows(outputs[1])
        x, affine = (None, None) if norm is None else (rows(norm[0]), norm[1])
        maps = (order, counts, y, std, x, affine, *y.stride(), *((0, 0, 0) if x is None else x.stride()))
        flags = {"NORM": norm is not None, "LAST": channels_last(y)}
        bain_attention_fwd_kernel[(triton.cdiv(pixels, config.block_m), columns * splits, batch)](
            *(packed, moments.view(packed.dtype), moments, scalars, part, part_lse, *maps),
            *(abs(scale), eps, pixels, channels, splits),
            **chosen.constants("fwd"),
            **flags,
            SPLIT=splits > 1,
        )
        if splits > 1:
            grid = (triton.cdiv(pixels, MERGE_BLOCK_P), triton.cdiv(channels, CHUNK.value), batch)
            bain_attention_fwd_merge_kernel[grid](
                *(part, part_lse, moments, scalars, *maps, eps, pixels, channels, splits),
                WIDTH=chosen.width,
                BLOCK_P=MERGE_BLOCK_P,
                num_warps=MERGE_WARPS,
                **flags,
            )


def backward(
    grad_mean: Tensor,
    grad_std: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    order: Tensor,
    counts: Tensor,
    packed: Tensor,
    moments: Tensor,
    scalars: Tensor,
    scale: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value in their dtypes and grad_mean's memory format, from what `forward` saved.

    Of query, key and value only shapes and dtypes are read.
    """
    results = allocate_gradients(grad_mean, query, key, value)
    saved = (packed, moments, scalars)
    attend_backward((grad_mean, grad_std), query, key, value, order, counts, saved, scale, eps, results, None)
    return results


def attend_backward(
    grads: tuple[Tensor, Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    order: Tensor,
    counts: Tensor,
    saved: Saved,
    scale: float,
    eps: float,
    results: tuple[Tensor, Tensor, Tensor],
    norm: NormGradient | None,
) -> None:
    """Fill `results`, the gradients of query, key and value; `grads` and `norm` are those of `pack_gradients`."""
    chosen = _plan(query, key, value)
    packed, moments, scalars = saved
    d_query, d_key, d_value = results
    if not moments.numel():
        if norm is not None:
            norm.d_affine.zero_()
        return
    batch, channels = value.shape[:2]
    keys, pixels = query.shape[1], order.shape[1]
    with on_device(moments):
        order, counts = order.contiguous(), counts.contiguous()
        grad_rows, delta, span = pack_gradients(grads, order, counts, saved, eps, chosen.tf32, norm)
        shared = (packed, moments.view(packed.dtype), moments, grad_rows, scalars, delta, span, order, counts)
        dq, dk, dv = rows(d_query), rows(d_key), rows(d_value)
        flags = {"SCALED": packed.dtype == torch.float16, "LAST": channels_last(dv)}
        blocks = triton.cdiv(pixels, chosen.configs["dq"].block_m)
        bain_attention_bwd_dq_kernel[(blocks, batch)](
            *(*shared, dq, *dq.stride(), abs(scale), pixels, keys), **chosen.constants("dq"), **flags, NEGATE=scale < 0
        )
        # One kernel where its three accumulators fit, else dv by blocks of channels and dk over all of them.
        for name in ("dkv",) if chosen.fused() else ("dk", "dv"):
            blocks = triton.cdiv(pixels, chosen.configs[name].block_n)
            columns = chosen.width // chosen.block_c(name) if name == "dv" else 1
            bain_attention_bwd_dkv_kernel[(blocks, columns, batch)](
                *(*shared, dk if "k" in name else None, dv if "v" in name else None, *dk.stride(), *dv.stride()),
                *(abs(scale), pixels, keys, channels),
                **chosen.constants(name),
                **flags,
                DK="k" in name,
                DV="v" in name,
            )


def compile_cases() -> list[Case]:
    """Every configuration of the table as its launcher compiles it, and the packing kernels."""
    return [*_packing_cases(), *(case for key in TABLE for case in cases_of(*key))]


def cases_of(
    sm: int, kind: str, channels: int, keys: int, names: tuple[str, ...] = ("fwd", "dq", "dkv", "dk", "dv")
) -> Iterator[Case]:
    """The kernels of one line of the table, or those of `names` that it has, at its widest channels and keys."""
    chosen = plan(sm, kind, channels, keys)
    label = f"{kind} C={channels} D={keys}"
    launched = ("fwd", "dq", *(("dkv",) if chosen.fused() else ("dk", "dv")))
    for name in (name for name in launched if name in names):
        dtype = "fp16" if kind == "half" else "fp32"
        yield _case(chosen, name, sm, f"{label} {name}", dtype)
        if kind == "half" and keys == KEYS[0]:
            yield _case(chosen, name, sm, f"{label} {name} bf16", "bf16")
            for form in ("norm", "split") if name == "fwd" else ():
                yield _case(chosen, name, sm, f"{label} fwd {form}", dtype, **{form: True})


def _case(chosen: Plan, name: str, sm: int, label: str, dtype: str, norm: bool = False, split: bool = False) -> Case:
    kernels = {"fwd": bain_attention_fwd_kernel, "dq": bain_attention_bwd_dq_kernel}
    kernel = kernels.get(name, bain_attention_bwd_dkv_kernel)
    constants = chosen.constants(name)
    warps, stages = constants.pop("num_warps"), constants.pop("num_stages")
    constants |= {"NORM": norm, "SPLIT": split, "SCALED": dtype == "fp16", "DK": "k" in name, "DV": "v" in name}
    constants |= {"NEGATE": False, "LAST": False}
    absent = {"std_ptr": norm, "x_ptr": not norm, "affine_ptr": not norm}
    absent |= {"part_ptr": not split, "part_lse_ptr": not split, "splits": not split}
    absent |= {"d_key_ptr": "k" not in name, "d_value_ptr": "v" not in name}
    usual = chosen.key_width == 64 and (chosen.kind == "half" or chosen.width == 64)
    core = usual and (sm == 90 or (sm != 86 and not (norm or split or dtype == "bf16")))
    return _compiled(label, kernel, dtype, constants, absent, warps, stages, chosen.kind != "ieee", CLASSES[sm], core)


def _compiled(
    label: str,
    kernel: Any,
    dtype: str,
    constants: Mapping[str, Any],
    absent: Mapping[str, bool],
    warps: int,
    stages: int,
    products: bool = False,
    architectures: tuple[int, ...] = ARCHITECTURES,
    core: bool = True,
) -> Case:
    """A case of a kernel on contiguous maps: of constants and absent arguments, those that it has."""
    adjacent = "c" if constants["LAST"] else "n"
    ones = {f"stride_{of}{adjacent}": 1 for of in "qkvxyms"}
    absences = {argument: 1 if argument == "splits" else None for argument, missing in absent.items() if missing}
    fixed = {n: value for n, value in {**ones, **constants, **absences}.items() if n in kernel.arg_names}
    types = {argument: argument_type(argument, dtype) for argument in kernel.arg_names if argument not in fixed}
    return Case(label, kernel, types, fixed, warps, stages, products, architectures, core=core)


def _packing_cases() -> Iterator[Case]:
    """The kernels that have one configuration each, for attention and BAIN, half and float32, both layouts of a map."""
    sizes = {"KEY_WIDTH": 64, "WIDTH": 128, "BLOCK_C": PACK_BLOCK_C, "BLOCK_L": 64, "SPLITS": PACK_SPLITS}
    kernels = {
        bain_attention_moments_kernel: PACK_BLOCK_P,
        bain_attention_pack_kernel: PACK_BLOCK_P,
        bain_attention_fwd_merge_kernel: MERGE_BLOCK_P,
        bain_attention_bwd_range_kernel: GRADIENT_BLOCK_P,
        bain_attention_bwd_pack_kernel: GRADIENT_BLOCK_P,
    }
    for (kernel, block_p), dtype, norm, last in itertools.product(
        kernels.items(), ("fp16", "fp32"), (False, True), (False, True)
    ):
        if norm and kernel is bain_attention_moments_kernel:
            continue
        if dtype == "fp32" and kernel is bain_attention_bwd_range_kernel:
            continue
        warps = PACK_WARPS
        if norm and kernel is bain_attention_bwd_pack_kernel:
            block_p, warps = NORM_BLOCK_P, NORM_WARPS
        flags = {"NORM": norm, "LAST": last, "SCALED": dtype == "fp16", "TF32": dtype == "fp32", "NEGATE": False}
        for fused in (False, True) if kernel is bain_attention_pack_kernel else (False,):
            constants = {**sizes, **flags, "BLOCK_P": block_p, "FUSED": fused}
            absent = dict.fromkeys(("x_ptr", "dx_ptr", "sum_ptr", "affine_ptr"), not norm)
            absent |= {"std_ptr": norm, "sums_ptr": fused, "largest_ptr": dtype == "fp32"}
            words = (dtype, "norm" if norm else "", "channels last" if last else "", "fused" if fused else "")
            label = " ".join(word for word in words if word)
            made = _compiled(label, kernel, dtype, constants, absent, warps, PACK_STAGES)
            packs = kernel is bain_attention_pack_kernel
            yield dataclasses.replace(made, options=ALL_REGISTERS) if packs and (fused or norm) else made
