"""Colour transfer in Triton."""
