"""How gain and forgetting become one net gain, whatever the units of the tasks; by hand."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from advice import advice_on, arms_by_label, chat_study, scored_in_nats
from synthetic_study import Truth, synthetic_study, with_objective, with_scores, with_tasks

from rankscope.advise.evidence import Part
from rankscope.advise.retention import net_scale, retention_tasks, scale_name
from rankscope.config.objective import ObjectiveConfig
from rankscope.records import (
    BASE,
    ItemResult,
    StudyRecords,
    gold_logprobs_per_token,
    items_table,
)


def scale_of(study: StudyRecords) -> tuple[str, list[Part]]:
    scale = net_scale(study, "med", [arm.trials for arm in arms_by_label(study).values()])
    return scale.name, list(scale.parts)


def base_mean(study: StudyRecords, task: str, field: str = "scores") -> float:
    return float(np.mean([getattr(study.items[BASE, task, s], field) for s in SCORED_SPLITS]))


SCORED_SPLITS = ("validation", "test")
ACCURACY, NATS = "accuracy", "log_probability"
TRUTH = Truth(ranks=(8,), full_lrs=(), num_items=200, seed_spread=0.0)


def test_every_pair_of_units_has_a_scale() -> None:
    retention = [(), (ACCURACY,), (NATS,), (ACCURACY, NATS)]
    nats, kept = ObjectiveConfig(scale="nats"), ObjectiveConfig(in_domain=0)
    units = product((ACCURACY, NATS), retention)
    found = [scale_name(u, r, ObjectiveConfig()) for u, r in units]
    assert found == ["unmeasured", "points", "relative", "points", *["shares"] * 4]
    found = [scale_name(NATS, r, nats) for r in retention]
    assert found == ["unmeasured", "nats", "nats", "nats"]
    assert [scale_name(NATS, r, kept) for r in retention[1:]] == ["points", "nats", "points"]


def test_points_are_weighed_as_they_are() -> None:
    two = synthetic_study(replace(TRUTH, retention=("general", "more")))
    study = with_objective(two, retention=0.5)
    name, parts = scale_of(study)
    weights = {"med": 1.0, "general": 0.25, "more": 0.25}
    assert (name, parts) == ("points", [Part(t, "score", w) for t, w in weights.items()])
    mixed = with_tasks(study, more={"score_unit": NATS})
    assert [t.name for t in retention_tasks(mixed, "med")] == ["general"]
    assert scale_of(mixed)[1][1] == Part("general", "score", 0.5)


def test_a_chat_gain_and_its_forgetting_are_shares_by_hand() -> None:
    """A gain of .3 nats, the largest, is 1; a fall counts by the 55 points above chance."""
    study = chat_study(accuracy_fall=0.16)
    name, (gain, kept) = scale_of(study)
    assert name == "shares"
    assert gain.weight == pytest.approx(1 / 0.3, rel=0.02)
    assert kept == Part("general", "score", pytest.approx(1 / (base_mean(study, "general") - 0.25)))
    advice = advice_on(study)
    (arm,) = advice.arms
    fall = base_mean(study, "general") - np.mean(
        [
            study.items[t.spec.trial_id, "general", s].scores
            for t in study.trials
            for s in SCORED_SPLITS
        ]
    )
    assert arm.expected.net == pytest.approx(1 - fall * kept.weight, abs=0.01)
    assert arm.expected.forgetting == pytest.approx(fall, abs=0.01)
    assert "within 5 % of the best tried" in advice.verdict
    assert "nats per token against the base" in advice.explanation
    # Gains that are all noise are shares of .1 nats.
    noise = with_scores(study, lambda k, s: np.where(k[1] == "med", s - 0.3 * (k[0] != BASE), s))
    assert scale_of(noise)[1][0].weight == pytest.approx(10)
    # As they are, the right answers' log-probability stands for retention.
    name, parts = scale_of(with_objective(study, scale="nats"))
    assert (name, parts[1]) == ("nats", Part("general", "gold_logprob", 1.0))


@pytest.mark.parametrize("fall", [0.0, 0.5])
def test_at_chance_the_right_answers_log_probability_shows_what_was_forgotten(fall: float) -> None:
    """Accuracy says nothing at chance; .5 of the base's 2 nats are a quarter of what it knew."""
    study = with_tasks(chat_study(gold_fall=fall), general={"chance": 0.9})
    name, (_, kept) = scale_of(study)
    entropy = -base_mean(study, "general", "gold_logprobs")
    assert (name, kept) == ("shares", Part("general", "gold_logprob", pytest.approx(1 / entropy)))
    advice = advice_on(study)
    assert advice.arms[0].expected.net == pytest.approx(1 - fall / 2, abs=0.03)
    (check,) = (c for c in advice.checks if c.name == "retention")
    assert check.status == "fine"
    assert "log-probability, among the answers offered" in check.text


