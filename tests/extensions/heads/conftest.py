"""Benchmarks, run in this process, and stored scores."""

from ...run.test_given import evaluated
from ...test_benchmarks import lines_of

__all__ = ["evaluated", "lines_of"]
