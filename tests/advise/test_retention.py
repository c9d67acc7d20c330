"""How forgetting is measured and weighed, whatever the units of the tasks."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from advice import advice_on, chat_study
from synthetic_study import Truth, synthetic_study

from rankscope.advise.arms import summarize_arms
from rankscope.advise.comparisons import net_difference
from rankscope.advise.recommend import recommend
from rankscope.advise.retention import retention_scale, scale_name
from rankscope.records import BASE, ItemResult, StudyRecords, gold_logprobs_per_token, items_table


def with_gold(study: StudyRecords, change: Callable[[str, np.ndarray], np.ndarray]) -> StudyRecords:
    """Other log-probabilities of the right answers on the retention task: (model, old) -> new."""
    items = {
        key: replace(found, gold_logprobs=change(key[0], found.gold_logprobs))
        if key[1] == "general"
        else found
        for key, found in study.items.items()
    }
    return replace(study, items=items)


def test_every_pair_of_units_has_a_scale() -> None:
    units = ("accuracy", "log_probability")
    retention = [(), ("accuracy",), ("log_probability",), units]
    found = {(u, r): scale_name(u, r, weighs_gain=True) for u, r in product(units, retention)}
    assert list(found.values()) == [
        *("unmeasured", "points", "relative", "points"),
        *("unmeasured", "gold_logprob", "nats", "gold_logprob"),
    ]
    assert scale_name("log_probability", ("accuracy",), weighs_gain=False) == "points"


@pytest.mark.parametrize(("gold_fall", "decision"), [(0.0, "use"), (0.5, "do_not_fine_tune")])
def test_a_gain_in_nats_is_weighed_against_the_right_answers_log_probability(
    gold_fall: float, decision: str
) -> None:
    study = chat_study(gold_fall)
    advice = advice_on(study)
    assert advice.decision == decision
    assert advice.forgetting_scale.name == "gold_logprob"
    assert advice.forgetting_scale.text in recommend(study).method
    (arm,) = summarize_arms(study)["med"]
    weighed, gain = arm.summary.weighed_forgetting, arm.summary.gain
    assert weighed == arm.summary.logprob_forgetting
    assert weighed.value == pytest.approx(gold_fall, abs=0.02)
    net = net_difference(study, arm, None, study.config.objective.weights)
    assert net.value == pytest.approx(gain.value - weighed.value)
    # In points, as answers are: forgetting is shown so, and a limit applies to it.
    assert arm.summary.forgetting.value == pytest.approx(0.0, abs=0.05)


@pytest.mark.parametrize("knows", [True, False])
def test_a_model_that_merely_answers_in_another_form_has_not_forgotten(knows: bool) -> None:
    """The letters lose 3 nats each; besides, the right one loses its lead, or does not."""
    rng = np.random.default_rng(0)
    logits = rng.normal(-3, 0.3, (400, 4))
    logits[:, 0] += 1.5
    study = chat_study()
    items = dict(study.items)
    for key in [key for key in items if key[1] == "general"]:
        letters = logits + rng.normal(0, 0.05, logits.shape)
        if key[0] != BASE:
            letters -= [3, 3, 3, 3] if knows else [4.5, 3, 3, 3]
        results = [
            ItemResult(
                item_id=item_id,
                subject=None,
                score=score,
                gold="A",
                prediction="A",
                gold_logprob=row[0],
                gold_tokens=1,
                letter_logprobs=tuple(row),
            )
            for item_id, score, row in zip(
                items[key].item_ids, items[key].scores.tolist(), letters.tolist(), strict=True
            )
        ]
        items[key] = replace(
            items[key], gold_logprobs=gold_logprobs_per_token(items_table(results))
        )
    study = replace(study, items=items)
    assert advice_on(study).decision == ("use" if knows else "do_not_fine_tune")
    (arm,) = summarize_arms(study)["med"]
    weighed = arm.summary.weighed_forgetting
    assert weighed.is_above(0) != knows
    assert abs(weighed.value) < 0.02 or not knows


def test_answers_without_log_probability_count_by_the_bases_cross_entropy() -> None:
    study = with_gold(chat_study(accuracy_fall=0.1), lambda model, gold: gold * np.nan)
    scale = retention_scale(study, "med")
    entropy = -float(study.items[BASE, "med", "test"].scores.mean())
    assert (scale.name, scale.factor("general")) == ("relative", pytest.approx(entropy))
    (arm,) = summarize_arms(study)["med"]
    expected = arm.summary.forgetting.value * entropy
    assert arm.summary.weighed_forgetting.value == pytest.approx(expected)
    assert arm.summary.logprob_forgetting is None


def test_at_chance_the_log_probability_of_right_answers_carries_the_verdict() -> None:
    """Accuracy stays at chance; the right answers become less likely, or do not."""
    study = synthetic_study(
        Truth(ranks=(8,), full_lrs=(), base_other=0.25, forgetting=lambda rank, lr: 0.0)
    )

    def advice_with(fall: float) -> tuple[str, str, str]:
        rng = np.random.default_rng(0)
        level = rng.normal(-2, 0.5, 400)
        advice = advice_on(
            with_gold(
                study,
                lambda model, _: level - fall * (model != BASE) + rng.normal(0, 0.01, 400),
            )
        )
        (check,) = (c for c in advice.checks if c.name == "retention")
        assert check.value == "general not above chance"
        return advice.better_than_base.confidence, check.status, check.text

    *kept, text = advice_with(0.0)
    assert "The log-probability of the right answers, among the answers offered" in text
    *lost, text = advice_with(0.3)
    assert "\N{MINUS SIGN}0.3" in text
    assert (kept, lost) == (["firm", "weak"], ["tentative", "bad"])


def test_forgetting_that_decides_but_was_not_scored_is_lacking() -> None:
    """The gain in nats is weighed by log-probabilities; accuracy alone is not enough."""
    advice = advice_on(
        with_gold(chat_study(), lambda model, gold: gold if model == BASE else gold * np.nan)
    )
    assert advice.arms[0].forgetting is not None
    assert advice.arms[0].weighed_forgetting is None
    assert (advice.decision, advice.confidence) == ("use", "tentative")
    assert any("Score the base and this arm" in step.text for step in advice.next_steps)