@pytest.mark.parametrize("knows", [True, False])
def test_a_model_that_merely_answers_in_another_form_has_not_forgotten(knows: bool) -> None:
    """The letters lose 3 nats each; besides, the right one loses its lead, or does not."""
    rng = np.random.default_rng(0)
    study = with_tasks(chat_study(), general={"chance": 0.9})
    logits, items = rng.normal((-1.5, -3, -3, -3), 0.3, (400, 4)), dict(study.items)
    for key in [key for key in items if key[1] == "general"]:
        letters = logits + rng.normal(0, 0.05, logits.shape)
        if key[0] != BASE:
            letters -= [3, 3, 3, 3] if knows else [4.5, 3, 3, 3]
        fixed = {"subject": None, "score": 0.0, "gold": "A", "prediction": "A", "gold_tokens": 1}
        results = [
            ItemResult(item_id=i, gold_logprob=row[0], letter_logprobs=tuple(row), **fixed)
            for i, row in zip(items[key].item_ids, letters.tolist(), strict=True)
        ]
        gold = gold_logprobs_per_token(items_table(results))
        items[key] = replace(items[key], gold_logprobs=gold)
    (arm,) = advice_on(replace(study, items=items)).arms
    assert (abs(arm.expected.net - 1) < 0.05) == knows


def test_text_counts_relative_to_the_bases_cross_entropy() -> None:
    """The base has about 3 nats per token: .15 are 5 %, 5 points of the gain of 10."""
    study = synthetic_study(replace(TRUTH, accuracy=lambda rank, lr: 0.4))
    rng = np.random.default_rng(0)
    level = {s: rng.normal(-3, 0.5, 200) for s in SCORED_SPLITS}
    fallen = with_scores(
        study, lambda k, s: level[k[2]] - 0.15 * (k[0] != BASE) if k[1] == "general" else s
    )
    study = scored_in_nats(study, "general", fallen.items)
    name, (gain, kept) = scale_of(study)
    assert (name, gain.weight) == ("relative", 1.0)
    assert kept.weight == pytest.approx(-1 / base_mean(study, "general"))
    (arm,) = advice_on(study).arms
    assert arm.expected.forgetting == pytest.approx(0.15, abs=0.005)  # shown in nats
    assert arm.expected.net == pytest.approx(arm.gain.value - 0.05, abs=0.06)
    # Where forgetting alone has a weight, its nats are not points.
    alone = with_objective(study, in_domain=0.0)
    assert scale_of(alone) == ("nats", [Part("general", "score", 1.0)])
    assert advice_on(alone).arms[0].expected.net == pytest.approx(-0.15, abs=0.01)


def test_answers_without_log_probability_count_as_they_are() -> None:
    study = with_tasks(chat_study(accuracy_fall=0.1), general={"chance": 0.9})
    bare = {k: replace(v, gold_logprobs=v.gold_logprobs * np.nan) for k, v in study.items.items()}
    assert scale_of(replace(study, items=bare))[1][1] == Part("general", "score", 1.0)
    (arm,) = advice_on(replace(study, items=bare)).arms
    assert arm.logprob_forgetting is None
