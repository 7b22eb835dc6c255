"""A network for other programs: torch.export, ONNX, and a compiled AOTInductor package.

All three hold one graph of plain operations, `(composite, mask) -> output` as `HarmonizationUNet.forward`. No operation
of this project is left in it, so loading needs no scsco-fast. torch.export and ONNX take every batch size, height and
width; an AOTInductor package is compiled for one size.

BAIN's attention is a loop in it over blocks of `BLOCK` foreground pixels, so memory grows with the number of pixels and
not with its square. The loop is torch's operation `scan` around `cond`, which ONNX knows as Scan and If.
"""

import copy
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scsco_fast.errors import ScscoError
from scsco_fast.export.formats import Format, check
from scsco_fast.nn.norm import BAIN
from scsco_fast.nn.unet import HarmonizationUNet
from scsco_fast.ops import region_norm, use_backend
from scsco_fast.reference.bain_norm import bain_norm
from scsco_fast.reference.region_norm import region_norm as reference_region_norm
from scsco_fast.regions import RegionLevel, Regions, level_of
from scsco_fast.system.files import replacing

BLOCK = 256  # queries at a time: 144 MiB of logits for 147,456 keys. 1024 of them were a tenth faster.
OPSET = 18
SIZES = {0: "batch", 2: "height", 3: "width"}  # the axes that are free
LARGEST = 1 << 14  # batch, height and width: the exporter wants a bound
INPUTS, OUTPUT = ("composite", "mask"), "output"

# The operations themselves. `torch.cond` and its like have dynamo trace the functions that they are given, and dynamo
# remembers: a network exported after others had been compiled by the same process refused batches of one picture.
_scan, _cond = torch.ops.higher_order.scan, torch.ops.higher_order.cond
COMPILES_LOOPS = "2.13"  # the first torch whose AOTInductor compiles `scan`; in 2.12 that ends in an AssertionError
_EXAMPLE = (2, 70, 100)  # batch, height, width: none of them 1, which the exporter would keep for good


def export(model: HarmonizationUNet, path: str | Path, format: Format, size: tuple[int, int] | None = None) -> None:
    """Write `model` in a format that runs without scsco-fast, atomically.

    | format | is read by |
    |---|---|
    | "pt2" | `torch.export.load(path).module()` |
    | "onnx" | ONNX Runtime and others, opset 18; one float32 output |
    | "aoti" | `torch._inductor.aoti_load_package(path)`, or C++; machine code for this CPU, needs a C++ compiler here |

    Each is called with composite (B, 3, H, W) in [0, 1] and mask (B, 1, H, W) in [0, 1], float32 on the CPU, and gives
    (B, 3, H, W), not clamped. Where the mask is 0 the output is the composite, bit for bit.

    Args:
        model: the network; it is copied, and not changed.
        path: its suffix must be the format's: .pt2, .onnx, .pt2.
        size: the one height and width that it takes, one picture at a time. None: any B, H and W; of "aoti", which
            needs one, the model's working size squared.

    Raises:
        ScscoError: another suffix, a package or compiler that the format needs is missing, the file cannot be written.

    Examples:
        >>> import tempfile
        >>> export(HarmonizationUNet(base_channels=4, levels=5), "model.onnx", "pt2")
        Traceback (most recent call last):
        scsco_fast.errors.ScscoError: model.onnx: the format pt2 has the suffix .pt2; name a .pt2 file
    """
    check(path, format, size)
    loops = any(isinstance(norm, BAIN) for norm in model.norm)
    if format == "aoti" and loops and torch.__version__ < COMPILES_LOOPS:
        given, wanted = f"torch {torch.__version__} cannot compile BAIN's loop", f"torch {COMPILES_LOOPS} or newer"
        raise ScscoError(f"AOTInductor of {given}; install {wanted}, or write pt2 or onnx")
    if format == "aoti" and size is None:
        size = (model.working_size, model.working_size)
    write = {"pt2": _write_program, "onnx": _write_onnx, "aoti": _write_aoti}[format]
    _write(export_program(model, size), Path(path), model.working_size, write)


