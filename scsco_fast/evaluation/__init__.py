"""Scores of a method on a data set: protocols, metrics, references without a network, comparisons.

`evaluate` measures, `compare` says whether one of two measured methods is better.
"""

from scsco_fast.evaluation.baselines import BASELINES
from scsco_fast.evaluation.comparison import Comparison, compare
from scsco_fast.evaluation.datasets import load_dataset
from scsco_fast.evaluation.examples import write_examples
from scsco_fast.evaluation.loop import evaluate
from scsco_fast.evaluation.metrics import METRICS, score
from scsco_fast.evaluation.paired import Difference
from scsco_fast.evaluation.protocols import PROTOCOLS, Protocol
from scsco_fast.evaluation.resolution import at_full_resolution, default_resolution
from scsco_fast.evaluation.results import Evaluation, MethodSummary, Repeat, Summary
from scsco_fast.evaluation.rows import Row
from scsco_fast.evaluation.triplets import Triplet, Triplets

__all__ = [
    "BASELINES",
    "METRICS",
    "PROTOCOLS",
    "Comparison",
    "Difference",
    "Evaluation",
    "MethodSummary",
    "Protocol",
    "Repeat",
    "Row",
    "Summary",
    "Triplet",
    "Triplets",
    "at_full_resolution",
    "compare",
    "default_resolution",
    "evaluate",
    "load_dataset",
    "score",
    "write_examples",
]
