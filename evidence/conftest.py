"""A finished study that the tests of kept records read."""

from finished_studies import exportable

__all__ = ["exportable"]
