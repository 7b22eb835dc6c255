"""The benchmark of the data pipeline runs; no test asserts a time."""

import pytest

from scsco_fast.benchmarks.data import measure, measure_generators
from scsco_fast.data.workers import default_workers


@pytest.mark.slow
def test_every_reader_is_measured() -> None:
    rows = measure(pictures=4, side=32, size=16, seconds=0.05)
    assert {row.reader for row in rows} == {
        "scsco prepare",
        "raw JPEGs",
        "packed",
        "packed, on the device",
        "training step",
    }
    assert all(row.images > 0 and row.images_per_second > 0 for row in rows)


@pytest.mark.slow
def test_both_generators_are_measured() -> None:
    rows = measure_generators(size=32, seconds=0.05)
    made = {(row.reader, row.processes) for row in rows}
    names = ("synthetic, 128", "synthetic, wide, 128", "synthetic, 32")
    assert made == {("composed, 96", 0), *((name, number) for name in names for number in (0, default_workers()))}
    assert all(row.images > 0 and row.images_per_second > 0 for row in rows)
