"""Finished studies that the tests of formats read."""

from finished_studies import base, exportable, given_models, small

__all__ = ["base", "exportable", "given_models", "small"]
