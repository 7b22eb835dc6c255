"""The parts of a step's batch that one process computes one after the other."""

from typing import NamedTuple

from torch import Tensor

from scsco_fast.style.mosaic import Mosaic
from scsco_fast.train.cuda_graph import Tensors

Pictures = tuple[Tensor, Tensor, Tensor, Tensor | None]  # composite, real, mask, and the masks' boxes


def cut(rows: int, parts: int) -> list[slice]:
    """The rows of each part, at most `parts` of them; an empty part where there are no rows.

    Examples:
        >>> cut(5, 2)
        [slice(0, 3, None), slice(3, 5, None)]
        >>> cut(0, 2)
        [slice(0, 0, None)]
    """
    size = max(1, -(-rows // parts))
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)] or [slice(0, 0)]


class Part(NamedTuple):
    """What one forward and backward is computed from.

    Attributes:
        composite, real, mask: (B, 3, H, W), (B, 3, H, W), (B, 1, H, W).
        negatives: (B, K, 3, H, W); None in a step without the style loss.
        mosaic: where the style encoder computes; None: everywhere.
    """

    composite: Tensor
    real: Tensor
    mask: Tensor
    negatives: Tensor | None
    mosaic: Mosaic | None

    def tensors(self) -> Tensors:
        """All tensors in one tuple, as a CUDA graph has to be given them."""
        return *self[:4], *(() if self.mosaic is None else self.mosaic.tensors())

    def with_tensors(self, tensors: Tensors) -> "Part":
        """The same with other tensors, in the order of `tensors`."""
        composite, real, mask, negatives, *canvases = tensors
        assert composite is not None
        assert real is not None
        assert mask is not None
        mosaic = self.mosaic
        if mosaic is not None:
            mosaic = Mosaic.from_tensors([each for each in canvases if each is not None], len(mosaic.levels))
        return Part(composite, real, mask, negatives, mosaic)
