"""The style encoder where masked images differ: windows around each foreground, packed on one canvas per pooling level.

Images of one mask agree outside it, so their activations differ only within the mask's receptive field; everywhere else
they equal those of an image that is masked out everywhere. That image's activations are not one constant per channel:
zero padding bends them near the borders. They are computed once per image size and called `still` here.

At every pooling level each image has a window: the part of the level that its mask can reach after the level's last
convolution, and a rim of one pixel. The windows of a batch lie side by side on a canvas, which the convolutions treat
as one picture. After each convolution every cell that is not inside a window's rim is set to its still value (0 outside
the image, which is the convolution's own padding), so whatever leaked in from a neighbouring window, from the canvas's
border or from a cell that belongs to no window is gone before the next convolution reads it. Windows start at even
pixels where a pooling follows, so pooling cells coincide with the image's. A deeper level has wider windows: what its
canvas needs and the one before does not hold is still.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scsco_fast.system.devices import may_read_values

# A canvas size made for boxes of unknown sizes: this share of them as large as the image, the others with this side.
SHARES_OF_LARGE, SMALL_SIDE = (0.0, 0.1, 0.2, 0.35, 0.5), 0.4
ROWS = 16  # a canvas whose size is free is rounded up to this many rows of the image
WORTH = 0.9  # a mosaic is made where it takes at most this share of the full computation's multiplications

Box = tuple[int, int, int, int]  # top, left, bottom, right
Window = tuple[int, int, int, int]  # top, left, height, width
Extent = tuple[int, int]  # first, one past the last


class Depth(NamedTuple):
    """One pooling level of an encoder: how many 3x3 convolutions it has, and their multiplications per pixel."""

    convolutions: int
    multiplications: int


class Level(NamedTuple):
    """Which canvas cell holds which pixel at one pooling level; -1 is none.

    Attributes:
        inside: (1, 1, rows, columns) bool, the cells that are computed; the others are still.
        pixel: (cells,) int64, index into the level's pixels of the whole batch (B H W).
        place: (cells,) int64, index into one image's pixels (H W).
        cell: (B H W,) int64, the inverse of `pixel`.
        origin: (cells,) int64, where a cell's value comes from: an index into the pooled canvas of the level before, at
            the first level into the batch's pixels.
        onward: the inverse of `origin`.
    """

    inside: Tensor
    pixel: Tensor
    place: Tensor
    cell: Tensor
    origin: Tensor
    onward: Tensor


class Mosaic(NamedTuple):
    """Where the windows of a batch lie, and what is around them; all tensors are on the encoder's device.

    Attributes:
        levels: of each pooling level.
        entries: (H W, C) of each level, the still activations that enter its first convolution.
        outputs: (H W, C) of each convolution, the still activations behind its ReLU.
    """

    levels: tuple[Level, ...]
    entries: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor, in the order that `from_tensors` takes: what a CUDA graph has to be given."""
        return *(tensor for level in self.levels for tensor in level), *self.entries, *self.outputs

    @classmethod
    def from_tensors(cls, tensors: Sequence[Tensor], levels: int) -> "Mosaic":
        """The inverse of `tensors`."""
        fields = len(Level._fields)
        built = tuple(Level(*tensors[start : start + fields]) for start in range(0, levels * fields, fields))
        still = tuple(tensors[levels * fields :])
        return cls(built, still[:levels], still[levels:])

    def mark_static(self) -> None:
        """Let torch.compile make code for exactly these sizes, as it does for the first, instead of for any size."""
        from torch._dynamo import mark_static

        for tensor in self.tensors():
            mark_static(tensor)


