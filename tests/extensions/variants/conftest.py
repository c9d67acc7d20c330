"""Given models that the tests of variants read."""

from finished_studies import given_models

__all__ = ["given_models"]
