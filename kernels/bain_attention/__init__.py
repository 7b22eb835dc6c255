"""BAIN's attention in Triton: packing, forward, backward, their launcher and their table of configurations."""
