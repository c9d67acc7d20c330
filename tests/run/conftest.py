"""Finished studies that the tests of this room read."""

from finished_studies import given_models, mitigated, small, two_groups

__all__ = ["given_models", "mitigated", "small", "two_groups"]
