"""The Gram matrix of a foreground in Triton."""
