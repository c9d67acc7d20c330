"""Heads that cannot be looked at."""

from ...run.test_refusals import on_two
from ..conftest import refusals

test_what_cannot_run_is_refused = refusals(
    ({"analyze": {"heads": {"enabled": True, "ablate": ["pocket_law"]}}}, "pocket_law"),
    (on_two(analyze={"heads": {"enabled": True}}), "found analyze.heads.enabled"),
)
