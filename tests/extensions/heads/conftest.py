"""Benchmarks, run in this process."""

from ...test_benchmarks import lines_of

__all__ = ["lines_of"]
