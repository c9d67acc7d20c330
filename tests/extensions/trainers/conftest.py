"""The finished study that the tests of this extension read."""

from finished_studies import small

__all__ = ["small"]
