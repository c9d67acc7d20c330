"""Sentences of the advice: names of arms, numbers and their values."""

import re

import pytest
from advice import advise
from synthetic_study import Truth, synthetic_study, with_specs

from rankscope.advise.arms import summarize_arms
from rankscope.advise.messages import arm_name, capitalized
from rankscope.advise.recommend import recommend
from rankscope.records import AdviceMessage, StudyRecords, TaskAdvice, TrustCheck


def test_arms_that_differ_in_a_mitigation_alone_have_different_names() -> None:
    study = synthetic_study(Truth(ranks=(8,)))
    held = {"replay": "general", "replay_share": 0.3, "kl_to_base": 1.0}
    names = [
        [arm_name(arm.summary) for arm in arms]
        for found in (study, with_specs(study, lambda spec: held))
        for arms in summarize_arms(found).values()
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
    (advice_message,) = [r for r in advice.reasons if r.kind == "forgetting"]
    found = advice_message.values
    low, high = (-100 * found[f"forgetting_{end}"] for end in ("high", "low"))
    assert 0 < low < -100 * found["forgetting"] < high
    assert f"changes by +{-100 * found['forgetting']:.1f} points" in advice_message.text
    assert f"(95 % interval +{low:.1f} to +{high:.1f}," in advice_message.text


def unexplained(
    study: StudyRecords, advice: TaskAdvice, advice_message: AdviceMessage | TrustCheck
) -> list[str]:
    """Numbers of a sentence that none of its values rounds to, as they are or in percent.

    Names of arms and trials, formulas and the level of intervals are no results.
    """
    names = [arm_name(arm) for arm in advice.arms]
    names += list(map(capitalized, names))
    names += [f"{t.spec.arm_label} seed={t.spec.seed}" for t in study.trials]
    names += ["13-gram", study.config.objective.formula, "95 % interval", "p < 0.001"]
    text = advice_message.text
    for name in sorted(names, key=len, reverse=True):
        text = text.replace(name, "")
    text = re.sub(r"\(gain x \S+ - forgetting x \S+\)", "", text)
    ranks = {f"r={arm.rank}" for arm in advice.arms}
    text = re.sub(r"r=\d+", lambda m: "" if m[0] in ranks else m[0], text)
    missing = []
    for number in re.findall(r"[+-]?\d[\d,]*(?:\.\d+)?(?:e-\d+)?", text):
        plain = number.rstrip(",").replace(",", "")
        decimals = len(plain.partition(".")[2])
        half = 0.5000001 * 10**-decimals
        sizes = [
            abs(v) * unit for v in advice_message.values.values() for unit in (1, 100, 1e-6, 1e-9)
        ]
        if not any(abs(abs(float(plain)) - size) <= half for size in sizes):
            missing.append(f"{number} in: {advice_message.text}")
    return missing


@pytest.mark.parametrize(
    "truth",
    [
        Truth(),
        Truth(seeds=(0,), accuracy=lambda rank, lr: 0.3),
        Truth(lrs=(1e-3, 5e-4), forgetting=lambda rank, lr: 0.3),
        Truth(num_items=5),
        Truth(num_items=60, base_accuracy=0.5, accuracy=lambda rank, lr: 0.56),
        Truth(base_accuracy=0.6, accuracy=lambda rank, lr: 0.5, contamination=10),
        Truth(base_accuracy=0.98, accuracy=lambda rank, lr: 0.98, transfer=lambda rank, lr: -0.3),
        Truth(base_other=0.25, forgetting=lambda rank, lr: 0.0, failed={(32, 1e-3, 0): "diverged"}),
        Truth(objective={"max_forgetting": 0.02}),
        Truth(objective={"max_forgetting": 0.02}, forgetting=lambda rank, lr: 0.2),
        Truth(metric="log_probability", accuracy=lambda rank, lr: 0.5, num_items=60),
        Truth(
            accuracy=lambda rank, lr: 0.42,
            forgetting=lambda rank, lr: 0.12,
            objective={"max_forgetting": 0.12},
        ),
        Truth(
            ranks=(2, 8, 32, 64, 128),
            forgetting=lambda rank, lr: 0.3 if rank != 2 else 0.0,
            objective={"max_forgetting": 0.1},
            failed={(8, 1e-3, 0): "oom", (8, 1e-3, 1): "oom", (32, 1e-3, 2): "failed"},
        ),
        Truth(
            full_lrs=(),
            failed={(r, 1e-3, seed): "diverged" for r in (2, 8) for seed in (0, 1, 2)},
        ),
    ],
)
def test_every_number_of_a_sentence_stands_in_its_values(truth: Truth) -> None:
    for seed in range(2):
        study = synthetic_study(truth, seed)
        for advice in recommend(study).advice:
            for advice_message in (*advice.reasons, *advice.checks, *advice.next_steps):
                assert not unexplained(study, advice, advice_message)


def test_numbers_that_only_words_once_held_have_names() -> None:
    (advice,) = recommend(synthetic_study(Truth(lrs=(1e-3, 5e-4)))).advice
    said = (*advice.reasons, *advice.checks)
    values = {name: value for sentence in said for name, value in sentence.values.items()}
    named = {name: values[name] for name in ("model_parameters", "rates_tried")}
    assert named == {"model_parameters": 54016, "rates_tried": 2}


def test_own_text_is_worded_in_nats() -> None:
    advice = advise(
        Truth(
            metric="log_probability",
            num_items=60,
            base_accuracy=0.0,
            base_other=0.0,
            accuracy=lambda rank, lr: 0.5,
            forgetting=lambda rank, lr: 0.0,
        )
    )
    assert advice.decision == "use"
    everything = advice.explanation + "".join(r.text for r in advice.reasons)
    assert "nats per token" in everything
    assert "points" not in everything
    assert "%" not in everything.replace("95 % interval", "").replace("% of the model", "")
