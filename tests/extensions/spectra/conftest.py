"""Finished studies, planned ones and shards that the tests of spectra read."""

from finished_studies import base, exportable, given_models, small

from ...run.test_costs import inputs
from ...run.test_shards import folder, sharded, shards
from ...tools.test_refusals import places

__all__ = [
    "base",
    "exportable",
    "folder",
    "given_models",
    "inputs",
    "places",
    "sharded",
    "shards",
    "small",
]
