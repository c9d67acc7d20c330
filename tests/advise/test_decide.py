"""The decision: its rule on draws made by hand, known truths, calibration, and bad input."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from advice import advice_on, advise, arms_by_label, random_study, texts
from synthetic_study import (
    Truth,
    synthetic_study,
    with_objective,
    with_prompt,
    with_scores,
    with_trials,
)

from rankscope.advise.arms import summarize_arms
from rankscope.advise.decide import Answer, decide, no_surer_than
from rankscope.advise.net_gains import NetGains
from rankscope.advise.recommend import recommend
from rankscope.advise.results import TaskResults, _costs, change_of, task_results
from rankscope.records import (
    BASE,
    CheckName,
    CheckStatus,
    ExpectedGain,
    ItemResult,
    Recommendation,
    TaskAdvice,
    TrialRecords,
    TrustCheck,
)

ARMS = ("r=2 lr=0.001", "r=8 lr=0.001", "r=32 lr=0.001", "full lr=0.0005")
FRAME = synthetic_study(Truth(num_items=20))


def by_hand(*columns: float | np.ndarray, **first: object) -> TaskResults:
    """These net gains of r=2, 8, 32 and full fine-tuning, (100,) draws each; ``first``: fields of
    the first arm."""
    draws = np.column_stack([np.broadcast_to(c, 100) for c in columns]).astype(float)
    number = len(columns)
    net = NetGains(draws, draws, np.zeros(number), np.zeros((number, number)), 0.02)
    found = arms_by_label(FRAME)
    arms = tuple(
        found[label].updated(
            expected=ExpectedGain(
                net=change_of(draws[:, k]),
                changes={"med": change_of(draws[:, k])},
                p_better=float((draws[:, k] > 0).mean()),
                p_within_margin=float(net.p_within_margin[k + 1]),
                p_best=float(net.p_best[k + 1]),
                regret=float(net.regret[k + 1]),
            ),
            **({} if k else first),
        )
        for k, label in enumerate(ARMS[:number])
    )
    places = tuple(range(number))
    return TaskResults(FRAME, "med", arms, (), net, draws, places, places)


def decided(*columns: float | np.ndarray, **first: object) -> Answer:
    """The answer by these draws, without any check."""
    return no_surer_than(decide(by_hand(*columns, **first)), ())


def some(share: int, value: float, otherwise: float) -> np.ndarray:
    """``value`` in so many of 100 draws."""
    return np.where(np.arange(100) < share, value, otherwise)


@pytest.mark.parametrize(
    ("nets", "chosen", "regret"),
    [
        ((0.10, 0.12, 0.13, 0.12), "r=32", 0.0),
        ((0.10, 0.126, 0.13, 0.12), "r=8", 0.004),  # within a quarter of the margin, .005
        ((0.10, 0.124, 0.13, 0.12), "r=32", 0.0),
        ((0.10, 0.12, 0.124, 0.13), "full", 0.0),  # most parameters: only if no LoRA arm is close
        ((0.10, 0.12, 0.126, 0.13), "r=32", 0.004),
        ((0.004, 0.003, -0.1, 0.0), None, 0.004),  # the base has no parameters
        ((0.006, 0.003, -0.1, 0.0), "r=2", 0.0),
        ((-0.1, -0.2, -0.1, -0.3), None, 0.0),
    ],
)
def test_the_fewest_parameters_within_a_quarter_of_the_margin_win(
    nets: tuple[float, ...], chosen: str | None, regret: float
) -> None:
    answer = decided(*nets)
    assert answer.regret == pytest.approx(regret)
    assert (answer.chosen and answer.chosen.short_label) == chosen
    kinds = {None: "do_not_fine_tune", "full": "use_full"}
    assert answer.decision == kinds.get(chosen, "use")
    # An answer without a recommendation describes the arm that comes closest.
    assert answer.subject.summary.label == ARMS[int(np.argmax(nets))] or chosen
    assert answer.p_within_margin == 1


@pytest.mark.parametrize(
    ("nets", "verdict"),
    [
        ((0.126, 0.13, 0.13), "Use the prompt 5-shot without fine-tuning."),
        ((0.124, 0.13, 0.12), "Use LoRA rank 8."),
        ((0.004, 0.003, 0.0), "Do not fine-tune"),  # the base reads fewer tokens
        ((0.006, 0.003, 0.0), "Use the prompt"),
    ],
)
def test_a_prompt_has_no_parameters_and_more_tokens_than_the_base(
    nets: tuple[float, ...], verdict: str
) -> None:
    prompt = {"method": "prompt", "rank": None, "alpha": None, "trainable_parameters": 0}
    answer = decided(*nets, **prompt, label="prompt 5-shot", tokens_per_item=100.0)
    assert answer.verdict.startswith(verdict)


def test_a_prompt_costs_nothing_and_moves_no_cost() -> None:
    lora = arms_by_label(FRAME)[ARMS[0]].summary
    arms = [lora.model_copy(update={"trainable_parameters": n}) for n in (10, 100, 1000)]
    prompt = lora.model_copy(update={"method": "prompt", "trainable_parameters": 0})
    assert _costs(arms) == pytest.approx([0, 0.5, 1])
    assert _costs([prompt, *arms]) == pytest.approx([0, 0, 0.5, 1])
    assert _costs([prompt]) == pytest.approx([0])


def test_beside_a_prompt_rate_and_loss_are_of_the_best_arm_that_trains() -> None:
    """For an arm that trains on may take its place."""
    alike = synthetic_study(Truth(ranks=(2, 8), full_lrs=(), accuracy=lambda rank, lr: 0.8))
    text = "Answer with one\nletter, and with nothing besides."
    advice = advice_on(with_prompt(alike, 2, system=text, num_fewshot=None))
    checks = {check.name: check for check in advice.checks}
    assert checks["learning_rate"].value == "r=8 at the only rate tried"
    assert "loss" in checks


def test_regret_is_expected_and_not_that_of_the_expected_arm() -> None:
    """r=8 is never the best, yet never far off; r=2 and r=32 take turns, apart by 20 points."""
    answer = decided(some(50, 0.2, 0.0), 0.181, some(50, 0.0, 0.2))
    assert answer.chosen.rank == 8
    assert answer.regret == pytest.approx(0.019)
    assert [(r.rank, r.p) for r in answer.ranks] == [(2, 0.5), (8, 1.0), (32, 0.5)]


SURE, CLOSE = some(95, 0.3, 0.279), some(94, 0.3, 0.279)


@pytest.mark.parametrize(
    ("columns", "verdict", "confidence", "p"),
    [
        ((some(4, 0.2, 0), SURE, some(95, 0.2, 0.3)), "Use LoRA rank 8.", "sure", "95 %"),
        ((some(30, 0.3, 0), CLOSE, some(94, 0.1, 0.3)), "Use LoRA rank 8.", "probable", "94 %"),
        (
            (some(5, 0.3, 0), some(30, 0.3, 0), some(79, 0.3, 0.278), some(79, 0.1, 0.3)),
            "Use LoRA rank 32.",
            "leaning",
            "79 %",
        ),
        ((0.1, 0.1, some(19, 0.3, 0.2), 0.31), "Use full fine-tuning.", "sure", "Over 99 %"),
        ((some(5, 0.021, -1), -0.1), "Do not fine-tune.", "sure", "95 %"),
        ((some(20, 0.021, -1), -0.1), "Do not fine-tune.", "probable", "80 %"),
        ((some(21, 0.021, -1), -0.1), "Do not fine-tune.", "leaning", "79 %"),
    ],
)
def test_the_confidence_follows_the_probability(
    columns: tuple[float | np.ndarray, ...], verdict: str, confidence: str, p: str
) -> None:
    answer = decided(*columns)
    assert (answer.verdict, answer.confidence) == (verdict, confidence)
    likely = f"{p} likely among the best of {len(columns)} tried."
    if verdict.startswith("Do not"):
        assert answer.summary.startswith(f"The base is {likely} LoRA rank 8 comes closest with ")
    else:
        (gain,) = (c.value for c in answer.chosen.expected.changes.values())
        assert answer.summary == f"{likely} Learns +{100 * gain:.0f} points."


def check(name: CheckName, status: CheckStatus) -> TrustCheck:
    return TrustCheck(name=name, status=status, value=f"{name} is {status}", text="")


@pytest.mark.parametrize(
    ("checks", "decision", "confidence", "said"),
    [
        ([("seeds", "fine"), ("loss", "fine")], "use", "sure", "95 % likely among the best of 3"),
        ([("seeds", "weak")], "use", "probable", "95 % likely among the best of 3 tried."),
        (
            [("loss", "bad"), ("seeds", "weak")],
            "not_decided",
            "none",
            "first: loss is bad. So far the scores favor LoRA rank 8.",
        ),
    ],
)
def test_no_answer_is_surer_than_what_is_open(
    checks: list[tuple[CheckName, CheckStatus]], decision: str, confidence: str, said: str
) -> None:
    results = by_hand(some(4, 0.2, 0), SURE, some(95, 0.2, 0.3))
    answer = no_surer_than(decide(results), [check(*of) for of in checks])
    assert (answer.decision, answer.confidence) == (decision, confidence)
    assert said in answer.summary
    assert answer.subject is not None
    assert (answer.chosen is None) == (answer.verdict == "Not decided yet.")
    # What is open makes no answer surer than its probability.
    unsure = by_hand(some(79, 0.3, 0.278), some(79, 0.1, 0.3))
    answer = no_surer_than(decide(unsure), [check("seeds", "weak")])
    assert answer.confidence == "leaning"


def test_after_few_steps_nothing_is_decided_and_an_open_end_is_no_certainty() -> None:
    """Forty steps, four of warm-up: 36 updates are enough, 26 after 28 steps are not."""
    study = synthetic_study(Truth(ranks=(2, 8), full_lrs=()))
    assert advice_on(study).decision == "use"

    def short(trial: TrialRecords) -> TrialRecords:
        train = trial.train.model_copy(update={"steps": 28, "losses": trial.train.losses[:28]})
        return replace(trial, train=train)

    early = advice_on(with_trials(study, short))
    assert (early.decision, early.chosen, early.confidence) == ("not_decided", None, "none")
    assert early.summary.endswith(
        "only 25 steps after warm-up. So far the scores favor LoRA rank 8."
    )
    assert early.subject_label == "r=8 lr=0.001"
    assert [step.command for step in early.next_steps] == [
        "rankscope run study.yaml --set train.epochs=6"
    ]
    # One rate, the largest rank: sure by the draws, "probably" by what was tried.
    open_ends = advice_on(study)
    assert open_ends.p_within_margin > 0.95
    assert open_ends.confidence == "probable"


def test_the_worst_loss_is_named_whatever_the_mean_says() -> None:
    """One of four retention tasks falls by 44 points, one by 10, two are as they were."""
    kept = ("general", "more", "maths", "law")
    study = synthetic_study(
        Truth(ranks=(8,), full_lrs=(), retention=kept, forgetting=lambda rank, lr: 0.0)
    )
    kept_of = {"maths": 9, "more": 17}  # Of twenty items
    fallen = with_scores(
        study,
        lambda k, s: s if k[0] == BASE else s * (np.arange(len(s)) % 20 < kept_of.get(k[1], 20)),
    )
    advice = advice_on(fallen)
    assert "Worst loss: maths \N{MINUS SIGN}4" in advice.summary
    (retention,) = (c for c in advice.checks if c.name == "retention")
    assert (retention.status, retention.value) == ("weak", "more and maths are lost")
    change = advice.arms[0].expected.changes
    assert change["maths"].high < -0.3
    assert abs(change["law"].value) < 0.03
    assert "Worst loss" not in advice_on(study).summary


def test_what_guessing_scores_is_said_where_scores_are_near_it() -> None:
    near = synthetic_study(Truth(base_accuracy=0.27, num_items=100))
    assert "25.0 % by guessing" in texts(advice_on(near), "diagnostic")
    far = synthetic_study(Truth(base_accuracy=0.5, num_items=100))
    assert "guessing" not in texts(advice_on(far), "diagnostic")
    ids = far.items["base", "med", "test"].item_ids
    golds = ["billing"] * 72 + [f"other {i}" for i in range(28)]
    asked = [ItemResult(i, None, 0.0, gold, "") for i, gold in zip(ids, golds, strict=True)]
    labels = replace(far, results={("base", "med", "test"): asked})
    assert "72.0 % by the most frequent answer" in texts(advice_on(labels), "diagnostic")


def test_a_limit_on_forgetting_leaves_out_what_probably_exceeds_it() -> None:
    """Full fine-tuning is best and forgets 30 points of the 10 allowed; r=8 may, at 9 of 10."""
    truth = Truth(
        ranks=(2, 8),
        accuracy=lambda rank, lr: {None: 0.9, 8: 0.8, 2: 0.5}[rank],
        forgetting=lambda rank, lr: {None: 0.3, 8: 0.09, 2: 0.0}[rank],
        objective={"max_forgetting": 0.1, "retention": 0.0},
    )
    advice = advise(truth)
    expected = {arm.label: arm.expected for arm in advice.arms}
    assert advice.chosen.rank == 8
    assert expected["full lr=0.0005"].p_over_limit > 0.99
    assert 0.01 < expected["r=8 lr=0.001"].p_over_limit < 0.5
    assert "Probability of forgetting more than the 10.0 points allowed: " in advice.explanation
    assert "full lr=0.0005" not in {*advice.candidate_labels, advice.best_full_label}
    assert "1 configuration of 3 probably forgets more than the 10.0 points" in texts(
        advice, "caveat"
    )
    assert "left out: full lr=0.0005 (over 99 %)." in texts(advice, "caveat")
    free = advise(replace(truth, objective={"retention": 0.0}))
    assert free.decision == "use_full"
    assert {arm.expected.p_over_limit for arm in free.arms} == {None}
    none = advise(replace(truth, forgetting=lambda rank, lr: 0.2 if rank == 2 else 0.4))
    assert (none.decision, none.chosen, none.confidence) == ("do_not_fine_tune", None, "probable")
    assert none.summary.startswith("Every configuration forgets more than the 10.0 points allowed.")
    assert "LoRA rank 2 forgets least and is over 99 % likely over the limit." in none.summary
    assert none.subject_label == "r=2 lr=0.001"
    assert "scaled-down adapter" in none.explanation


def test_an_arm_that_probably_exceeds_the_limit_is_left_out() -> None:
    """Two points over the limit, on few items: likelier than not, and not surely."""
    limit = {"max_forgetting": 0.1, "retention": 0.0}
    truth = Truth(ranks=(2, 8), full_lrs=(), num_items=60, objective=limit)
    advice = advise(replace(truth, forgetting=lambda rank, lr: 0.0 if rank == 2 else 0.14))
    (of,) = (arm.expected for arm in advice.arms if arm.rank == 8)
    assert 0.55 < of.p_over_limit < 0.9
    assert advice.candidate_labels == ("r=2 lr=0.001",)
    assert of.p_within_margin == 0


def test_better_is_any_gain_and_not_one_of_the_margin() -> None:
    """A gain of 0.012 nats that items and seeds show well is half of the margin."""
    truth = Truth(ranks=(8,), full_lrs=(), metric="log_probability", seed_spread=0.0)
    study = with_scores(
        synthetic_study(truth), lambda k, s: 0 * s + 0.012 * (k[:2] != (BASE, "med"))
    )
    (arm,) = advice_on(with_objective(study, retention=0.0)).arms
    assert arm.expected.p_better > 0.9
    assert arm.expected.net.value < 0.02


def test_a_failed_trial_is_a_trial_without_gain_and_cost_is_subtracted_by_hand() -> None:
    truth = Truth(ranks=(8, 32), full_lrs=(), retention=(), num_items=60)
    failed = synthetic_study(replace(truth, failed={(32, 1e-3, 0): "diverged"}))
    absent = replace(failed, trials=tuple(t for t in failed.trials if t.status == "done"))
    one, other = (advice_on(study).arms for study in (failed, absent))
    assert one[0].expected.net == other[0].expected.net
    assert one[1].expected.net.value == pytest.approx(2 / 3 * other[1].expected.net.value)
    # Logarithms of the parameters from 0 to 1: r=32 pays all of .2, r=8 nothing.
    dear = advice_on(with_objective(absent, cost=0.2)).arms
    lost = [a.expected.net.value - b.expected.net.value for a, b in zip(other, dear, strict=True)]
    assert lost == pytest.approx([0.0, 0.2])


def test_the_answer_as_a_whole() -> None:
    """Rows, comparisons and labels are of one posterior."""
    study = synthetic_study(Truth(ranks=(2, 8, 32), lrs=(5e-4, 1e-3), tasks=("med", "law")))
    found = recommend(study)
    assert found == recommend(study)
    assert Recommendation.model_validate_json(found.model_dump_json()) == found
    assert [a.task for a in found.advice] == ["med", "law"]
    advice = found.advice[0]
    by_label = {arm.label: arm for arm in advice.arms}
    nets = [by_label[label].expected.net.value for label in advice.candidate_labels]
    assert len(nets) == 4  # one rate for each rank, and full fine-tuning
    assert nets == sorted(nets, reverse=True)
    assert sum(arm.expected.p_best for arm in advice.arms) <= 1
    assert advice.best_full_label == "full lr=0.0005"
    pairs = [(c.first_label[:4], c.second_label[:4]) for c in advice.comparisons]
    assert pairs[3:] == [("r=8 ", "r=2 "), ("r=32", "r=8 "), ("r=32", "r=2 ")]
    for c in advice.comparisons:
        first, second = (by_label[label].expected for label in (c.first_label, c.second_label))
        assert c.net.value == pytest.approx(first.net.value - second.net.value)
        gains = [of.changes["med"].value for of in (first, second)]
        assert c.gain.value == pytest.approx(gains[0] - gains[1])
        assert c.net.low < c.net.value < c.net.high
        assert c.p_within_margin >= c.p_better
    roles = [role for row in advice.rows for role in row.roles]
    assert len(roles) == len(set(roles))
    assert {"recommended", "best", "full"} <= set(roles)


def at_16(rank: int | None, lr: float) -> float:
    return 0.9 if rank is None or rank >= 16 else 0.6


FLAT = Truth(ranks=(4, 8, 16, 64), forgetting=lambda rank, lr: 0.02, seed_spread=0.005)
Judge = Callable[[TaskAdvice], bool]
TRUTHS: dict[str, tuple[dict[str, object], Judge]] = {
    "a step at r = 16": ({"accuracy": at_16}, lambda a: a.decision == "use" and a.chosen.rank > 8),
    "one seed": ({"accuracy": at_16, "seeds": (0,)}, lambda a: a.rows[0].arm.rank not in (4, 8)),
    "flat": ({"accuracy": lambda r, lr: 0.7}, lambda a: a.decision == "use"),
    "base better": (
        {"base_accuracy": 0.6, "accuracy": lambda r, lr: 0.5},
        lambda a: a.decision == "do_not_fine_tune" and a.p_within_margin > 0.95,
    ),
    "full better": (
        {"accuracy": lambda r, lr: 0.8 + 0.1 * (r is None)},
        lambda a: a.decision == "use_full" and a.p_within_margin > 0.95,
    ),
    "forgotten as much as gained": (
        {"accuracy": lambda r, lr: 0.42, "forgetting": lambda r, lr: 0.12},
        lambda a: a.p_better < 0.975 or a.expected_regret < 0.02,
    ),
    "a rate that collapses": (
        {"lrs": (1e-3, 1e-2), "accuracy": lambda r, lr: 0.8 - 0.78 * (lr == 1e-2), "seeds": (0,)},
        lambda a: {x.lr for x in a.arms if x.expected.p_better > 0.5} == {1e-3, 5e-4},
    ),
    "gains of 300 margins": (
        {"accuracy": at_16, "objective": {"margin": 0.002}},
        lambda a: all(x.expected.p_better > 0.99 for x in a.arms),
    ),
}


@pytest.mark.parametrize("name", TRUTHS)
def test_known_truths_are_found(name: str) -> None:
    truth, judge = TRUTHS[name]
    assert sum(judge(advise(replace(FLAT, **truth), seed)) for seed in range(5)) >= 4


def test_what_is_stated_is_true_as_often_as_stated() -> None:
    """Of studies with truths of their own; three binomial standard errors of each share."""
    regrets, within, better, covered = [], [], [], []
    for seed in range(50):
        study, truth = random_study(seed)
        results = task_results(study, "med", summarize_arms(study)["med"])
        answer = decide(results)
        regrets.append(
            max(0.0, *truth.values()) - truth.get(answer.chosen and answer.chosen.label, 0)
        )
        within.append((answer.p_within_margin, regrets[-1] <= 0.02))
        for arm in results.arms:
            expected, net = arm.summary.expected, truth[arm.summary.label]
            better.append((expected.p_better, net > 0))
            better.append((1 - expected.p_better, net <= 0))
            covered.append(expected.net.low <= net <= expected.net.high)
    for pairs, lowest, highest in (
        (within, 0.0, 0.8),
        (within, 0.8, 0.95),
        (within, 0.95, 1.01),
        (better, 0.8, 0.95),
        (better, 0.95, 1.01),
    ):
        found = np.array([pair for pair in pairs if lowest <= pair[0] < highest], float)
        stated, true = found.mean(axis=0)
        assert true >= stated - 3 * np.sqrt(stated * (1 - stated) / len(found))
    # Four arms of a study share its items, so that only studies count.
    assert np.mean(covered) >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / 50)
    assert np.mean(regrets) < 0.012  # The base alone loses 6.9 points, the best fixed rank 3.1
