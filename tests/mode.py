"""Which backend a process tests: Triton's under its interpreter, the compiled kernels in emulation, else the eager one.

tests/contract/ holds what every backend of an operation must do. Here it runs with the eager backend;
tests/kernels/test_interpreted.py and tests/cuda/test_emulated.py run it again in processes for theirs.
"""

import pytest
import torch

from scsco_fast import cuda, kernels

BACKEND = "triton" if kernels.interpreted() else "cuda" if cuda.emulated() else "eager"
# Triton's interpreter computes nothing of use in bfloat16.
DTYPES = {
    "eager": [torch.float64, torch.float32, torch.bfloat16, torch.float16],
    "cuda": [torch.float32, torch.float16, torch.bfloat16],
    "triton": [torch.float32, torch.float16],
}[BACKEND]
OTHER = "reference" if BACKEND == "eager" else "eager"  # to compare with
# Channels, dtype and the reason of maps that it refuses.
REFUSED = {
    "eager": [],
    "cuda": [(2, torch.float64, "float64")],
    "triton": [(513, torch.float32, "513 channels"), (2, torch.float64, "float64")],
}[BACKEND]
# What takes the interpreter ten seconds a case, and tests sizes of tiles that Triton's kernels do not have.
long_interpreted = pytest.mark.skipif(BACKEND == "triton", reason="too long for Triton's interpreter")
