"""The decision on studies whose truth is known, and on studies that lack almost everything."""

import dataclasses
import json
import re
from collections.abc import Callable

import numpy as np
import pytest
from synthetic_study import Truth, synthetic_study

from rankscope.advise.arms import summarize_arms
from rankscope.advise.messages import arm_name
from rankscope.advise.recommend import recommend
from rankscope.advise.select import ArmChoice, choose
from rankscope.advise.statistics.estimates import paired_estimate
from rankscope.advise.statistics.power import detectable, minimum_detectable_effect
from rankscope.formatting import POINTS, evidence
from rankscope.records import BASE, AdviceMessage, Recommendation, StudyRecords, TaskAdvice


def advise(truth: Truth, seed: int = 0) -> TaskAdvice:
    (advice,) = recommend(synthetic_study(truth, seed)).advice
    return advice


def texts(advice: TaskAdvice, kind: str) -> str:
    return "\n".join(r.text for r in advice.reasons if r.kind == kind)


def first(advice: TaskAdvice, kind: str) -> AdviceMessage:
    return next(r for r in advice.reasons if r.kind == kind)


def step_at_16(rank: int | None, lr: float) -> float:
    return 0.9 if rank is None or rank >= 16 else 0.6


STEP = Truth(ranks=(4, 8, 16, 32), accuracy=step_at_16, forgetting=lambda rank, lr: 0.03)


@pytest.mark.parametrize("seed", range(8))
def test_a_step_at_16_is_found(seed: int) -> None:
    advice = advise(STEP, seed)
    assert (advice.decision, advice.confidence) == ("use", "firm")
    assert advice.chosen is not None
    # 32 is as good as 16; noise on the validation split may put 16 beyond the margin.
    assert advice.chosen.rank in (16, 32)


def test_the_smallest_rank_within_the_margin_is_chosen_most_of_the_time() -> None:
    chosen = [advise(STEP, seed).chosen for seed in range(12)]
    assert sum(c is not None and c.rank == 16 for c in chosen) >= 9


def test_where_the_rank_does_not_matter_the_smallest_is_chosen_most_of_the_time() -> None:
    flat = Truth(
        ranks=(4, 8, 16, 32),
        accuracy=lambda rank, lr: 0.7,
        forgetting=lambda rank, lr: 0.0,
        num_items=3000,
        seed_spread=0.003,
    )
    found = [advise(flat, seed) for seed in range(6)]
    assert all(a.decision == "use" for a in found)
    # Noise in the best of five utilities passes the margin of .02 now and then.
    assert sum(a.chosen is not None and a.chosen.rank == 4 for a in found) >= 4
    assert "rank hardly matters" in texts(found[0], "diagnostic")
    assert "smallest rank tried" in texts(found[0], "caveat")


@pytest.mark.parametrize("seed", range(4))
def test_a_base_better_than_every_arm_is_kept(seed: int) -> None:
    advice = advise(Truth(base_accuracy=0.6, accuracy=lambda rank, lr: 0.5), seed)
    assert (advice.decision, advice.confidence) == ("do_not_fine_tune", "firm")
    assert advice.chosen is None
    assert "worse than the base" in texts(advice, "diagnostic")


def test_no_gain_is_rarely_called_one() -> None:
    nothing = Truth(base_accuracy=0.6, accuracy=lambda rank, lr: 0.6, num_items=200)
    decisions = [advise(nothing, seed).decision for seed in range(20)]
    # The test errs one time in twenty; two arms may be tried.
    assert sum(d in ("use", "use_full") for d in decisions) <= 3
    assert "do_not_fine_tune" in decisions


def test_a_saturated_base_is_named() -> None:
    advice = advise(Truth(base_accuracy=0.98, accuracy=lambda rank, lr: 0.98))
    assert advice.decision == "do_not_fine_tune"
    assert "left to gain" in texts(advice, "diagnostic")


def test_full_fine_tuning_is_recommended_only_where_lora_is_clearly_worse() -> None:
    worse = advise(Truth(accuracy=lambda rank, lr: 0.9 if rank is None else 0.5))
    assert worse.decision == "use_full"
    assert worse.chosen is not None
    assert worse.chosen.rank is None
    alike = advise(Truth(accuracy=lambda rank, lr: 0.9, forgetting=lambda rank, lr: 0.0))
    assert alike.decision == "use"
    assert "full fine-tuning" in texts(alike, "full")
    lora_failed = advise(
        Truth(failed={(r, 1e-3, s): "diverged" for r in (2, 8, 32) for s in (0, 1, 2)})
    )
    assert lora_failed.decision == "use_full"


