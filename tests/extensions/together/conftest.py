"""Models and commands that the tests of several extensions read."""

from finished_studies import base, exportable, given_models

from ...tools.test_refusals import places

__all__ = ["base", "exportable", "given_models", "places"]
