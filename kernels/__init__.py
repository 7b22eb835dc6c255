"""Triton kernels, installed as `scsco_fast.kernels`: one file per operation. Imports torch and triton, nothing else.

Empty so far: the operations run on the `eager` and `reference` backends.
"""
