"""Composites made from photographs: on the fly for training, and as a data set in files."""

from scsco_fast.synthesis.synthetic import SyntheticComposites

__all__ = ["SyntheticComposites"]
