"""Studies that lack almost everything: a wide answer or none, never an exception."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from advice import advice_on
from hypothesis import given, settings, strategies as st
from synthetic_study import (
    Truth,
    synthetic_study,
    with_objective,
    with_scores,
    with_specs,
)

from rankscope.advise.recommend import recommend
from rankscope.records import BASE, EvalKey, Recommendation, StudyRecords

SMALL = Truth(num_items=30)
NATS = replace(SMALL, metric="log_probability")
ONE = replace(SMALL, ranks=(8,), full_lrs=())
RATES = replace(SMALL, lrs=(1e-4, 1e-3, 1e-2), full_lrs=(), seeds=(0,))
LOST = {(8, 1e-3, 0): "diverged", (8, 1e-3, 1): "oom"}
NONE_DONE = {(r, 1e-3, s): "failed" for r in (2, 8, 32) for s in (0, 1, 2)}
NOTHING = {"in_domain": 0.0, "retention": 0.0, "cost": 1.0}


def of(truth: Truth = SMALL, **changes: object) -> StudyRecords:
    return synthetic_study(replace(truth, **changes))


def kept(keep: Callable[[EvalKey], bool]) -> StudyRecords:
    """The item scores of some evaluations alone."""
    return replace(of(), items={k: v for k, v in of().items.items() if keep(k)})


def scored(
    change: Callable[[EvalKey, np.ndarray], np.ndarray], truth: Truth = SMALL
) -> StudyRecords:
    return with_scores(of(truth), change)


def waiting() -> StudyRecords:
    trials = tuple(replace(t, status="planned", train=None) for t in of().trials)
    return replace(of(), trials=trials, items={}, evals={})


UNDECIDED: dict[str, Callable[[], StudyRecords]] = {
    "no base": lambda: kept(lambda key: key[0] != BASE),
    "no items": lambda: kept(lambda key: False),
    "no trial ran": waiting,
    "no trials": lambda: replace(of(), trials=()),
    "all failed": lambda: of(failed=NONE_DONE, full_lrs=()),
    "nothing finite": lambda: scored(lambda key, s: s * np.nan),
    "base not finite": lambda: scored(lambda key, s: s * np.nan if key[0] == BASE else s),
    "nothing counts": lambda: with_objective(of(), **NOTHING),
    "no retention score": lambda: kept(lambda key: key[0] == BASE or key[1] != "general"),
    "no arm with both scores": lambda: kept(
        lambda key: key[0] == BASE or ("-8-" in key[0]) == (key[1] == "general")
    ),
}


@pytest.mark.parametrize("name", UNDECIDED)
def test_where_nothing_counts_nothing_is_decided(name: str) -> None:
    study = UNDECIDED[name]()
    found = recommend(study)
    (advice,) = found.advice
    assert (advice.decision, advice.confidence, advice.chosen) == ("not_decided", "none", None)
    assert advice.verdict == "Not decided yet."
    assert (advice.p_within_margin, advice.ranks_that_may_do) == (None, ())
    assert Recommendation.model_validate_json(found.model_dump_json()) == found
    assert recommend(replace(study, tasks=(), trials=())).advice == ()


WIDE: dict[str, tuple[float, Callable[[], StudyRecords]]] = {
    "one arm": (0.1, lambda: of(ONE)),
    "one seed": (0.2, lambda: of(ONE, seeds=(0,))),
    "one item": (0.5, lambda: of(num_items=1)),
    "one item of one model": (2.0, lambda: of(ONE, num_items=1, seeds=(0,))),
    "three items": (0.4, lambda: of(num_items=3)),
    "no validation split": (0.15, lambda: kept(lambda key: key[2] == "test")),
    "no test split": (0.15, lambda: kept(lambda key: key[2] != "test")),
    "all right": (0.02, lambda: scored(lambda key, s: s * 0 + 1)),
    "all changed": (0.02, lambda: scored(lambda key, s: s * 0 + (key[0] != BASE))),
    "all fell alike": (0.0, lambda: scored(lambda k, s: -1.0 - (k[0] == BASE) + 0 * s, NATS)),
    "some not finite": (
        0.1,
        lambda: scored(lambda key, s: np.where(np.arange(30) % 5 == len(key[0]) % 5, np.nan, s)),
    ),
    "minus infinity": (
        0.05,
        lambda: scored(lambda key, s: np.where(np.arange(30) == len(key[0]), -np.inf, s), NATS),
    ),
    "failed seeds": (0.05, lambda: of(failed=LOST)),
    "a rate of zero": (0.05, lambda: with_specs(of(), lambda s: {"lr": 0.0})),
    "a rate of zero beside others": (
        0.05,
        lambda: with_specs(of(RATES), lambda s: {"lr": s.lr * (s.lr > 1e-4)}),
    ),
    "retention alone": (0.02, lambda: with_objective(of(), in_domain=0.0)),
    "tiny nats": (0.004, lambda: scored(lambda key, s: 1e-9 * s, NATS)),
    "huge nats": (0.05, lambda: scored(lambda key, s: 1e6 * s, NATS)),
    "an arm of huge nats": (0.05, lambda: scored(lambda k, s: s * 1e3 ** ("-8-" in k[0]), NATS)),
    "a margin near zero": (0.05, lambda: with_objective(of(), margin=1e-7)),
}


@pytest.mark.parametrize("name", WIDE)
def test_little_evidence_makes_wide_intervals(name: str) -> None:
    """Of every arm the 95 % interval is at least so wide, in shares of 1."""
    width, make = WIDE[name]
    found = recommend(make())
    (advice,) = found.advice
    assert advice.p_within_margin is not None
    nets = [arm.expected.net for arm in advice.arms]
    assert all(of.high - of.low > width and of.low < of.value < of.high for of in nets)
    assert not any(check.name == "fit" for check in advice.checks)


def test_a_fit_that_fails_leaves_every_arm_by_itself_and_says_so() -> None:
    """An arm that gains 10^9 nats by every item, beside others of one."""
    advice = advice_on(scored(lambda key, s: s + 1e9 * ("-8-" in key[0]), NATS))
    (check,) = (c for c in advice.checks if c.name == "fit")
    assert (check.status, check.value) == ("bad", "flat prior")
    assert check.text.startswith("The posterior could not be computed (")
    assert (advice.decision, advice.subject_label) == ("not_decided", "r=8 lr=0.001")
    assert all(arm.expected.net.high > arm.expected.net.low for arm in advice.arms)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    st.sampled_from([SMALL, NATS]),
    st.integers(1, 6),
    st.integers(1, 3),
    st.floats(0, 1),
    st.sampled_from(["score", "gold", "both"]),
    st.sampled_from([{}, {"retention": 0.0}, {"max_forgetting": 0.0}, {"cost": 1.0}]),
    st.randoms(use_true_random=False),
)
def test_no_hole_in_the_records_raises(
    truth: Truth, items: int, seeds: int, share: float, lost: str, objective: dict, random
) -> None:
    """Any evaluation may be missing or not finite, any trial may have failed."""
    study = of(truth, num_items=items, seeds=tuple(range(seeds)), objective=objective)

    def holes(values: np.ndarray) -> np.ndarray:
        return np.array([random.choice([np.nan, -np.inf, v]) for v in values.tolist()])

    found = {}
    for key, scores in study.items.items():
        if random.random() < share:
            continue
        changes = {"scores": holes(scores.scores)} if lost != "gold" else {}
        if lost != "score":
            changes["gold_logprobs"] = holes(scores.gold_logprobs)
        found[key] = replace(scores, **changes)
    statuses = ["done", "done", "failed", "oom", "diverged", "planned"]
    trials = tuple(replace(t, status=random.choice(statuses)) for t in study.trials)
    result = recommend(replace(study, items=found, trials=trials))
    assert Recommendation.model_validate_json(result.model_dump_json()) == result
