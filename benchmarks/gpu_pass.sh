#!/usr/bin/env bash
# Everything that needs a GPU, in one call of under ten minutes: the gpu tests, then time and memory of every operation.
#   benchmarks/gpu_pass.sh OUT      OUT receives gpu_tests.txt, gpu.csv and gpu.jsonl
# It needs the packages of pyproject.toml's dependencies but those of the command line, and no network.
set -uo pipefail
out=${1:?usage: benchmarks/gpu_pass.sh OUT}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p "$out"
# Builds the CUDA library for this GPU where nvcc and ninja are; without them its tests and rows are left out.
TORCH_CUDA_ARCH_LIST=native python3 -m pip install --quiet --no-deps --no-build-isolation --no-index -e . || exit 1
timeout 270 python3 -m pytest -m gpu -q tests/ops tests/nn tests/kernels tests/cuda tests/train/test_step_gpu.py 2>&1 | tee "$out/gpu_tests.txt"
tests=${PIPESTATUS[0]}
timeout 300 python3 -m scsco_fast.benchmarks --suite gpu --minutes 4 --output "$out"
measured=$?
exit $((tests || measured))
