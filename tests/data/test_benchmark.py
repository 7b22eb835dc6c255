"""The benchmark of the data pipeline runs; no test asserts a time."""

import pytest

from scsco_fast.benchmarks.data import measure


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
