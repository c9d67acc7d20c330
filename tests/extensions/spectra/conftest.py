"""Copied studies, planned ones, stored scores and commands that tests of spectra read."""

from ...run.test_costs import inputs
from ...run.test_given import evaluated
from ...run.test_study import copy
from ...test_benchmarks import lines_of
from ...tools.test_refusals import places

__all__ = ["copy", "evaluated", "inputs", "lines_of", "places"]
