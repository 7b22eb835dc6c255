"""Uninitialised memory that holds NaN, and NaN around every input."""

from guarded import guarded, nan_in_new_memory  # noqa: F401 (fixtures)
