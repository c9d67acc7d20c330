"""Folders that the tests of the harness use."""

from ...faults.conftest import place
from ...faults.test_security import mark

__all__ = ["mark", "place"]
