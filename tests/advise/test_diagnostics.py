"""Failure patterns, each with the next step to try."""

import dataclasses

import numpy as np
import pytest
from advice import advice_on, advise, texts
from synthetic_study import Truth, synthetic_study, with_specs, with_tasks, with_trials

from rankscope.advise.recommend import recommend
from rankscope.records import BASE, AdviceMessage, StudyRecords, TaskAdvice


def diagnostics(study: StudyRecords) -> list[AdviceMessage]:
    (advice,) = recommend(study).advice
    return [r for r in advice.reasons if r.kind == "diagnostic"]


def diagnostic(study: StudyRecords, words: str) -> AdviceMessage:
    found = [r for r in diagnostics(study) if words in r.text]
    assert len(found) == 1, [r.text for r in diagnostics(study)]
    return found[0]


def test_small_ranks_that_underfit_are_named_with_the_rank_to_try() -> None:
    rising = Truth(accuracy=lambda rank, lr: {None: 0.9, 2: 0.5, 8: 0.7, 32: 0.9}[rank])
    found = diagnostic(synthetic_study(rising), "Small ranks underfit")
    assert found.values["still_rising"] == 1
    assert "add r=64" in found.text
    leveling = Truth(accuracy=lambda rank, lr: 0.6 if rank == 2 else 0.9)
    found = diagnostic(synthetic_study(leveling), "Small ranks underfit")
    assert found.values["still_rising"] == 0
    assert "ranks above r=2" in found.text
    flat = diagnostics(synthetic_study(Truth(ranks=(4, 8, 16, 32), accuracy=lambda rank, lr: 0.8)))
    assert not any("underfit" in r.text for r in flat)
    assert any("rank hardly matters" in r.text for r in flat)


@pytest.mark.parametrize(
    ("largest", "advice"), [(31, "Next: add r=62"), (33, "Next: add r=64"), (64, "target modules")]
)
def test_no_rank_beyond_the_hidden_size_is_suggested(largest: int, advice: str) -> None:
    """The base's matrices are 64 x 64, so no update has a higher rank than 64."""
    scores = {None: 0.3, 2: 0.4, 8: 0.6, largest: 0.9}
    truth = Truth(ranks=(2, 8, largest), accuracy=lambda rank, lr: scores[rank])
    study = synthetic_study(truth)
    assert advice in diagnostic(study, "Small ranks underfit").text
    caveats = texts(recommend(study).advice[0], "caveat")
    assert ("a larger one may gain more" in caveats) == (largest < 64)
    assert ("larger ones add no directions" in caveats) == (largest == 64)
    small = diagnostic(with_tokens(study, 10**6), "The adapter is small for the data")
    assert ("Next: more target modules." in small.text) == (largest == 64)


def with_targets(study: StudyRecords, ranks: tuple[int, ...]) -> StudyRecords:
    """The study with adapters of these ranks on the query matrices alone."""
    return with_specs(study, lambda s: {"targets": ("q_proj",)} if s.rank in ranks else {})


def test_a_series_of_ranks_is_of_one_method_and_one_set_of_targets() -> None:
    """Attention levels off from r = 8; the query matrices alone still rise from 28 to 40."""
    of_rank = {None: 0.8, 2: 0.4, 8: 0.8, 32: 0.8, 28: 0.5, 40: 0.75}
    study = synthetic_study(Truth(ranks=(2, 8, 32, 28, 40), accuracy=lambda r, lr: of_rank[r]))
    mixed = with_targets(study, (28, 40))
    found = diagnostic(mixed, "Small ranks underfit")
    assert found.values["rank"] == 32
    assert found.values["still_rising"] == 0
    # Without order over all five, but each series rises: nothing is said of order.
    assert not [r for r in diagnostics(mixed) if "No pattern" in r.text or "score falls" in r.text]


def test_order_is_not_read_across_series() -> None:
    """Each series is flat or rises; only together do they fall with the rank."""
    of_rank = {None: 0.8, 2: 0.85, 4: 0.86, 8: 0.87, 9: 0.5, 12: 0.51, 14: 0.52}
    study = synthetic_study(
        Truth(ranks=(2, 4, 8, 9, 12, 14), accuracy=lambda r, lr: of_rank[r], seed_spread=0.0)
    )
    assert [r for r in diagnostics(study) if "falls with the rank" in r.text]
    mixed = with_targets(study, (9, 12, 14))
    assert not [r for r in diagnostics(mixed) if "falls with the rank" in r.text]


