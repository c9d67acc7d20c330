"""Tasks of a harness where a study cannot take them."""

from pocket_study import changed

from ...run.test_refusals import REPLAY, arm
from ..conftest import refusals

test_what_cannot_run_is_refused = refusals(
    (arm(replay={**REPLAY, "task": "lm_eval:x"}), "found 'lm_eval:x'"),
    (changed("evaluate", cross_domain=["nothing:5"]), "expected one of lm_eval before the colon"),
    (changed("evaluate", retention=["lm_eval:hellaswag"]), "rankscope eval --tasks lm_eval:"),
)
