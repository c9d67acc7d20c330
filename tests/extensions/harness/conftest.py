"""Adapters that the tests of the harness read."""

from finished_studies import given_models

__all__ = ["given_models"]
