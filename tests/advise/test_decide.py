"""Decisions on studies whose truth is known."""

from dataclasses import replace

import numpy as np
import pytest
from advice import advice_on, advise, texts
from synthetic_study import Truth, synthetic_study, with_scores

from rankscope.advise.checks import undecidable_notes
from rankscope.advise.messages import arm_name
from rankscope.advise.recommend import recommend
from rankscope.formatting import POINTS, evidence
from rankscope.records import BASE, EvalKey


@pytest.mark.parametrize("seed", range(2))
def test_a_base_better_than_every_arm_is_kept(seed: int) -> None:
    advice = advise(Truth(base_accuracy=0.6, accuracy=lambda rank, lr: 0.5), seed)
    assert (advice.decision, advice.confidence) == ("do_not_fine_tune", "firm")
    assert advice.chosen is None
    assert "worse than the base" in texts(advice, "diagnostic")


def test_full_fine_tuning_is_recommended_only_where_lora_is_clearly_worse() -> None:
    worse = advise(Truth(accuracy=lambda rank, lr: 0.9 if rank is None else 0.5))
    assert worse.decision == "use_full"
    assert worse.chosen.rank is None
    alike = advise(Truth(accuracy=lambda rank, lr: 0.9, forgetting=lambda rank, lr: 0.0))
    assert alike.decision == "use"
    assert "full fine-tuning" in texts(alike, "full")
    lora_failed = advise(
        Truth(failed={(r, 1e-3, s): "diverged" for r in (2, 8, 32) for s in (0, 1, 2)})
    )
    assert lora_failed.decision == "use_full"


def test_more_forgotten_than_gained_is_not_worth_it() -> None:
    advice = advise(Truth(forgetting=lambda rank, lr: 0.75))
    assert (advice.decision, advice.confidence) == ("do_not_fine_tune", "firm")
    assert "no arm is worth it" in advice.explanation


def test_a_rise_in_retention_is_not_called_forgetting() -> None:
    improved = advise(
        Truth(
            accuracy=lambda rank, lr: 0.9 if rank is None else 0.5,
            forgetting=lambda rank, lr: -0.08,
        )
    )
    assert improved.decision == "use_full"
    lora = next(a for a in improved.arms if a.rank == 2)
    assert lora.forgetting.value < -0.05
    assert "retention changes by +" in improved.explanation.partition("the best LoRA arm")[2]
    everything = improved.explanation + "".join(r.text for r in improved.reasons)
    assert "forgets" not in everything
    unmeasured = advise(Truth(accuracy=lambda rank, lr: 0.9 if rank is None else 0.5, retention=()))
    assert unmeasured.decision == "use_full"
    assert "retention" not in unmeasured.explanation.partition("the best LoRA arm")[2]


def test_a_negative_verdict_speaks_of_the_arms_that_were_tested() -> None:
    """Arms that gain a point of 4000 items: some p is small, and some arm was never tested."""
    truth = Truth(
        ranks=(2, 4, 8, 16, 32, 64),
        accuracy=lambda rank, lr: 0.612,
        forgetting=lambda rank, lr: 0.0,
        base_accuracy=0.6,
        num_items=1500,
        seed_spread=0.006,
        agreement=0.95,
    )
    found = [a for seed in range(12) if (a := advise(truth, seed)).decision == "do_not_fine_tune"]
    named_largest = two = 0
    for advice in found:
        assert "no arm is shown" not in advice.explanation
        assert "chosen on the validation split" in advice.explanation
        assert "not shown to beat the base" in advice.explanation
        assert "interval" not in advice.explanation
        named_largest += "not chosen on the validation split, scores the most of 7 arms" in texts(
            advice, "gain"
        )
        tried = [a for a in advice.arms if arm_name(a) in advice.explanation]
        for arm in tried:
            assert any(
                r.values["gain"] == arm.gain.value and evidence(arm.gain, POINTS) in r.text
                for r in advice.reasons
                if r.kind == "gain"
            )
        two += len(tried) == 2
    assert named_largest > 0
    assert two > 0


def test_no_arm_scores_the_most_if_all_score_the_same() -> None:
    """No arm answers anything right, and the chosen one forgets least."""
    same = Truth(
        accuracy=lambda rank, lr: 0.0,
        base_accuracy=0.0,
        seed_spread=0.0,
        forgetting=lambda rank, lr: 0.0 if rank == 8 else 0.3,
    )
    advice = advise(same)
    assert "r=8" in advice.explanation
    assert "scores the most" not in texts(advice, "gain")