def test_the_learning_rate_is_chosen_for_each_rank() -> None:
    best = {4: 2e-3, 32: 5e-4}

    def accuracy(rank: int | None, lr: float) -> float:
        return 0.3 if rank is None else (0.9 if rank == 32 else 0.7) - 0.3 * (lr != best[rank])

    advice = advise(Truth(ranks=(4, 32), lrs=(5e-4, 1e-3, 2e-3), accuracy=accuracy, full_lrs=()))
    assert advice.chosen is not None
    assert (advice.chosen.rank, advice.chosen.lr) == (32, 5e-4)
    assert "lowest of the 3 tried" in texts(advice, "caveat")
    assert "one learning rate" not in texts(advice, "caveat")


def test_forgetting_is_traded_by_the_objective() -> None:
    truth = Truth(
        ranks=(2, 32),
        accuracy=lambda rank, lr: 0.9 if rank is None or rank == 32 else 0.7,
        forgetting=lambda rank, lr: 0.6 if rank is None or rank == 32 else 0.0,
    )
    assert (advise(truth).chosen or pytest.fail("no arm")).rank == 2
    careless = dataclasses.replace(truth, objective={"retention": 0.0})
    assert (advise(careless).chosen or pytest.fail("no arm")).rank == 32
    limited = dataclasses.replace(careless, objective={"retention": 0.0, "max_forgetting": 0.1})
    assert (advise(limited).chosen or pytest.fail("no arm")).rank == 2


def test_more_forgotten_than_gained_is_not_worth_it() -> None:
    advice = advise(Truth(forgetting=lambda rank, lr: 0.75))
    assert (advice.decision, advice.confidence) == ("do_not_fine_tune", "firm")
    assert "no arm is worth it" in advice.headline


def test_a_rise_in_retention_is_not_called_forgetting() -> None:
    improved = advise(
        Truth(
            accuracy=lambda rank, lr: 0.9 if rank is None else 0.5,
            forgetting=lambda rank, lr: -0.08,
        )
    )
    assert improved.decision == "use_full"
    lora = next(a for a in improved.arms if a.rank == 2)
    assert lora.forgetting is not None
    assert lora.forgetting.value < -0.05
    assert "retention changes by +" in improved.headline.partition("the best LoRA arm")[2]
    everything = improved.headline + "".join(r.text for r in improved.reasons)
    assert "forgets" not in everything
    unmeasured = advise(Truth(accuracy=lambda rank, lr: 0.9 if rank is None else 0.5, retention=()))
    assert unmeasured.decision == "use_full"
    assert "retention" not in unmeasured.headline.partition("the best LoRA arm")[2]


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
    told = two = 0
    for advice in found:
        assert "no arm is shown" not in advice.headline
        assert "chosen on the validation split" in advice.headline
        assert "not shown to beat the base" in advice.headline
        assert "interval" not in advice.headline
        told += "not chosen on the validation split, scores the most of 7 arms" in texts(
            advice, "gain"
        )
        tried = [a for a in advice.arms if arm_name(a) in advice.headline]
        for arm in tried:
            assert arm.gain is not None
            assert any(
                r.values["gain"] == arm.gain.value and evidence(arm.gain, POINTS) in r.text
                for r in advice.reasons
                if r.kind == "gain"
            )
        two += len(tried) == 2
    assert told > 0
    assert two > 0


def test_equal_changes_in_nats_are_not_called_too_little_data() -> None:
    study = synthetic_study(Truth(metric="log_probability", num_items=60, retention=()))
    level = {
        key: dataclasses.replace(found, scores=found.scores * 0 - 1.0 - 0.5 * (key[0] == BASE))
        for key, found in study.items.items()
    }
    advice = recommend(dataclasses.replace(study, items=level)).advice[0]
    assert advice.decision == "not_decided"
    assert "Too little" not in advice.headline
    assert "all 60 test items changed by the same +0.500 nats" in advice.headline


