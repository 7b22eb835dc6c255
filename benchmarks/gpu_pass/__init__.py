"""Everything that needs a GPU, in stages that each fit a few minutes and save as they go: docs/gpu-pass.md.

`benchmarks/gpu_pass.sh OUT STAGE...` runs them on a machine with nothing but torch and Triton; `--rehearse` runs the
same items, with small shapes, on a CPU.
"""

STAGES = ("look", "accuracy", "speed", "tune", "train", "profile", "cuda")
