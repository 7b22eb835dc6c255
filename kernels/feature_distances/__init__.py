"""Distances of feature maps in Triton."""
