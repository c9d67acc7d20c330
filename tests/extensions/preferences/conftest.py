"""The stand-in for a device, and the runner of races, that tests of preferences use."""

from ...test_benchmarks import lines_of
from ...train.test_waits import device

__all__ = ["device", "lines_of"]
