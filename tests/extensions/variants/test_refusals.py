"""Variants that cannot be scored."""

from pocket_study import changed

from ..conftest import refusals

test_what_cannot_run_is_refused = refusals((changed("evaluate", scales=[1.5]), "less than 1"))
