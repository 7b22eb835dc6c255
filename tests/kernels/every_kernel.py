"""One forward and backward of every operation with a backend on the GPU: `python every_kernel.py [BACKEND]`."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from oracle import every_operation, every_operation_inputs

import scsco_fast as sf


def main(backend: str) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        query, key, x, mask, weight = (tensor.detach().cuda() for tensor in every_operation_inputs(17, 24))
        leaves = [tensor.to(dtype).requires_grad_() for tensor in (query, key, x)]
        with sf.use_backend(backend):
            total = every_operation(*leaves, mask, weight.requires_grad_())
            torch.autograd.grad(total, [*leaves, weight])
            picture = torch.rand(2, 3, 24, 17, device="cuda", dtype=dtype)
            if backend == "triton":
                for method in ("reinhard", "gaussian", "histogram"):
                    sf.ops.transfer_color(picture, picture.flip(0), method, mask.float().transpose(2, 3))
    torch.cuda.synchronize()


if __name__ == "__main__":
    main(*sys.argv[1:] or ["triton"])
