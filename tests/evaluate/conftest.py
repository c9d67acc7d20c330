"""Models that tests of this room share."""

from finished_studies import given_models

__all__ = ["given_models"]
