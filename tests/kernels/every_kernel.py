"""One forward and backward of every operation with a backend: `python every_kernel.py [BACKEND [DEVICE]]`.

What compute-sanitizer watches, so the maps are small. Few channels and many, because the kernels for them differ;
every dtype, and TF32; a batch of which one image has no foreground and one nothing else.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from oracle import every_operation, make_mask, random

import scsco_fast as sf

KINDS = ("float32", "tf32", "bfloat16", "float16")
CASES = (  # images, channels, channels of queries and keys, height, width
    (2, 4, 4, 17, 24),
    (3, 128, 256, 9, 14),
    (3, 256, 64, 9, 14),
)


def main(backend: str = "triton", device: str = "cuda") -> None:
    # Triton compiles its kernels anew for every number of channels, a second each.
    for case in CASES[:1] if backend == "triton" else CASES:
        for kind in KINDS:
            torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
            dtype = torch.float32 if kind == "tf32" else getattr(torch, kind)
            with sf.use_backend(backend):
                differentiate(*case, dtype, device)
                if backend == "triton":
                    recolor(dtype, device)
    if device == "cuda":
        torch.cuda.synchronize()


def differentiate(
    images: int, channels: int, keys: int, height: int, width: int, dtype: torch.dtype, device: str
) -> list[Tensor]:
    """Gradients of one number that every differentiable operation has a part in."""
    shapes = [(images, keys, height, width)] * 2 + [(images, channels, height, width)]
    maps = [random(*shape, seed=seed, dtype=dtype).to(device).requires_grad_() for seed, shape in enumerate(shapes)]
    mask = make_mask("random" if images == 2 else "ragged", images, height, width).to(device)
    weight = torch.ones(channels, device=device, requires_grad=True)
    total = every_operation(*maps, mask, weight)
    return list(torch.autograd.grad(total, [*maps, weight]))


def recolor(dtype: torch.dtype, device: str) -> None:
    picture = torch.rand(2, 3, 24, 17, device=device, dtype=dtype)
    mask = make_mask("random", 2, 24, 17).to(device)
    for method in ("reinhard", "gaussian", "histogram"):
        sf.ops.transfer_color(picture, picture.flip(0), method, mask)


if __name__ == "__main__":
    main(*sys.argv[1:])
