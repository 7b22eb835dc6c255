"""The Gram matrix of two feature maps in Triton."""
