"""Region normalisation in Triton."""
