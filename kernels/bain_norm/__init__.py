"""BAIN's output in the attention's own pass, in Triton."""