def test_a_smaller_rank_left_out_for_being_below_the_base_is_not_denied() -> None:
    """r = 2 may come within the margin of r = 8, yet below zero utility it is not as good."""
    truth = Truth(
        ranks=(2, 8),
        full_lrs=(),
        accuracy=lambda rank, lr: 0.605,
        forgetting=lambda rank, lr: 0.0,
        base_accuracy=0.6,
    )
    seen = 0
    for seed in range(40):
        study = synthetic_study(truth, seed)
        advice = recommend(study).advice[0]
        base = study.items[BASE, "med", "validation"].scores.mean()
        small, large = (
            (a.validation_score or 0) - base - (a.validation_forgetting or 0) for a in advice.arms
        )
        if small <= 0 < large and large - small < 0.02:
            seen += 1
            assert "no smaller rank with more utility than the base" in texts(advice, "choice")
    assert seen > 0


def test_where_the_best_rank_is_the_smallest_no_smaller_one_is_spoken_of() -> None:
    falling = Truth(accuracy=lambda rank, lr: 0.9 if rank == 2 else 0.6)
    assert "; no smaller rank was tried." in texts(advise(falling), "choice")
    rising = advise(Truth(accuracy=lambda rank, lr: 0.9 if rank == 32 else 0.6))
    assert "; no smaller rank with more utility than the base comes within" in texts(
        rising, "choice"
    )
    assert "; no LoRA arm was tried." in texts(advise(Truth(ranks=())), "choice")


def test_a_limit_no_arm_keeps_is_said() -> None:
    advice = advise(Truth(forgetting=lambda rank, lr: 0.2, objective={"max_forgetting": 0.02}))
    assert advice.decision == "do_not_fine_tune"
    assert "2.0 points allowed" in advice.headline


def test_cost_breaks_what_scores_do_not() -> None:
    truth = Truth(ranks=(2, 32), accuracy=lambda r, lr: 0.9 if r != 2 else 0.85, retention=())
    assert (advise(truth).chosen or pytest.fail("no arm")).rank == 32
    dear = dataclasses.replace(truth, objective={"cost": 0.2})
    assert (advise(dear).chosen or pytest.fail("no arm")).rank == 2


def test_one_seed_is_tentative_and_says_so() -> None:
    advice = advise(Truth(seeds=(0,)))
    assert (advice.decision, advice.confidence) == ("use", "tentative")
    assert "was trained with 1 seed" in texts(advice, "caveat")


def test_diverging_seeds_count_against_their_arm() -> None:
    """r = 32 is best where it lives, but two of its three seeds diverge."""
    truth = Truth(
        ranks=(8, 32),
        full_lrs=(),
        accuracy=lambda rank, lr: 0.9 if rank == 32 else 0.8,
        failed={(32, 1e-3, 0): "diverged", (32, 1e-3, 1): "diverged"},
    )
    advice = advise(truth)
    assert advice.chosen is not None
    assert advice.chosen.rank == 8
    assert "2 of 6 trials failed" in texts(advice, "caveat")
    assert {a.rank: a.failed for a in advice.arms} == {8: 0, 32: 2}


def test_a_score_of_the_base_that_is_not_finite_is_left_out() -> None:
    study = synthetic_study(
        Truth(base_accuracy=0.98, base_other=0.25, forgetting=lambda rank, lr: 0.0)
    )
    items = dict(study.items)
    for key, found in study.items.items():
        if key[0] == BASE:
            scores = found.scores.copy()
            scores[:3] = np.nan
            items[key] = dataclasses.replace(found, scores=scores)
    (advice,) = recommend(dataclasses.replace(study, items=items)).advice
    kept = items[BASE, "med", "test"].scores[3:].mean()
    saturated = next(r for r in advice.reasons if "left to gain" in r.text)
    assert saturated.values["base"] == kept
    assert "at chance on general" in texts(advice, "caveat")


def test_choosing_does_not_look_at_the_report_split() -> None:
    study = synthetic_study(Truth(num_items=200))
    turned = {
        key: dataclasses.replace(found, scores=found.scores[::-1].copy())
        if key[2] == "test" and key[0] != BASE and "-32-" in key[0]
        else found
        for key, found in study.items.items()
    }
    ruined = {
        key: dataclasses.replace(found, scores=found.scores * 0)
        if key[2] == "test" and key[0] != BASE and "-2-" in key[0]
        else found
        for key, found in study.items.items()
    }

    def chosen(of: StudyRecords) -> ArmChoice:
        (arms,) = summarize_arms(of).values()
        base = float(of.items[BASE, "med", "validation"].scores.mean())
        return choose(arms, base, of.config.objective)

    before = chosen(study)
    for items in (turned, ruined):
        after = chosen(dataclasses.replace(study, items=items))
        assert [(c.arm.summary.label, c.utility) for c in after.candidates] == [
            (c.arm.summary.label, c.utility) for c in before.candidates
        ]
        for name in ("chosen", "best", "best_lora", "best_full"):
            one, other = getattr(before, name), getattr(after, name)
            assert one.arm.summary.label == other.arm.summary.label