def test_forgetting_that_eats_the_gain_is_named() -> None:
    dear = Truth(
        accuracy=lambda rank, lr: 0.5,
        forgetting=lambda rank, lr: 0.15,
        base_accuracy=0.3,
    )
    found = diagnostic(synthetic_study(dear), "Over-forgetting")
    assert found.values["forgetting"] > 0.5 * found.values["gain"]
    assert "scale the update down at inference" in found.text
    cheap = Truth(accuracy=lambda rank, lr: 0.9, forgetting=lambda rank, lr: 0.01)
    assert not any("Over-forgetting" in r.text for r in diagnostics(synthetic_study(cheap)))


def with_tokens(study: StudyRecords, tokens: int, rows: int = 200) -> StudyRecords:
    update = {"num_label_tokens": tokens, "rows": rows}
    return with_trials(
        study, lambda t: dataclasses.replace(t, train=t.train and t.train.model_copy(update=update))
    )


def test_the_capacity_rule_counts_every_token_once() -> None:
    study = synthetic_study(Truth(ranks=(8,), full_lrs=()))
    # 8 * 2 layers * 4 modules * 2 * 64 = 8,192 parameters; 40 steps of 2 x 4 rows are 1.6 passes
    # over 200 rows, so 64 labeled tokens in training are 40 of the data.
    found = diagnostic(with_tokens(study, 64), "The adapter is large for the data")
    assert found.values["parameters"] == 8192
    assert found.values["tokens"] == pytest.approx(40)
    assert found.values["ratio"] == pytest.approx(204.8)
    # At most 100 parameters a token: 8 / 2.048 = 3.9, a power of two below.
    assert "r=2 by the capacity rule" in found.text
    assert found.values["smaller_rank"] == 2
    found = diagnostic(with_tokens(study, 32_000), "The adapter is small for the data")
    assert found.values["ratio"] == pytest.approx(0.4096)
    assert "Next: a larger rank, or more target modules" in found.text
    # Epochs of ceil(200 / 8) = 25 steps; with 199 rows the last one has a row less, and is a step.
    fewer = with_tokens(study, 64, rows=199)
    assert diagnostic(fewer, "large for the data").values["tokens"] == pytest.approx(40)
    # Two rows are seen whole in each of 40 steps: 320 labeled tokens in training are 8 of the data.
    found = diagnostic(with_tokens(study, 320, rows=2), "large for the data")
    assert found.values["tokens"] == pytest.approx(8)
    between = with_tokens(study, 3_200)
    assert not any("for the data" in r.text for r in diagnostics(between))


@pytest.mark.parametrize(
    ("best", "tokens", "is_named"),
    [(32, 3_200, True), (32, 64, False), (2, 3_200, True), (2, 32_000, False)],
)
def test_the_end_of_the_ranks_does_not_contradict_the_capacity_rule(
    best: int, tokens: int, is_named: bool
) -> None:
    """Parameters per token: r=32 trains 32,768, r=2 2,048; the data has 5/8 of the tokens."""
    truth = Truth(accuracy=lambda rank, lr: 0.9 if rank == best else 0.5, full_lrs=())
    advice = recommend(with_tokens(synthetic_study(truth), tokens)).advice[0]
    end = "largest rank tried" if best == 32 else "smallest rank tried"
    assert (end in texts(advice, "caveat")) == is_named
    assert ("for the data" in texts(advice, "diagnostic")) != is_named


def test_no_rank_below_one_is_suggested() -> None:
    def said(rank: int) -> str:
        truth = Truth(ranks=(rank, 8), accuracy=lambda r, lr: 0.9 if r == rank else 0.5)
        study = with_tokens(synthetic_study(truth), 640)
        return texts(recommend(study).advice[0], "caveat")

    assert "r=2 is the smallest rank tried" in said(2)
    assert "smallest rank tried" not in said(1)


def test_every_diagnostic_suggests_a_next_step() -> None:
    everything = [
        *diagnostics(synthetic_study(Truth(base_accuracy=0.98, accuracy=lambda rank, lr: 0.6))),
        *diagnostics(synthetic_study(Truth(transfer=lambda rank, lr: -0.3))),
        *diagnostics(synthetic_study(Truth(ranks=(2, 4, 8, 16), accuracy=lambda rank, lr: 0.8))),
    ]
    assert len({r.text.split(":")[0] for r in everything}) >= 4
    assert all("Next: " in r.text for r in everything)


def test_negative_transfer_needs_a_tenth_and_a_test() -> None:
    def found(fall: float, items: int) -> TaskAdvice:
        truth = Truth(transfer=lambda rank, lr: -fall, num_items=items, base_other=0.8)
        return recommend(synthetic_study(truth, 3)).advice[0]

    def named(advice: TaskAdvice) -> bool:
        return any("Negative transfer" in r.text for r in advice.reasons)

    assert named(found(0.2, 400))
    assert not named(found(0.04, 4000))  # clear, but a twentieth
    assert not named(found(0.12, 15))  # large, but 15 items do not show it


