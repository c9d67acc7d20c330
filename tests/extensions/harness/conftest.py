"""Adapters and folders that the tests of the harness use."""

from finished_studies import given_models

from ...faults.conftest import place
from ...faults.test_security import mark

__all__ = ["given_models", "mark", "place"]
