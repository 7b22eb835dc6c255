"""Composites made from photographs: on the fly for training, and as a data set in files.

- `dataset` writes a data set out of photographs (`synthesize`): `photographs` finds and segments them, `recipes` makes
  one composite, `realism` says which ones are kept, `journal` lets an interrupted run go on, `report` writes the lists;
- `synthetic` draws composites one by one, for training (`SyntheticComposites`);
- `composer` draws them in batches on one device, out of photographs in a `store`.
"""

from scsco_fast.synthesis.dataset import synthesize
from scsco_fast.synthesis.report import Synthesis
from scsco_fast.synthesis.synthetic import SyntheticComposites

__all__ = ["Synthesis", "SyntheticComposites", "synthesize"]