def test_a_saturated_base_is_named() -> None:
    advice = advise(Truth(base_accuracy=0.98, accuracy=lambda rank, lr: 0.98))
    assert advice.decision == "do_not_fine_tune"
    assert "left to gain" in texts(advice, "diagnostic")


def test_ranks_without_order_are_named() -> None:
    jagged = {2: 0.9, 4: 0.5, 8: 0.9, 16: 0.5, 32: 0.75, 64: 0.7}
    advice = advise(Truth(ranks=tuple(jagged), accuracy=lambda r, lr: jagged[r or 2], retention=()))
    assert "No pattern across ranks" in texts(advice, "diagnostic")


@pytest.mark.parametrize("measure", ["accuracy", "log-probability"])
def test_a_second_seed_that_forgets_more_does_not_take_the_warning_away(measure: str) -> None:
    """Two seeds that lose 19 and 27 points: one degree of freedom, so the interval holds zero."""
    seen = {}
    for seeds in ((0,), (0, 1)):
        study = synthetic_study(Truth(ranks=(8,), full_lrs=(), seeds=seeds, base_other=0.8))
        items = dict(study.items)
        base = items[BASE, "general", "test"]
        right = np.flatnonzero(base.scores)
        for trial, lost in zip(study.trials, (77, 109), strict=False):
            # In nats on every eighth item: 400 items, of which the base answers about 320 right.
            scores = base.scores.copy()
            scores[right[:lost]] = 0.0
            gold = base.gold_logprobs - np.where(scores < base.scores, lost / 40, 0.0)
            found = dataclasses.replace(base, scores=scores, gold_logprobs=gold)
            items[trial.spec.trial_id, "general", "test"] = found
        chance = 0.25 if measure == "accuracy" else 1.0  # else the base is not above chance
        study = with_tasks(dataclasses.replace(study, items=items), general={"chance": chance})
        advice = advice_on(study)
        (arm,) = advice.arms
        forgetting = arm.forgetting if measure == "accuracy" else arm.logprob_forgetting
        assert forgetting.is_above(0) == (len(seeds) == 1)
        (check,) = [c for c in advice.checks if c.name == "retention"]
        seen[len(seeds)] = (texts(advice, "diagnostic"), check, advice.explanation)
    assert "Over-forgetting" in seen[1][0]
    assert "Over-forgetting" in seen[2][0]
    if measure == "accuracy":
        assert "loses 23.2 points" in seen[2][0]
        assert (
            "Each of 2 seeds lost retention, and their mean loss is clear by its items"
            in seen[2][1].text
        )
        assert "23.2 points, a clear loss of the models trained" in seen[2][2]
    else:
        assert seen[1][1].status == seen[2][1].status == "bad"


@pytest.mark.parametrize(
    ("changes", "lacking", "said"),
    [
        ([(8, 0), (66, 46)], (), "Each of 2 seeds lost"),  # the second loses more, less clearly
        ([(30, 0), (0, 1)], (), "a zero change"),  # the mean loss is clear, but not each lost
        ([(8, 0), (66, 46), (9, 0)], ("law",), "Each of 2 seeds lost"),
    ],
)
def test_a_loss_of_the_models_at_hand_is_said_of_those_looked_at(
    changes: list[tuple[int, int]], lacking: tuple[str, ...], said: str
) -> None:
    """Seeds that answer so many of the base's right items wrong and so many wrong ones right; the
    last has no scores on some of the retention tasks."""
    seeds, retention = tuple(range(len(changes))), ("general", *lacking)
    study = synthetic_study(
        Truth(ranks=(8,), full_lrs=(), seeds=seeds, base_other=0.8, retention=retention)
    )
    items = dict(study.items)
    for trial, (lost, gained) in zip(study.trials, changes, strict=True):
        for task in retention:
            base = items[BASE, task, "test"]
            scores = base.scores.copy()
            scores[np.flatnonzero(base.scores)[:lost]] = 0.0
            scores[np.flatnonzero(base.scores == 0)[:gained]] = 1.0
            items[trial.spec.trial_id, task, "test"] = dataclasses.replace(base, scores=scores)
    for task in lacking:
        del items[study.trials[-1].spec.trial_id, task, "test"]
    (advice,) = recommend(dataclasses.replace(study, items=items)).advice
    (check,) = [c for c in advice.checks if c.name == "retention"]
    assert said in check.text
