"""Bad samples are listed apart; sizes do not mix."""

import pytest
import torch

from scsco_fast.data.samples import BadSample, Sample, collate
from scsco_fast.errors import ScscoError


def sample(name: str, side: int = 4) -> Sample:
    return Sample(torch.rand(3, side, side), torch.rand(3, side, side), torch.ones(1, side, side), name, "s")


def test_good_and_bad_are_told_apart_in_order() -> None:
    first, bad, second = sample("a"), BadSample("b", "b.png: no such file"), sample("c")
    batch = collate([first, bad, second])
    assert batch.names == ["a", "c"]
    assert batch.subsets == ["s", "s"]
    assert batch.bad == [bad]
    torch.testing.assert_close(batch.composite, torch.stack([first.composite, second.composite]))
    torch.testing.assert_close(batch.real, torch.stack([first.real, second.real]))
    assert batch.mask.shape == (2, 1, 4, 4)


def test_a_batch_without_a_good_sample_is_empty() -> None:
    batch = collate([BadSample("b", "why")] * 2)
    assert (len(batch.composite), len(batch.real), len(batch.mask), len(batch.names)) == (0, 0, 0, 0)
    assert len(batch.bad) == 2


def test_samples_of_two_sizes_are_refused_with_their_names() -> None:
    with pytest.raises(ScscoError, match="wide is 8x8 but narrow in the same batch is 4x4"):
        collate([sample("narrow"), sample("wide", 8)])