def test_signs_and_limits_of_the_data() -> None:
    advice = advise(
        Truth(transfer=lambda rank, lr: -0.3, contamination=10, base_other=0.8, num_items=500)
    )
    assert "Negative transfer: math falls by" in texts(advice, "diagnostic")
    assert "10 exact" in texts(advice, "caveat")
    # 10 of 500 test rows are more than one in a hundred.
    assert advice.confidence == "tentative"
    assert "one learning rate" in texts(advice, "caveat")
    at_chance = advise(Truth(base_other=0.25, forgetting=lambda rank, lr: 0.0))
    assert "at chance on general" in texts(at_chance, "caveat")
    assert "not measured" in texts(advise(Truth(retention=())), "caveat")


def test_leaks_of_different_kinds_are_added_up() -> None:
    study = synthetic_study(Truth(num_items=1000))

    def leaking(exact: int, ngram: int) -> TaskAdvice:
        tasks = tuple(
            t.model_copy(
                update={"contamination": {"exact": exact, "ngram13": ngram}} if t.trained_on else {}
            )
            for t in study.tasks
        )
        return recommend(dataclasses.replace(study, tasks=tasks)).advice[0]

    # One in a hundred of 1000 rows is 10.
    assert leaking(9, 0).confidence == "firm"
    assert leaking(9, 9).confidence == "tentative"


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
    lead = dict(study.items)
    for trial, task, split in study.items:
        if (task, split) != ("med", "validation"):
            continue
        own = study.items[trial, task, split]
        if "-full-" in trial:
            lead[trial, task, split] = dataclasses.replace(own, scores=np.ones_like(own.scores))
        if "-32-" in trial:
            # One item of 600 better than rank 4: within the margin of .02.
            scores = study.items[trial.replace("-32-", "-4-"), task, split].scores
            better = dataclasses.replace(own, scores=with_one_more_right(scores))
            lead[trial, task, split] = better
    advice = recommend(dataclasses.replace(study, items=lead)).advice[0]
    assert advice.decision == "use"
    assert "full fine-tuning led" in advice.headline
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
    items = {
        # One right answer is added: the interval of forgetting ends near 0.
        key: dataclasses.replace(found, scores=with_one_more_right(base[key[2]]))
        if key[1] == "general" and "-full-" in key[0]
        else found
        for key, found in study.items.items()
    }
    (advice,) = recommend(dataclasses.replace(study, items=items)).advice
    full = next(a for a in advice.arms if a.rank is None)
    assert full.forgetting is not None
    assert full.forgetting.high == pytest.approx(0, abs=0.001)
    assert advice.decision == "use_full"
    assert (
        "retention changes by \N{MINUS SIGN}" in advice.headline.partition("the best LoRA arm")[2]
    )


def test_ranks_without_order_are_named() -> None:
    jagged = {2: 0.9, 4: 0.5, 8: 0.9, 16: 0.5, 32: 0.75, 64: 0.7}
    advice = advise(Truth(ranks=tuple(jagged), accuracy=lambda r, lr: jagged[r or 2], retention=()))
    assert "No pattern across ranks" in texts(advice, "diagnostic")


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
    everything = advice.headline + "".join(r.text for r in advice.reasons)
    assert "nats per token" in everything
    assert "points" not in everything
    assert "%" not in everything.replace("95 % interval", "").replace("% of the model", "")


def strip_validation(study: StudyRecords) -> StudyRecords:
    kept = {k: v for k, v in study.items.items() if k[2] == "test"}
    return dataclasses.replace(study, items=kept)


def strip_base(study: StudyRecords) -> StudyRecords:
    kept = {k: v for k, v in study.items.items() if k[0] != BASE}
    return dataclasses.replace(study, items=kept)


def strip_items(study: StudyRecords) -> StudyRecords:
    return dataclasses.replace(study, items={}, evals={})


def all_equal(study: StudyRecords) -> StudyRecords:
    same = {k: dataclasses.replace(v, scores=v.scores * 0 + 1) for k, v in study.items.items()}
    return dataclasses.replace(study, items=same)


