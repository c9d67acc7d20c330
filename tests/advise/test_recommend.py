"""The recommendation as a whole, also on studies that lack almost everything."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from synthetic_study import Truth, synthetic_study, with_scores

from rankscope.advise.recommend import recommend
from rankscope.records import BASE, EvalKey, Recommendation, StudyRecords


def with_keys(study: StudyRecords, keep: Callable[[EvalKey], bool]) -> StudyRecords:
    """The study with the item scores of some evaluations alone."""
    return replace(study, items={k: v for k, v in study.items.items() if keep(k)})


def nothing_run(study: StudyRecords) -> StudyRecords:
    waiting = tuple(replace(t, status="planned", train=None) for t in study.trials)
    return replace(study, trials=waiting, items={}, evals={})


@pytest.mark.parametrize(
    ("change", "decisions"),
    [
        (lambda study: with_keys(study, lambda key: key[2] == "test"), {"not_decided"}),
        (lambda study: with_keys(study, lambda key: key[0] != BASE), {"not_decided"}),
        (lambda study: replace(study, items={}, evals={}), {"not_decided"}),
        (
            lambda study: with_scores(study, lambda key, scores: scores * 0 + 1),
            {"do_not_fine_tune"},
        ),
        (nothing_run, {"not_decided"}),
        (
            lambda study: replace(with_keys(study, lambda key: key[0] == BASE), trials=()),
            {"not_decided"},
        ),
        (lambda study: replace(study, trials=(), tasks=(), items={}, evals={}), set()),
    ],
    ids=["validation", "base", "items", "differences", "runs", "trials", "tasks"],
)
@pytest.mark.parametrize("n", [1, 2, 60])
def test_what_is_missing_never_stops_the_advice(
    change: Callable[[StudyRecords], StudyRecords], decisions: set[str], n: int
) -> None:
    study = change(synthetic_study(Truth(num_items=n, seeds=(0,))))
    found = recommend(study)
    if n < 6 and decisions:
        decisions = {"not_decided"}
    assert {a.decision for a in found.advice} == decisions
    undecided = [a for a in found.advice if a.decision == "not_decided"]
    assert all(a.verdict and a.confidence == "none" for a in undecided)
    assert Recommendation.model_validate_json(found.model_dump_json()) == found


def test_a_recommendation_is_a_pure_function_and_json() -> None:
    study = synthetic_study(Truth(num_items=80, tasks=("med", "law")))
    one = recommend(study)
    assert one == recommend(study)
    assert [a.task for a in one.advice] == ["med", "law"]
    body = json.loads(one.model_dump_json())
    assert all(r["text"].endswith(".") for a in body["advice"] for r in a["reasons"])
    assert any(arm["on_pareto_front"] for arm in body["advice"][0]["arms"])


@pytest.mark.parametrize(
    "truth",
    [
        Truth(ranks=(8,), full_lrs=()),
        Truth(seeds=(0,)),
        Truth(num_items=5),
        Truth(num_items=10, seeds=(0,)),
        Truth(accuracy=lambda rank, lr: 0.1),
        Truth(forgetting=lambda rank, lr: 0.7),
        Truth(objective={"max_forgetting": 0.001}),
        Truth(accuracy=lambda rank, lr: 0.42, forgetting=lambda rank, lr: 0.12),
        Truth(failed={(r, 1e-3, s): "oom" for r in (2, 8, 32) for s in (0, 1, 2)}, full_lrs=()),
    ],
)
def test_a_verdict_is_short_and_its_verb_follows_the_confidence(truth: Truth) -> None:
    for seed in range(2):
        (advice,) = recommend(synthetic_study(truth, seed)).advice
        assert len(advice.verdict.split()) <= 12
        opening = {
            ("use", "firm"): "Use LoRA",
            ("use", "tentative"): "Probably use LoRA",
            ("use_full", "firm"): "Use full",
            ("use_full", "tentative"): "Probably use full",
            ("do_not_fine_tune", "firm"): "Do not fine-tune:",
            ("do_not_fine_tune", "tentative"): "Probably do not fine-tune:",
            ("not_decided", "none"): "Cannot tell yet:",
        }
        assert advice.verdict.startswith(opening[advice.decision, advice.confidence])
        claims = (advice.better_than_base, advice.best_choice)
        if advice.chosen is not None and advice.confidence == "firm":
            assert {claim.confidence for claim in claims} == {"firm"}
        assert all(claim.text[0].isupper() and claim.text.endswith(".") for claim in claims)
        roles = [role for row in advice.rows for role in row.roles]
        assert len(roles) == len(set(roles))
        assert len(advice.rows) <= 3
