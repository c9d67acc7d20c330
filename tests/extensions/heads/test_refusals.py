"""Heads that cannot be looked at."""

from ..conftest import refusals

test_what_cannot_run_is_refused = refusals(
    ({"analyze": {"heads": {"enabled": True, "ablate": ["pocket_law"]}}}, "pocket_law"),
)
