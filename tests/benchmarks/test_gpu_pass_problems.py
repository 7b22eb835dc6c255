"""What the GPU pass holds results to: right ones pass, slightly wrong ones fail, for every operation and count."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

pytest.importorskip("triton")

import torch
from torch import Tensor

from scsco_fast.benchmarks.gpu_pass.accuracy import COUNTS, pairs_of_counts
from scsco_fast.benchmarks.gpu_pass.problems import OTHERS, compare, counted, problem, ragged, same_precision
from scsco_fast.regions import Regions

NAMES = ("bain_attention", "bain_norm", *OTHERS)
SIZE, KEYS, CHANNELS = 9, 12, 10


# Not bain_norm in bfloat16: the eager backend rounds mean and deviation to it first, which the fused kernels do not.
@pytest.mark.parametrize(
    ("name", "kind"), [*((n, "float32") for n in NAMES), *((n, "bfloat16") for n in NAMES if n != "bain_norm")]
)
def test_the_eager_backend_passes_and_a_wrong_one_does_not(name: str, kind: str) -> None:
    found, regions = problem(name, kind, CHANNELS, SIZE, KEYS, "cpu"), ragged(SIZE, "cpu")
    right = list(compare(found, regions, "eager"))
    assert [record["result"] for record in right] == list(found.results)
    assert all(record["passed"] for record in right), right

    def call(leaves: Sequence[Tensor], fixed: Sequence[Tensor], where: Regions, backend: str) -> tuple[Tensor, ...]:
        outputs = found.call(leaves, fixed, where, backend)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        is_ours = outputs[0].dtype != torch.float64  # float64 is the truth
        return tuple(1.1 * output if is_ours else output for output in outputs)

    wrong = list(compare(replace(found, call=call), regions, "reference"))
    if name in ("bain_attention", "bain_norm"):  # the others' reference of the same precision is the wrong call itself
        assert not any(record["passed"] for record in wrong if record["largest"] > 0), wrong


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_of_the_same_precision_is_the_same_formula(name: str) -> None:
    """In float32 it is the truth up to float32's rounding: 2^-23 of sums of up to 3 * 81 * 10 terms."""
    found, regions = problem(name, "float32", CHANNELS, SIZE, KEYS, "cpu"), ragged(SIZE, "cpu")
    truths = found.wide().compute(regions, "eager")
    for result, near, truth in zip(found.results, same_precision(found, regions), truths, strict=True):
        error = float((near.double() - truth).abs().max())
        assert error <= 2**-23 * 3 * SIZE * SIZE * CHANNELS * float(truth.abs().max()), result


def test_regions_have_the_counts_that_they_are_asked_for() -> None:
    for counts in pairs_of_counts(16).values():
        regions = counted(counts, 16, "cpu")
        assert regions.at(16, 16).counts.tolist() == [list(pair) for pair in counts]
        assert len(counts) == len(COUNTS)
    found = problem("bain_attention", "float32", CHANNELS, 16, KEYS, "cpu", len(COUNTS))
    records = list(compare(found, counted(pairs_of_counts(16)["few of both"], 16, "cpu"), "eager"))
    assert all(record["passed"] for record in records), records
