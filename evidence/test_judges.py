"""What judges the search and the decision by studies of known truth counts as it says."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import simulate_studies
from random_truths import BY_NAME, draw
from rankscope.advise.recommend import recommend
from search import WORLDS, Drawn, Stored, judge, play_grid, play_random, play_search, print_table


def test_sides_of_a_search_spend_their_budget_and_are_judged_by_the_truth() -> None:
    drawn = Drawn(WORLDS["one broken arm"], 0)
    assert min(drawn.gain.values()) == pytest.approx(0.02 - drawn.base["med"])
    whole = judge(drawn, play_grid(drawn))
    assert whole["tokens"] == 1
    assert 0 <= whole["lost"] < 0.05
    assert play_random(drawn, 12, 0).trainings == 12
    stored = Stored(drawn.frame, "med")
    assert len(play_search(stored, 1).records.trials) == len(drawn.trials)


def test_regret_is_shown_in_points_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    sides = [{"a": 0.01, "b": 0.05}, {"a": 0.03, "b": 0.05}]
    rows = [{"sides": {k: {"lost": v, "p": 0.5, "tokens": 0.2} for k, v in of.items()}}
            for of in sides]  # fmt: skip
    print_table(rows, "by hand")
    found = capsys.readouterr().out.splitlines()[-2:]
    assert found[0] == "| a | 2.00 ± 1.96 | 2.9 | 0.500 | 0.500 | 0.200 | +0.00 ± 0.00 |"
    assert found[1] == "| b | 5.00 ± 0.00 | 5.0 | 0.000 | 0.500 | 0.200 | +3.00 ± 1.96 |"


MANY = {"ranks": (8,), "seeds": (40, 40), "items": (4000, 4000), "retained": 0, "gain": (1.5, 0.0)}


@pytest.mark.parametrize(
    "name", ["four retention tasks", "nats and points mixed", "seeds that collapse"]
)
def test_true_net_gains_are_what_many_seeds_and_items_show(name: str) -> None:
    """The advice counts in the truth's units; a gain that seeds lose by collapsing is not true."""
    drawn = draw(replace(BY_NAME[name], **MANY), 1)
    (advice,) = recommend(drawn.study).advice
    found = {arm.label: arm.expected.net.value for arm in advice.arms if arm.expected is not None}
    assert found == pytest.approx(drawn.net["med"], abs=0.02)


def test_items_of_a_passage_share_how_far_their_change_is_off() -> None:
    kind = replace(BY_NAME["8 passages"], ranks=(8,), seeds=(2, 2), items=(16000, 16000))
    study = draw(kind, 0).study
    for task in ("med", "general"):
        of = {model: found for (model, name, split), found in study.items.items()
              if (name, split) == (task, "test")}  # fmt: skip
        base = of.pop("base")
        change = np.mean([found.scores - base.scores for found in of.values()], axis=0)
        passages = [change[np.array(base.subjects) == p] for p in dict.fromkeys(base.subjects)]
        error = np.sqrt(np.mean([passage.var() / len(passage) for passage in passages]))
        assert len(passages) == 8
        assert np.std([passage.mean() for passage in passages]) > 2 * error


def test_random_truths_are_written_once_and_paired(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    options = ["--only", "random", "--row", "30 retention", "--draws", "2", "--json", str(rows)]
    monkeypatch.setattr(sys, "argv", ["simulate_studies", *options])
    simulate_studies.main()
    table, found = capsys.readouterr().out, simulate_studies.read_rows(rows)
    simulate_studies.main()
    assert simulate_studies.read_rows(rows) == found
    assert capsys.readouterr().out.splitlines()[:-2] == table.splitlines()[:-2]
    assert [(row["kind"], row["seed"], len(row["arms"])) for row in found] == [
        ("30 retention items", seed, 6) for seed in (0, 1)
    ]
    after = tmp_path / "after.jsonl"
    for row, more in zip(found, (0.01, 0.03), strict=True):
        row["regret"] += more
    unpaired = found[0] | {"draw": 0}
    after.write_text("".join(json.dumps(row) + "\n" for row in [*found, unpaired]))
    simulate_studies.print_pairs(rows, after)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 answers in both, 2 before, 3 after"
    assert [line.split(" | ")[4] for line in lines[4:]] == ["+2.00 ± 1.00"] * 2