def test_equal_changes_in_nats_are_not_called_too_little_data() -> None:
    study = synthetic_study(Truth(metric="log_probability", num_items=60, retention=()))
    level = with_scores(study, lambda key, scores: scores * 0 - 1.0 - 0.5 * (key[0] == BASE))
    advice = advice_on(level)
    assert advice.decision == "not_decided"
    assert "Too little" not in advice.explanation
    assert "all 60 test items changed by the same +0.500 nats" in advice.explanation


def test_one_seed_is_tentative_and_says_so() -> None:
    advice = advise(Truth(seeds=(0,)))
    assert (advice.decision, advice.confidence) == ("use", "tentative")
    assert "1 seed: Fewer than 3" in texts(advice, "caveat")


def test_full_fine_tuning_hands_over_to_lora_only_where_lora_is_worth_it() -> None:
    """LoRA forgets about what it gains: now and then its utility on the validation split is < 0."""
    truth = Truth(
        ranks=(8,),
        accuracy=lambda rank, lr: 0.45,
        forgetting=lambda rank, lr: 0.13 if rank is None else 0.17,
        num_items=150,
        seed_spread=0.03,
    )
    below = 0
    for seed in range(25):
        study = synthetic_study(truth, seed)
        advice = recommend(study).advice[0]
        base = float(study.items[BASE, "med", "validation"].scores.mean())
        lora = next(a for a in advice.arms if a.rank is not None)
        utility = (lora.validation_score or 0) - base - (lora.validation_forgetting or 0)
        below += utility <= 0 and advice.decision == "use_full"
        if utility <= 0:
            assert advice.decision != "use", seed
    assert below > 0


def with_one_more_right(scores: np.ndarray) -> np.ndarray:
    changed = scores.copy()
    changed[np.argmin(changed)] = 1.0
    return changed


def test_the_hand_over_takes_the_smallest_rank_within_the_margin() -> None:
    """Full fine-tuning leads on the validation split by luck; ranks 4 and 32 are alike."""
    study = synthetic_study(
        Truth(
            ranks=(4, 32),
            accuracy=lambda rank, lr: 0.8,
            retention=(),
            num_items=600,
            seed_spread=0.0,
            agreement=0.99,
        )
    )

    def lead(key: EvalKey, scores: np.ndarray) -> np.ndarray:
        if key[1:] != ("med", "validation"):
            return scores
        if "-32-" in key[0]:
            # One item of 600 better than rank 4: within the margin of .02.
            return with_one_more_right(study.items[key[0].replace("-32-", "-4-"), *key[1:]].scores)
        return np.ones_like(scores) if "-full-" in key[0] else scores

    advice = advice_on(with_scores(study, lead))
    assert advice.decision == "use"
    assert "Full fine-tuning led" in advice.explanation
    assert "the test split does not show that it is better" in advice.explanation
    assert (advice.chosen or pytest.fail("no arm")).rank == 4


def test_forgetting_nothing_at_all_is_a_known_bound() -> None:
    """Retention of full fine-tuning is equal to the base's; LoRA forgets much for the same gain."""
    alike = Truth(
        ranks=(8,),
        accuracy=lambda rank, lr: 0.9,
        forgetting=lambda rank, lr: 0.0 if rank is None else 0.3,
        seed_spread=0.0,
    )
    study = synthetic_study(alike)
    base = {s: study.items[BASE, "general", s].scores for s in ("validation", "test")}

    def kept(key: EvalKey, scores: np.ndarray) -> np.ndarray:
        # One right answer is added: the interval of forgetting ends near 0.
        alike = key[1] == "general" and "-full-" in key[0]
        return with_one_more_right(base[key[2]]) if alike else scores

    advice = advice_on(with_scores(study, kept))
    full = next(a for a in advice.arms if a.rank is None)
    assert full.forgetting.high == pytest.approx(0, abs=0.001)
    assert advice.decision == "use_full"
    assert (
        "retention changes by \N{MINUS SIGN}"
        in advice.explanation.partition("the best LoRA arm")[2]
    )


def test_an_unknown_upper_end_is_called_unknown() -> None:
    """Rank 2 changes no item, so its interval is unknown; rank 8 loses a little."""
    study = synthetic_study(
        Truth(ranks=(2, 8), full_lrs=(), metric="log_probability", seed_spread=0.0, retention=())
    )
    noise = np.random.default_rng(0).normal(-0.001, 0.01, 400)

    def near_the_base(key: EvalKey, scores: np.ndarray) -> np.ndarray:
        scores = study.items[BASE, *key[1:]].scores
        if "-8-" in key[0]:
            return scores + noise + (0.01 if key[2] == "validation" else 0.0)
        return scores - (0.05 if "-2-" in key[0] and key[2] == "validation" else 0.0)

    advice = advice_on(with_scores(study, near_the_base))
    assert advice.decision == "do_not_fine_tune"
    assert "r=8" in advice.explanation
    assert "how large a gain is possible is unknown" in advice.explanation
    assert "1.000" not in advice.explanation


