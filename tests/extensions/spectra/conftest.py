"""Finished studies, planned ones, shards and commands that the tests of spectra read."""

from finished_studies import base, exportable, given_models, small

from ...run.test_costs import inputs
from ...run.test_shards import folder, sharded, shards
from ...test_benchmarks import lines_of
from ...tools.test_refusals import places

__all__ = ["base", "exportable", "folder", "given_models", "inputs"]
__all__ += ["lines_of", "places", "sharded", "shards", "small"]
