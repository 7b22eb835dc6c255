"""The cases of every operation: inputs, variants that compete, float64 truth, and the formulas that count the work.

A new operation is one function here that returns a `Case`, and one line in `suites.py`.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

import scsco_fast as sf
from scsco_fast.benchmarks import baselines, truth
from scsco_fast.benchmarks.timing import gradients_of
from scsco_fast.regions import RegionLevel, Regions

Truth = Callable[[], tuple[list[Tensor], list[Tensor]]]
OTHERS = 5  # negatives and the positive of the style loss


@dataclass(frozen=True)
class Count:
    """Work of a forward or a backward: floating-point operations of products, and bytes that must be moved at least."""

    flop: float | None
    nbytes: float


@dataclass(frozen=True)
class Variant:
    """One competitor: `function` of the tensors that `inputs(seed)` makes, and what it should return for seed 0."""

    name: str
    function: Callable[..., Any]
    inputs: Callable[[int], list[Tensor]]
    truth: Truth
    note: str = ""
    forward_only: bool = False


@dataclass(frozen=True)
class Case:
    """Variants of one operation on maps (batch, channels, size, size) of one dtype; without `backward` it has none."""

    op: str
    dtype: torch.dtype
    batch: int
    channels: int
    size: int
    foreground: float
    variants: Sequence[Variant]
    forward: Count
    backward: Count | None = None
    detail: str = ""
    both_only: bool = False  # no rows of the forward and of the backward alone

    def counts(self) -> dict[str, Count]:
        """By mode."""
        if self.backward is None:
            return {"forward": self.forward}
        flop = None if self.forward.flop is None else self.forward.flop + (self.backward.flop or 0)
        both = Count(flop, self.forward.nbytes + self.backward.nbytes)
        if self.both_only:
            return {"forward+backward": both}
        return {"forward": self.forward, "backward": self.backward, "forward+backward": both}


def backends(device: str) -> list[str]:
    """Backends that can serve here; the reference last. On a CPU the interpreter and the emulation are none: but for a
    rehearsal (`emulated_backends`) nobody times them.
    """
    usable = [name for name, answer in sf.ops.backends().items() if answer == "yes"]
    served = ("eager", "reference") if device == "cpu" and not _emulated else sf.ops.backends()
    return [name for name in usable if name in served]


_emulated: list[bool] = []


@contextmanager
def emulated_backends() -> Iterator[None]:
    """Within the block the interpreter and the emulation are backends like the others."""
    _emulated.append(True)
    try:
        yield
    finally:
        _emulated.pop()


def random(seed: int, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, device: str) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(seed)
    return [torch.randn(shape, generator=generator, device=device).to(dtype) for shape in shapes]


def square_level(batch: int, size: int, foreground: float, device: str) -> tuple[RegionLevel, int]:
    """Squares of one size at different places, and the number of their pixels."""
    side = min(size - 1, max(1, round(size * foreground**0.5)))
    mask = torch.zeros(batch, 1, size, size, device=device)
    for image in range(batch):
        start = image * (size - side) // max(batch - 1, 1)
        mask[image, :, start : start + side, start : start + side] = 1
    return Regions(mask).at(size, size), side * side


def true_values(
    function: Callable[..., Any], inputs: Callable[[int], list[Tensor]], dtype: torch.dtype, backward: bool = True
) -> Truth:
    """Outputs and gradients of the function in float64, computed when first asked for."""

    @cache
    def compute() -> tuple[list[Tensor], list[Tensor]]:
        tensors = truth.in_float64(inputs(0))
        with torch.no_grad():
            shapes, _ = truth.outputs_and_gradients(function, tensors, ())
        return truth.outputs_and_gradients(function, tensors, gradients_of(shapes, dtype) if backward else ())

    return compute


def competing(
    device: str, call: Callable[..., Any], inputs: Callable[[int], list[Tensor]], wanted: Truth
) -> list[Variant]:
    """A variant for each backend of `call(*tensors, backend=...)`."""
    return [Variant(name, partial(call, backend=name), inputs, wanted) for name in backends(device)]


# --- BAIN -------------------------------------------------------------------------------------------------------------


def bain_attention(
    device: str,
    dtype: torch.dtype,
    batch: int,
    channels: int,
    size: int,
    foreground: float,
    libraries: bool = False,
    compile: bool = False,
    both_only: bool = False,
    keys: int | None = None,
) -> Case:
    """Per image, with n_f foreground and n_b background pixels, D key channels and C channels.

    Forward: q k^T and two moments, 2 n_f n_b (D + 2 C) operations; q, k, v read, mean and std written. Backward: the
    logits again, the gradient of the weights from both moments (2 C), of v (2 C), of q and of k: 2 n_f n_b (3 D + 4 C);
    q, k, v, both gradients of the outputs read, three gradients written. Exponentials are not counted.
    """
    keys = min(channels, 64) if keys is None else keys
    level, n_fg = square_level(batch, size, foreground, device)
    n_bg = size * size - n_fg

    @cache
    def inputs(seed: int) -> list[Tensor]:
        q, k, v = random(seed, [(batch, c, size, size) for c in (keys, keys, channels)], dtype, device)
        return [t.requires_grad_() for t in (q, k, v + 3)]

    @cache
    def rows(seed: int) -> list[Tensor]:
        return baselines.packed(level, *inputs(seed))

    wanted = true_values(partial(truth.bain_attention, level), inputs, dtype)
    call = partial(_attend, level)
    variants = [v for v in competing(device, call, inputs, wanted) if v.name != "reference" or dense_fits(level)]
    if compile and dense_fits(level):
        variants.append(
            Variant("reference compiled", baselines.compiled(partial(call, backend="reference")), inputs, wanted)
        )
    if libraries:
        wanted_rows = true_values(_attend_rows, rows, dtype)
        for name, function in baselines.libraries(device, compile).items():
            if device == "cuda":
                variants.append(Variant(name, function, rows, wanted_rows, baselines.PACKED))
            elif name != "SDPA" or matrix_fits(level):
                whole = partial(baselines.from_maps, function, level)
                forward_only = name == "FlexAttention"
                variants.append(Variant(name, whole, inputs, wanted, baselines.FROM_MAPS, forward_only))
    pairs, size_of = 2.0 * batch * n_fg * n_bg, batch * dtype.itemsize
    read = n_fg * keys + n_bg * (keys + channels)
    forward = Count(pairs * (keys + 2 * channels), size_of * (read + 2 * n_fg * channels))
    backward = Count(pairs * (3 * keys + 4 * channels), size_of * (2 * read + 2 * n_fg * channels))
    share = n_fg / (n_fg + n_bg)
    counts = forward, backward
    return Case("bain_attention", dtype, batch, channels, size, share, variants, *counts, both_only=both_only)


def _attend(level: RegionLevel, query: Tensor, key: Tensor, value: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return sf.ops.bain_attention(query, key, value, level, backend=backend)


def _attend_rows(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return truth.attention(*(t.squeeze(1) for t in (query, key, value))).unsqueeze(1)


def bain_norm(device: str, dtype: torch.dtype, batch: int, channels: int, size: int, foreground: float) -> Case:
    """The attention's work; the normalised map read and the output written, and their gradients in the backward."""
    attention = bain_attention(device, dtype, batch, channels, size, foreground)
    level, _ = square_level(batch, size, foreground, device)
    make = attention.variants[0].inputs

    @cache
    def inputs(seed: int) -> list[Tensor]:
        normalised = random(seed + 100, [(batch, channels, size, size)], dtype, device)
        return [*make(seed), *(t.requires_grad_() for t in normalised)]

    def call(query: Tensor, key: Tensor, value: Tensor, normalised: Tensor, backend: str) -> Tensor:
        return sf.ops.bain_norm(query, key, value, normalised, level, backend=backend)

    wanted = true_values(partial(truth.bain_norm, level), inputs, dtype)
    variants = [v for v in competing(device, call, inputs, wanted) if v.name != "reference" or dense_fits(level)]
    maps = batch * channels * size * size * dtype.itemsize
    forward, backward = attention.forward, attention.backward
    assert backward is not None
    forward = Count(forward.flop, forward.nbytes + 2 * maps)
    backward = Count(backward.flop, backward.nbytes + 3 * maps)
    return Case("bain_norm", dtype, batch, channels, size, attention.foreground, variants, forward, backward)