def export_program(model: HarmonizationUNet, size: tuple[int, int] | None = None) -> torch.export.ExportedProgram:
    """The network as one graph of plain operations, of any batch size, height and width, or of one size; see `export`.

    Takes about ten seconds. The graph is of float32 on the CPU and in eval mode; the model is not changed.
    """
    from torch.fx.experimental import _config

    plain = copy.deepcopy(model).cpu().float().eval()
    for level, norm in enumerate(plain.norm):
        if isinstance(norm, BAIN):
            plain.norm[level] = _LoopedBAIN(norm)
    plain.requires_grad_(False)
    batch, height, width = _EXAMPLE if size is None else (1, *size)
    composite, mask = torch.zeros(batch, 3, height, width), torch.zeros(batch, 1, height, width)
    free = {axis: torch.export.Dim(name, min=1, max=LARGEST) for axis, name in SIZES.items()}
    shapes = (free, free) if size is None else None
    # Without it the exporter would tell sizes of which the bottleneck has 1 pixel from others, and refuse to do both.
    oblivious = _config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with oblivious, use_backend("reference"), torch.no_grad(), _quiet():
        program = torch.export.export(plain, (composite, mask), dynamic_shapes=shapes, strict=False)
        return program.run_decompositions({torch.ops.scsco_fast.region_norm_reference.default: reference_region_norm})


class _LoopedBAIN(BAIN):
    """The same BAIN of operations that every exporter knows."""

    def __init__(self, bain: BAIN) -> None:
        projects = isinstance(bain.value, nn.Conv2d)
        super().__init__(bain.channels, bain.key_channels, projects, bain.eps, bain.cosine)
        self.load_state_dict(bain.state_dict())

    def forward(self, x: Tensor, mask: Regions | RegionLevel | Tensor) -> Tensor:
        level = level_of(mask, x.shape[-2], x.shape[-1])
        normalised = region_norm(x, level, eps=self.eps, adapt=False)
        query, key, scale = self.logit_operands(normalised)
        mean, std = self._moments(query * scale, key, self.value(x), level)
        return bain_norm(normalised, mean, std, level.foreground, level.valid, torch.stack(self.affine()))

    def _moments(self, query: Tensor, key: Tensor, value: Tensor, level: RegionLevel) -> tuple[Tensor, Tensor]:
        """`bain_attention`'s mean and deviation; the formulas are `scsco_fast.reference.bain_attention`'s."""
        is_key = level.background.flatten(2)  # (B, 1, N)
        has_keys = is_key.any(dim=2, keepdim=True)
        v = value.flatten(2)  # (B, C, N)
        pivot = torch.where(is_key, v, 0).sum(dim=2, keepdim=True) / is_key.sum(dim=2, keepdim=True).clamp(min=1)
        v = torch.where(is_key, v - pivot, 0).transpose(1, 2)
        v = torch.cat([v, v.square()], dim=2)  # (B, N, 2C)
        bias = torch.where(is_key | ~has_keys, 0.0, -torch.inf).squeeze(1)  # (B, N)
        moments = _attention(query.flatten(2).transpose(1, 2), key.flatten(2), bias, v, level)
        first, second = moments.transpose(1, 2).unflatten(2, value.shape[2:]).chunk(2, dim=1)  # (B, C, H, W)
        std = torch.sqrt((second - first.square()).clamp(min=0) + self.eps)
        use = level.foreground & has_keys.unsqueeze(3)
        return torch.where(use, first + pivot.unsqueeze(3), 0), torch.where(use, std, 1)


