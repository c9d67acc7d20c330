"""Trials that fail: shown, never dropped, and tried again on request."""

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import Outcome, rankscope, settings
from pocket_study import results

from faults import edit


def run(*words: object) -> Outcome:
    return rankscope("run", "study.yaml", "--out", "out", *words)


def status() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(rankscope("status", "out", "--json").out)
    return found


@pytest.mark.pitfall(22, 28)
def test_a_trial_that_diverges_is_shown_and_tried_again_on_request(place: Path) -> None:
    """At a learning rate of 1e30 the weights leave all bounds; the trial trains beside another."""
    edit(place, "lr: [1e-3]", "lr: [1e-3, 1e30]")
    ran = run()
    assert ran.code == 3, ran.err
    assert status()["state"] == "failed"
    done, diverged = status()["trials"]
    assert (done["status"], diverged["status"]) == ("done", "diverged")
    assert "after step 2 of 2" in diverged["failure"]
    told = rankscope("status", "out").told
    assert f"{diverged['trial_id']}: diverged: {diverged['failure']}" in told
    assert diverged["failure"] in (place / "out" / "report.html").read_text("utf-8")
    before = results(place / "out")

    again = run()
    assert again.code == 3, again.err
    assert "group 1/" not in again.err  # nothing was tried anew
    assert results(place / "out") == before
    retried = run("--retry", "failed,oom,diverged")
    assert retried.code == 3, retried.err
    assert "group 1/" in retried.err
    assert results(place / "out")["files"] == before["files"]

    removed = run(*settings("arms.0.lr=[1e-3]"))
    assert removed.code == 0, removed.err
    assert status()["trials_by_status"] == {"done": 1}
    assert run("--retry", done["trial_id"]).code == 3  # back in the study, it is shown again
    assert status()["trials_by_status"] == {"done": 1, "diverged": 1}
