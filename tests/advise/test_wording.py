"""Names of arms in sentences."""

from dataclasses import replace

from rankscope.advise.recommend import recommend
from rankscope.advise.summaries import summarize
from rankscope.advise.wording import settings
from synthetic_study import Truth, synthetic_study


def test_arms_that_differ_in_a_mitigation_alone_have_different_names() -> None:
    study = synthetic_study(Truth(ranks=(8,)))
    held = {"replay": "general", "replay_share": 0.3, "kl_to_base": 1.0}
    trials = tuple(
        replace(trial, spec=trial.spec.model_copy(update=held)) for trial in study.trials
    )
    names = [
        [settings(arm.summary) for arm in arms]
        for found in (study, replace(study, trials=trials))
        for arms in summarize(found).values()
    ]
    assert names == [
        ["LoRA r=8 (alpha 16, lr 0.001)", "full fine-tuning (lr 0.0005)"],
        [
            "LoRA r=8 (alpha 16, lr 0.001, replay=0.3xgeneral, kl=1)",
            "full fine-tuning (lr 0.0005, replay=0.3xgeneral, kl=1)",
        ],
    ]


def test_what_was_gained_on_retention_has_the_interval_of_the_gain() -> None:
    truth = Truth(ranks=(8,), base_other=0.5, forgetting=lambda rank, lr: -0.2)
    (advice,) = recommend(synthetic_study(truth)).advice
    (told,) = [r for r in advice.reasons if r.kind == "forgetting"]
    found = told.values
    low, high = (-100 * found[f"forgetting_{end}"] for end in ("high", "low"))
    assert 0 < low < -100 * found["forgetting"] < high
    assert f"gains {-100 * found['forgetting']:.1f} points" in told.text
    assert f"(95 % interval +{low:.1f} to +{high:.1f}," in told.text
    assert "forgetting is the fall" not in told.text