@pytest.mark.parametrize(
    ("forgets", "limit", "headline"),
    [(0.3, 0.1, "forgets more than the 10.0 points allowed"), (0.0, 0.5, "are ruled out for")],
)
def test_an_arm_that_never_finished_is_not_firmly_ruled_out(
    forgets: float, limit: float, headline: str
) -> None:
    def truth(failed: bool) -> Truth:
        return Truth(
            ranks=(2, 8),
            full_lrs=(),
            num_items=3000,
            seed_spread=0.0,
            base_accuracy=0.3,
            accuracy=lambda rank, lr: 0.3,
            forgetting=lambda rank, lr: forgets,
            failed={(2, 1e-3, seed): "diverged" for seed in (0, 1, 2)} if failed else {},
            objective={"max_forgetting": limit, "margin": 0.05},
        )

    for failed, confidence in ((False, "firm"), (True, "tentative")):
        advice = advice_on(synthetic_study(truth(failed)))
        assert (advice.decision, advice.confidence) == ("do_not_fine_tune", confidence)
        assert headline in advice.explanation


def test_a_rank_passed_over_for_a_failed_seed_leaves_full_fine_tuning_tentative() -> None:
    def truth(failed: bool) -> Truth:
        return Truth(
            ranks=(8, 32),
            accuracy=lambda rank, lr: 0.7 if rank == 8 else 0.8,
            forgetting=lambda rank, lr: 0.0,
            failed={(32, 1e-3, 0): "diverged"} if failed else {},
        )

    advice = advice_on(synthetic_study(truth(failed=True)))
    assert (advice.decision, advice.confidence) == ("use_full", "tentative")
    assert "Without its failed trials LoRA r=32" in texts(advice, "caveat")
    whole = advice_on(synthetic_study(truth(failed=False)))
    assert whole.decision == "use"
    assert "failed trials" not in texts(whole, "caveat")
    # The only LoRA arm is not passed over for itself.
    alone = advice_on(synthetic_study(replace(truth(failed=True), ranks=(32,))))
    assert "Without its failed trials" not in texts(alone, "caveat")


def test_cost_counts_against_a_gain_only_if_forgetting_has_a_weight() -> None:
    """Full fine-tuning gains 10 points, forgets nothing and costs 20; LoRA falls by 15."""
    truth = Truth(
        ranks=(8,),
        base_accuracy=0.3,
        accuracy=lambda rank, lr: 0.15 if rank == 8 else 0.4,
        forgetting=lambda rank, lr: 0.0,
    )
    for retention, decision in ((1.0, "do_not_fine_tune"), (0.0, "use_full")):
        weights = {"cost": 0.2, "retention": retention}
        advice = advise(replace(truth, objective=weights))
        assert advice.decision == decision
        assert ("no arm is worth it" in advice.explanation) == (retention > 0)


def test_test_items_that_allow_no_answer_are_noted_before_training() -> None:
    """5 never do, 6 to 19 not with fewer than three seeds; as ``decide`` judges afterwards."""
    few = {"a": 5, "b": 6, "c": 19, "d": 20}
    assert undecidable_notes(few, 3) == [
        "a: 5 test items and 3 seeds cannot show which arm is best; no test can decide with fewer "
        "than 6"
    ]
    noted = [note.partition(":")[0] for note in undecidable_notes(few, 2)]
    assert noted == ["a", "b", "c"]
    for items, seeds in ((19, 2), (19, 3), (20, 2)):
        truth = Truth(seeds=tuple(range(seeds)), num_items=items)
        (advice,) = recommend(synthetic_study(truth)).advice
        assert ("are too few" in advice.verdict) == bool(undecidable_notes({"a": items}, seeds))


def test_a_trial_that_has_yet_to_run_keeps_the_advice_from_being_firm() -> None:
    study = synthetic_study(Truth())
    *others, last = study.trials
    assert advice_on(study).better_than_base.confidence == "firm"
    waits = replace(study, trials=(*others, replace(last, status="planned", train=None)))
    claim = advice_on(waits).better_than_base
    assert claim.confidence == "tentative"
    assert "not every trial has run" in claim.text
