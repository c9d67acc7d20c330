"""Variants that cannot be scored."""

from pocket_study import changed

from ...run.test_refusals import on_two
from ..conftest import refusals

test_what_cannot_run_is_refused = refusals(
    (changed("evaluate", scales=[1.5]), "less than 1"),
    (on_two(evaluate={"scales": [0.5]}), "found variants of full fine-tuning"),
)
