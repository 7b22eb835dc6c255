"""Distances of Gram matrices in Triton."""
