"""Means of the losses between two rows of the table, kept on the device until they are read."""

import functools
import math

import torch
from torch import Tensor


class RunningMeans:
    """Means of named 0-d tensors since the last read, kept on the device.

    Values with weight 0 do not count, even when they are NaN. Names that are absent in some steps (the style terms
    when `style_every` > 1) are averaged over the steps that had them.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], Tensor] = {}

    def add(self, values: dict[str, Tensor], weight: Tensor) -> None:
        """Add one step; `weight` is a 0-d tensor, 1 to count the step and 0 to leave it out."""
        dtype = functools.reduce(torch.promote_types, (value.dtype for value in values.values()), weight.dtype)
        row = torch.stack([value.detach().to(dtype) for value in (*values.values(), torch.ones_like(weight))])
        row = torch.where(weight > 0, row, 0.0)
        names = tuple(values)
        self._sums[names] = self._sums[names] + row if names in self._sums else row

    def read(self) -> dict[str, float]:
        """Mean of each name, and forget them all. This waits for the device; a name without a counted step is NaN."""
        totals: dict[str, tuple[float, float]] = {}
        for names, sums in self._sums.items():
            *values, count = sums.tolist()
            for name, value in zip(names, values, strict=True):
                total, number = totals.get(name, (0.0, 0.0))
                totals[name] = total + value, number + count
        self._sums.clear()
        return {name: total / number if number else math.nan for name, (total, number) in totals.items()}
