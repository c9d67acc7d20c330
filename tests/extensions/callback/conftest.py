"""Adapters that the tests of this extension read."""

from finished_studies import given_models

__all__ = ["given_models"]
