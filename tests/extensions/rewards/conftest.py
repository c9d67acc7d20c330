"""The runner of races."""

from ...test_benchmarks import lines_of

__all__ = ["lines_of"]