def _attention(query: Tensor, key: Tensor, bias: Tensor, value: Tensor, level: RegionLevel) -> Tensor:
    """softmax(query key + bias) value for the foreground's rows, 0 for most others; (B, N, M), as `value`.

    A step of the loop is `BLOCK` rows of one image, foreground rows first. Shapes cannot depend on the mask, so every
    image has as many steps as all its rows would take, and those that hold no foreground do nothing.

    Args:
        query: (B, N, D).
        key: (B, D, N).
        bias: (B, N), added to each query's logits.
        value: (B, N, M).
    """
    pixels = level.order.shape[1]
    starts = torch.arange(0, pixels, BLOCK, device=query.device)  # the first row of each of an image's blocks
    # The last block is filled with repetitions of the last row: all blocks of a scan are equally long.
    rows = (starts[:, None] + torch.arange(BLOCK, device=query.device)).flatten().clamp(max=pixels - 1)
    order = level.order.index_select(1, rows)[:, :, None]  # (B, rows, 1)
    in_order = query.gather(1, order.expand(-1, -1, query.shape[2]))
    blocks = in_order.reshape(-1, BLOCK, query.shape[2])  # (steps, BLOCK, D)
    busy = (starts < level.counts[:, :1]).flatten()  # (steps,)
    image = (torch.arange(query.shape[0], device=query.device)[:, None] + torch.zeros_like(starts)).flatten()

    nothing = query.new_zeros(())  # a scan wants something to carry
    _, found = _scan(_step, [nothing], [blocks, busy, image], [key, bias, value])  # (steps, BLOCK, M)
    found = found.reshape(query.shape[0], -1, value.shape[2])
    return torch.zeros_like(value).scatter(1, order.expand(-1, -1, value.shape[2]), found)


def _step(carry: Tensor, query: Tensor, has_foreground: Tensor, *operands: Tensor) -> list[Tensor]:
    (found,) = _cond(has_foreground, _attend, _attend_not, (query, *operands))
    return [carry.clone(), found]


def _attend(query: Tensor, image: Tensor, key: Tensor, bias: Tensor, value: Tensor) -> tuple[Tensor]:
    """(BLOCK, M) for queries (BLOCK, D) of one image, whose number is a tensor without axes."""
    k, b, v = (of_all.index_select(0, image.reshape(1)).squeeze(0) for of_all in (key, bias, value))
    return (torch.softmax(query @ k + b, dim=1) @ v,)


def _attend_not(query: Tensor, image: Tensor, key: Tensor, bias: Tensor, value: Tensor) -> tuple[Tensor]:
    return (query.new_zeros((query.shape[0], value.shape[2])),)


Writer = Callable[[torch.export.ExportedProgram, Path, int], None]


def _write(program: torch.export.ExportedProgram, path: Path, working_size: int, write: Writer) -> None:
    with replacing(path) as temporary, _quiet():
        write(program, temporary, working_size)


def _write_program(program: torch.export.ExportedProgram, path: Path, working_size: int) -> None:
    torch.export.save(program, path, extra_files={"working_size": str(working_size)})


def _write_onnx(program: torch.export.ExportedProgram, path: Path, working_size: int) -> None:
    import onnx

    exported = torch.onnx.export(
        program, input_names=INPUTS, output_names=[OUTPUT], opset_version=OPSET, dynamo=True, verbose=False
    )
    assert exported is not None
    proto = exported.model_proto
    _name_sizes(proto)
    onnx.helper.set_model_props(proto, {"working_size": str(working_size)})
    onnx.checker.check_model(proto)
    onnx.save(proto, path)


def _name_sizes(proto: Any) -> None:
    """The exporter's s31, s67 and s75 become batch, height and width."""
    sizes = proto.graph.input[0].type.tensor_type.shape.dim
    names = {sizes[axis].dim_param: name for axis, name in SIZES.items() if sizes[axis].dim_param}
    if not names:
        return
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")
    for graph in _graphs(proto.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            for size in value.type.tensor_type.shape.dim:
                if size.dim_param:
                    size.dim_param = pattern.sub(lambda match: names[match[0]], size.dim_param)


def _graphs(graph: Any) -> Iterator[Any]:
    """An ONNX graph, and those that its nodes hold: the bodies of loops and the branches of decisions."""
    yield graph
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        if attribute.HasField("g"):
            yield from _graphs(attribute.g)


def _write_aoti(program: torch.export.ExportedProgram, path: Path, working_size: int) -> None:
    torch._inductor.aoti_compile_and_package(
        program, package_path=str(path), inductor_configs={"aot_inductor.metadata": {"working_size": str(working_size)}}
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters warn of their own deprecations, and of packages that they would support."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
