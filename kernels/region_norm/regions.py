"""Region normalisation: what the kernels of `forward` and `backward` share.

Three forms of kernel: "tile" holds small planes in registers, "plane" reads a large one twice, "split" cuts images into
parts of pixels, whose sums go to a small float32 buffer; `launch` chooses. Masks are contiguous bytes (B, N).
"""

import triton
import triton.language as tl


@triton.jit
def regions(fg_ptr, valid_ptr, n, inside, HAS_VALID: tl.constexpr):
    """Which of an image's pixels n, that are inside, are foreground and which background."""
    fg = tl.load(fg_ptr + n, mask=inside, other=0) != 0
    bg = inside & ~fg
    if HAS_VALID:
        bg = bg & (tl.load(valid_ptr + n, mask=inside, other=0) != 0)
    return fg, bg


@triton.jit
def affine_row(affine_ptr, ROW: tl.constexpr, c, channels, inside):
    """Of (4, C): gain and offset of the foreground, gain and offset of the background; 0 where c is not `inside`."""
    return tl.load(affine_ptr + ROW * channels + c, mask=inside, other=0.0)


@triton.jit
def sizes_of(n_f, n_b, pixels, HAS_VALID: tl.constexpr):
    """Pixels of both regions from each thread's numbers; without excluded pixels the background is the rest."""
    size_f = tl.sum(n_f, 0)
    size_b = tl.sum(n_b, 0) if HAS_VALID else pixels - size_f
    return size_f.to(tl.float32), size_b.to(tl.float32)


@triton.jit
def store_part(count_ptr, part_ptr, at, c, channels, n_f, n_b, row_0, row_1, row_2, row_3):
    """A split's numbers of pixels of both regions, (B, splits, 2), and its (4, C) sums, (B, splits, 4, C)."""
    if tl.program_id(1) == 0:
        tl.store(count_ptr + at * 2, n_f)
        tl.store(count_ptr + at * 2 + 1, n_b)
    part_ptr += at * 4 * channels + c
    tl.store(part_ptr, row_0, mask=c < channels)
    tl.store(part_ptr + channels, row_1, mask=c < channels)
    tl.store(part_ptr + 2 * channels, row_2, mask=c < channels)
    tl.store(part_ptr + 3 * channels, row_3, mask=c < channels)


@triton.jit
def counts_of(count_ptr, image, splits, REGION: tl.constexpr, SPLITS: tl.constexpr):
    """Every split's number of pixels of a region."""
    s = tl.arange(0, SPLITS)
    return tl.load(count_ptr + (image * splits + s) * 2 + REGION, mask=s < splits, other=0.0)


@triton.jit
def parts_of(part_ptr, image, splits, channels, c, ROW: tl.constexpr, SPLITS: tl.constexpr):
    """Row ROW of every split's (4, C) partial sums: (SPLITS, BLOCK_C)."""
    s = tl.arange(0, SPLITS)
    at = ((image * splits + s) * 4 + ROW)[:, None] * channels + c[None, :]
    return tl.load(part_ptr + at, mask=(s < splits)[:, None] & (c < channels)[None, :], other=0.0)