def nothing_run(study: StudyRecords) -> StudyRecords:
    waiting = tuple(dataclasses.replace(t, status="planned", train=None) for t in study.trials)
    return strip_items(dataclasses.replace(study, trials=waiting))


def only_base(study: StudyRecords) -> StudyRecords:
    kept = {k: v for k, v in study.items.items() if k[0] == BASE}
    return dataclasses.replace(study, items=kept, trials=())


def no_tasks(study: StudyRecords) -> StudyRecords:
    return dataclasses.replace(study, trials=(), tasks=(), items={}, evals={})


@pytest.mark.parametrize(
    ("change", "decisions"),
    [
        (strip_validation, {"not_decided"}),
        (strip_base, {"not_decided"}),
        (strip_items, {"not_decided"}),
        (all_equal, {"do_not_fine_tune"}),
        (nothing_run, {"not_decided"}),
        (only_base, {"not_decided"}),
        (no_tasks, set()),
    ],
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
    assert all(a.headline and a.confidence == "none" for a in undecided)
    assert Recommendation.model_validate_json(found.model_dump_json()) == found


def test_every_trial_failed() -> None:
    failed = {(r, 1e-3, s): "oom" for r in (2, 8, 32) for s in (0, 1, 2)}
    advice = advise(Truth(failed=failed, full_lrs=()))
    assert advice.decision == "not_decided"
    assert "9 failed" in advice.headline


def test_what_could_be_seen_is_said_of_the_arm_it_is_compared_with() -> None:
    """Full fine-tuning is measured by the best LoRA arm, not by the first of the grid."""
    steep = Truth(accuracy=lambda rank, lr: {None: 0.9, 2: 0.4, 8: 0.5, 32: 0.7}[rank])
    study = synthetic_study(steep)
    advice = recommend(study).advice[0]
    assert advice.decision == "use_full"
    seen = next(r for r in advice.reasons if "detectable" in r.values)
    assert "full fine-tuning (lr 0.0005) and LoRA r=32" in seen.text

    def rows(method: str) -> np.ndarray:
        return np.stack(
            [
                study.items[t.spec.trial_id, "med", "test"].scores
                for t in study.trials
                if f"-{method}-" in t.spec.trial_id
            ]
        )

    gap = paired_estimate(rows("full"), rows("32"))
    assert seen.values["detectable"] == detectable(gap)
    # Not less than what the items alone would let be seen, by the formula of the paired design.
    spread = float(np.var(rows("full").mean(axis=0) - rows("32").mean(axis=0)))
    items_alone = minimum_detectable_effect(400, spread)
    assert items_alone is not None
    assert seen.values["detectable"] >= 0.99 * items_alone


def test_seeds_that_differ_ask_for_seeds_and_not_for_items() -> None:
    """Items cannot make seeds alike."""

    def asked(spread: float) -> list[str]:
        truth = Truth(
            num_items=100,
            base_accuracy=0.5,
            accuracy=lambda r, lr: 0.54,
            seed_spread=spread,
            retention=(),
        )
        found = [advise(truth, seed) for seed in range(8)]
        return [
            " ".join(step.text for step in a.next_steps)
            for a in found
            if a.decision == "not_decided"
        ]

    alike, apart = asked(0.0), asked(0.15)
    assert alike
    assert apart
    # Three seeds that are alike may look as if they were not.
    by_items = [bool(re.search(r"About [\d,]+ test items would show", h)) for h in alike]
    assert np.mean(by_items) > 0.5
    assert all(
        re.search(r"seeds differ too much|seeds would show|seeds together", h) for h in apart
    )
    assert not any(re.search(r"About [\d,]+ test items would show", h) for h in apart)


def test_too_few_items_cannot_tell_and_say_how_many_would() -> None:
    advice = advise(Truth(num_items=40, base_accuracy=0.5, accuracy=lambda r, lr: 0.56), seed=1)
    assert advice.decision == "not_decided"
    assert any("test items would show" in step.text for step in advice.next_steps)


def test_a_recommendation_is_a_pure_function_and_json() -> None:
    study = synthetic_study(Truth(num_items=80, tasks=("med", "law")))
    one = recommend(study)
    assert one == recommend(study)
    assert [a.task for a in one.advice] == ["med", "law"]
    body = json.loads(one.model_dump_json())
    assert all(r["text"].endswith(".") for a in body["advice"] for r in a["reasons"])
    assert any(arm["on_pareto_front"] for arm in body["advice"][0]["arms"])