def dense_fits(level: RegionLevel) -> bool:
    """The dense attention holds about six float32 matrices of pixels x pixels per image; half the memory is for it."""
    batch, pixels = level.order.shape
    return 6 * 4 * batch * pixels**2 < free_memory(level.order) / 2


def matrix_fits(level: RegionLevel) -> bool:
    """PyTorch's attention of two widths holds three float32 matrices of queries x keys on a CPU."""
    return 3 * 4 * int(level.counts.prod(dim=1).sum()) < free_memory(level.order) / 2


def free_memory(tensor: Tensor) -> int:
    """In bytes, of the tensor's device."""
    if tensor.is_cuda:
        return torch.cuda.mem_get_info()[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# --- the norm, the style loss, the colours ----------------------------------------------------------------------------


def region_norm(device: str, dtype: torch.dtype, batch: int, channels: int, size: int, foreground: float) -> Case:
    """Memory alone: x read and y written; in the backward x and dy read and dx written."""
    level, n_fg = square_level(batch, size, foreground, device)

    @cache
    def inputs(seed: int) -> list[Tensor]:
        return [t.requires_grad_() for t in random(seed, [(batch, channels, size, size)], dtype, device)]

    call = partial(sf.ops.region_norm, regions_or_mask=level)
    wanted = true_values(partial(call, backend="reference"), inputs, dtype)
    one = batch * channels * size * size * dtype.itemsize
    counts = Count(None, 2.0 * one), Count(None, 3.0 * one)
    share = n_fg / (size * size)
    return Case("region_norm", dtype, batch, channels, size, share, competing(device, call, inputs, wanted), *counts)


def style_loss(device: str, dtype: torch.dtype, batch: int, channels: int, size: int) -> list[Case]:
    """The four operations of the style loss on VGG-16 features of one level.

    A Gram matrix is one product of 2 B C^2 H W operations; that it is symmetric is not used. Its backward is one
    product for each input with a gradient. gram_distances has one product for each other, and one in its backward: the
    signs of all differences can be summed before.
    """
    shape = (batch, channels, size, size)
    features = batch * channels * size * size * dtype.itemsize
    gram, matrix = 2.0 * batch * channels**2 * size * size, 4.0 * batch * channels**2

    def maker(graded: int, fixed: int, several: bool) -> Callable[[int], list[Tensor]]:
        @cache
        def inputs(seed: int) -> list[Tensor]:
            shapes = [shape] * (graded + fixed) + [(batch, OTHERS, *shape[1:])] * several
            return [t.requires_grad_(i < graded) for i, t in enumerate(random(seed, shapes, dtype, device))]

        return inputs

    def case(
        function: Callable[..., Any],
        inputs: Callable[[int], list[Tensor]],
        forward: Count,
        backward: Count,
        detail: str = "",
    ) -> Case:
        wanted = true_values(partial(function, backend="reference"), inputs, dtype)
        variants = competing(device, function, inputs, wanted)
        return Case(function.__name__, dtype, batch, channels, size, 1.0, variants, forward, backward, detail)

    return [
        case(
            sf.ops.masked_gram,
            maker(1, 0, False),
            Count(gram, features + matrix),
            Count(gram, 2 * features + matrix),
        ),
        case(
            sf.ops.cross_gram,
            maker(2, 0, False),
            Count(gram, 2 * features + matrix),
            Count(2 * gram, 4 * features + matrix),
        ),
        case(
            sf.ops.gram_distances,
            maker(1, 1, True),
            Count(OTHERS * gram, (2 + OTHERS) * features),
            Count(gram, 2 * features),
            f"{OTHERS} others",
        ),
        case(
            sf.ops.feature_distances,
            maker(1, 0, True),
            Count(None, (1 + OTHERS) * features),
            Count(None, (2 + OTHERS) * features),
            f"{OTHERS} others",
        ),
    ]


def transfer_color(device: str, batch: int, size: int, foreground: float, method: str) -> Case:
    """Memory alone, float32: source and reference read for the statistics, the source again to write the result."""
    level, n_fg = square_level(batch, size, foreground, device)

    @cache
    def inputs(seed: int) -> list[Tensor]:
        generator = torch.Generator(device).manual_seed(seed)
        return [torch.rand(batch, 3, size, size, generator=generator, device=device) for _ in range(2)]

    call = partial(sf.ops.transfer_color, method=method, mask=level)
    wanted = true_values(partial(call, backend="reference"), inputs, torch.float32, backward=False)
    count, share = Count(None, 4.0 * 4 * batch * 3 * size * size), n_fg / (size * size)
    variants = competing(device, call, inputs, wanted)
    return Case("transfer_color", torch.float32, batch, 3, size, share, variants, count, detail=method)