def reaches(first: int, last: int, size: int, depths: Sequence[Depth]) -> list[Extent]:
    """Along one axis, the window of each level for foreground pixels `first` ... `last` - 1 of `size`.

    A 3x3 convolution widens what the foreground reaches by one pixel on each side, pooling halves it outwards. The
    window adds a rim of one pixel, and starts and ends at even pixels where a pooling follows. It may stick out of the
    image. Without foreground it is empty.
    """
    extents = []
    for level, depth in enumerate(depths):
        if first >= last:
            extents.append((0, 0))
            continue
        first, last = max(0, first - depth.convolutions), min(size, last + depth.convolutions)
        even = 2 if level < len(depths) - 1 else 1
        extents.append(((first - 1) // even * even, -(-(last + 1) // even) * even))
        size //= 2
        first, last = first // 2, min(size, -(-last // 2))
    return extents


def shelves(windows: Sequence[tuple[int, int]], columns: int) -> tuple[list[tuple[int, int]], int]:
    """Place (height, width) windows on a canvas of `columns`: their (row, column) and the rows taken.

    The tallest first, each on the first shelf with room for it.
    """
    places = [(0, 0)] * len(windows)
    open_shelves: list[list[int]] = []  # row, height, next free column
    rows = 0
    for index in sorted(range(len(windows)), key=lambda index: -windows[index][0]):
        height, width = windows[index]
        shelf = next((s for s in open_shelves if s[2] + width <= columns), None)
        if shelf is None:
            shelf = [rows, height, 0]
            open_shelves.append(shelf)
            rows += height
        places[index] = (shelf[0], shelf[2])
        shelf[2] += width
    return places, rows


class Layout(NamedTuple):
    """Of one level: the image's size there, the canvas, and (top, left, height, width, row, column) of each window."""

    size: tuple[int, int]
    canvas: tuple[int, int]
    windows: list[tuple[int, int, int, int, int, int]]


def plan(boxes: Sequence[Box], size: tuple[int, int], depths: Sequence[Depth], fixed: bool) -> list[Layout] | None:
    """Windows and canvases of every level, or None where the full computation is cheaper.

    `fixed` takes the canvases of the smallest of `SHARES_OF_LARGE` that holds all windows, so that a batch size has few
    canvas sizes; otherwise they are about as small as these windows allow.
    """
    sizes = [(size[0] >> level, size[1] >> level) for level in range(len(depths))]
    if 0 in sizes[-1]:
        return None
    needed = [_windows(box, size, depths) for box in boxes]
    full = _windows((0, 0, *size), size, depths)
    placed = [_place([w[level] for w in needed], full[level], level, fixed) for level in range(len(depths))]
    canvases = [canvas for _, canvas in placed]
    if fixed:
        found = _fixed_canvases(canvases, len(boxes), size, depths)
        if found is None:
            return None
        canvases = found
    if _price(canvases, depths) > WORTH * len(boxes) * _price(sizes, depths):
        return None
    return [
        Layout(sizes[level], canvas, [(*w[level], *p) for w, p in zip(needed, placed[level][0], strict=True)])
        for level, canvas in enumerate(canvases)
    ]


def _place(
    windows: Sequence[Window], full: Window, level: int, fixed: bool
) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Places of one level's windows, and the rows and columns they take.

    Canvases are as wide as a whole image's window; the widest window's width is tried too where the size is free.
    """
    sides = [window[2:] for window in windows]
    widest = max((width for _, width in sides), default=0)
    best = None
    for columns in {full[3]} if fixed else {full[3], max(2, widest)}:
        places, taken = shelves(sides, columns)
        unit = 2 if fixed else max(2, ROWS >> level)
        rows = -(-max(1, taken) // unit) * unit
        if best is None or rows * columns < best[1][0] * best[1][1]:
            best = places, (rows, columns)
    assert best is not None
    return best


def _windows(box: Box, size: tuple[int, int], depths: Sequence[Depth]) -> list[Window]:
    """(top, left, height, width) of each level's window; all 0 where the box is empty."""
    top, left, bottom, right = box
    if top >= bottom or left >= right:
        return [(0, 0, 0, 0)] * len(depths)
    pairs = zip(reaches(top, bottom, size[0], depths), reaches(left, right, size[1], depths), strict=True)
    return [(y[0], x[0], y[1] - y[0], x[1] - x[0]) for y, x in pairs]


def _fixed_canvases(
    taken: Sequence[tuple[int, int]], batch: int, size: tuple[int, int], depths: Sequence[Depth]
) -> list[tuple[int, int]] | None:
    """The smallest fixed canvases with the rows of `taken`; they depend on the batch size and the image size alone."""
    full = _windows((0, 0, *size), size, depths)
    tall, wide = (round(SMALL_SIDE * side) for side in size)
    top, left = (size[0] - tall) // 2, (size[1] - wide) // 2
    small = _windows((top, left, top + tall, left + wide), size, depths)
    for share in SHARES_OF_LARGE:
        areas = [share * f[2] * f[3] + (1 - share) * s[2] * s[3] for f, s in zip(full, small, strict=True)]
        rows = [max(f[2], math.ceil(batch * area / f[3])) for area, f in zip(areas, full, strict=True)]
        canvases = [(-(-r // 2) * 2, f[3]) for r, f in zip(rows, full, strict=True)]
        if all(t[0] <= c[0] for t, c in zip(taken, canvases, strict=True)):
            return canvases
    return None


def _price(sizes: Sequence[tuple[int, int]], depths: Sequence[Depth]) -> int:
    """Multiplications of the convolutions over these sizes of the levels."""
    return sum(rows * columns * depth.multiplications for (rows, columns), depth in zip(sizes, depths, strict=True))


@torch.no_grad()
def build_levels(layouts: Sequence[Layout], device: torch.device) -> tuple[Level, ...]:
    """The maps of every level, computed on the device from the windows' few numbers: nothing waits for it."""
    windows = torch.tensor([layout.windows for layout in layouts])  # (levels, B, 6)
    if device.type == "cuda":
        windows = windows.pin_memory()
    levels: list[Level] = []
    for index, (layout, table) in enumerate(zip(layouts, windows.to(device, non_blocking=True), strict=True)):
        cell, inside = _cells(layout, table)
        rows, columns = layout.canvas
        batch, (height, width) = table.shape[0], layout.size
        pixel = _inverse(cell, torch.arange(cell.numel(), device=device), rows * columns)
        origin, onward = pixel, cell
        if index > 0:
            pooled, pooled_cells = _pooled(levels[-1].cell, batch, layouts[index - 1], layout)
            origin = torch.where(pixel >= 0, pooled[pixel.clamp_min(0)], -1)
            onward = _inverse(torch.where(cell >= 0, pooled, -1), cell, pooled_cells)
        inside = torch.where(pixel >= 0, inside[pixel.clamp_min(0)], False).reshape(1, 1, rows, columns)
        place = torch.where(pixel >= 0, pixel % (height * width), -1)
        levels.append(Level(inside, pixel, place, cell, origin, onward))
    return tuple(levels)


def _cells(layout: Layout, table: Tensor) -> tuple[Tensor, Tensor]:
    """For each pixel of the batch (B H W,): its cell or -1, and whether it is inside its window's rim."""
    height, width = layout.size
    top, left, tall, wide, row, column = (number.reshape(-1, 1, 1) for number in table.unbind(1))  # (B, 1, 1)
    y = torch.arange(height, device=table.device).reshape(1, -1, 1) - top  # (B, H, 1), in the window
    x = torch.arange(width, device=table.device).reshape(1, 1, -1) - left
    within = (y >= 0) & (y < tall) & (x >= 0) & (x < wide)
    inside = within & (y > 0) & (y < tall - 1) & (x > 0) & (x < wide - 1)
    cell = torch.where(within, (row + y) * layout.canvas[1] + column + x, -1)
    return cell.flatten(), inside.flatten()


def _inverse(index: Tensor, value: Tensor, size: int) -> Tensor:
    """(size,) with `value` at `index`, -1 where nothing points; an index of -1 points nowhere."""
    found = torch.full((size + 1,), -1, dtype=index.dtype, device=index.device)
    found[torch.where(index < 0, size, index)] = value
    return found[:-1]


def _pooled(cell: Tensor, batch: int, before: Layout, layout: Layout) -> tuple[Tensor, int]:
    """For each pixel of a level its cell on the pooled canvas of the level before, or -1; and that canvas's cells."""
    (height, width), (rows, columns) = layout.size, before.canvas
    corner = cell.reshape(batch, *before.size)[:, : 2 * height : 2, : 2 * width : 2].flatten()
    pooled = corner // columns // 2 * (columns // 2) + corner % columns // 2
    return torch.where(corner >= 0, pooled, -1), (rows // 2) * (columns // 2)


class _Move(torch.autograd.Function):
    """Pixels (J, S, C) at `index` (T,), `default` (T, C) where it is -1: (J, T, C).

    No pixel is taken twice, so the gradient is moved back by the inverse index: reads only, always in the same order.
    """

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, default: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return _take(pixels, index, default)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (inverse,) = ctx.saved_tensors
        return _take(grad, inverse, grad.new_zeros(())), None, None, None


def _take(pixels: Tensor, index: Tensor, default: Tensor) -> Tensor:
    return torch.where((index >= 0).unsqueeze(1), pixels.index_select(1, index.clamp_min(0)), default)


def move(pixels: Tensor, default: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    """Pixels (J, S, C) at `index` (T,), `default` (T, C) or () where that is -1: (J, T, C); `inverse` (S,)."""
    return _Move.apply(pixels, default.to(pixels.dtype), index, inverse)


def still_on_canvas(still: Tensor, place: Tensor) -> Tensor:
    """Still pixels (H W, C) on a canvas (cells, C); 0 where a cell holds no pixel of the image."""
    return torch.where((place >= 0).unsqueeze(1), still.index_select(0, place.clamp_min(0)), 0)


def surround(canvas: Tensor, still: Tensor, level: Level) -> Tensor:
    """A canvas (J, C, rows, columns) with the still values (H W, C) in every cell that is not inside; may overwrite it.

    On a CPU those cells alone are written, about a fifth: at 6 x 64 x 336 x 142 in 1.4 ms, a new canvas takes 25. Their
    number depends on the masks, so a GPU, which would have to be asked for it, and a compiler get a new canvas.
    """
    if may_read_values(canvas):
        around = (~level.inside).flatten().nonzero().squeeze(1)
        values = still_on_canvas(still, level.place.index_select(0, around)).to(canvas.dtype)
        cells = canvas.permute(0, 2, 3, 1).view(canvas.shape[0], -1, canvas.shape[1])  # not a copy: it is written to
        cells.index_copy_(1, around, values.expand(cells.shape[0], -1, -1))
        return canvas
    values = still_on_canvas(still, level.place).to(canvas.dtype).unflatten(0, canvas.shape[-2:]).permute(2, 0, 1)
    return torch.where(level.inside, canvas, values)
