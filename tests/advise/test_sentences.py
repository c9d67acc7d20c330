"""Checks, diagnostics, reasons and caveats: when each is said."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
from advice import advice_on, advise
from synthetic_study import Truth, synthetic_study, with_specs, with_tasks, with_trials

from rankscope.advise.arms import summarize_arms
from rankscope.advise.messages import arm_name
from rankscope.advise.recommend import recommend
from rankscope.records import OVER_BUDGET, ItemResult, LossPoint, StudyRecords, TrialRecords

TRUTH = Truth(ranks=(2, 8), full_lrs=(), num_items=200)
ONE = replace(TRUTH, ranks=(8,))
FLAT = replace(TRUTH, accuracy=lambda rank, lr: 0.7, forgetting=lambda rank, lr: 0.0)
Make = Callable[[], StudyRecords]
GAINS = {"accuracy": lambda rank, lr: 0.5}


def of(truth: Truth = TRUTH, **changes: object) -> Make:
    return lambda: synthetic_study(replace(truth, **changes))


def trained(**changes: object) -> Make:
    """One rank; every trial's training with other records."""
    truth = replace(ONE, ranks=changes.pop("ranks", (8,)))
    losses = changes.pop("losses", ())
    points = [
        LossPoint(step=i + 1, loss=loss, lr=1e-3, grad_norm=1.0) for i, loss in enumerate(losses)
    ]
    changes |= {"losses": tuple(points), "steps": len(points)} if points else {}
    return lambda: with_trials(
        synthetic_study(truth), lambda t: replace(t, train=t.train.model_copy(update=changes))
    )


def contaminated(exact: int, ngram: int) -> Make:
    update = {"contamination": {"exact": exact, "ngram13": ngram}}
    return lambda: with_tasks(synthetic_study(ONE), med=update)


def alike(text: str) -> Make:
    """Every test item has its own right answer; all models write one text."""
    study = synthetic_study(ONE)

    def made() -> StudyRecords:
        results = {
            key: [
                ItemResult(i, None, float(score), f"right {i}", text, generated=text or i)
                for i, score in zip(of.item_ids, of.scores, strict=True)
            ]
            for key, of in study.items.items()
        }
        return replace(study, results=results)

    return made


def ended(status: str, failure: str | None = None) -> Make:
    """The later seeds of r=2."""

    def late(trial: TrialRecords) -> TrialRecords:
        is_late = trial.spec.rank == 2 and trial.spec.seed
        return TrialRecords(trial.spec, status, failure=failure) if is_late else trial

    return lambda: with_trials(synthetic_study(TRUTH), late)


def rates(two: tuple[float, ...], eight: tuple[float, ...]) -> Make:
    def accuracy(rank: float, lr: float) -> float:  # best at 1e-3
        return 0.9 - 0.3 * abs(math.log10(lr) + 3)

    lrs = tuple(sorted({*two, *eight}))
    study = synthetic_study(replace(TRUTH, lrs=lrs, num_items=60, accuracy=accuracy))
    kept = (t for t in study.trials if t.spec.lr in {2: two, 8: eight}[t.spec.rank])
    return lambda: replace(study, trials=tuple(kept))


LOW, MID = 1e-4, 1e-3
AT_CHANCE = of(ONE, base_other=0.25, forgetting=lambda rank, lr: 0.0)
HIGHEST = of(lrs=(LOW, MID), accuracy=lambda rank, lr: 0.5 + 300 * lr)
LOWEST = of(ONE, lrs=(MID, 1e-2), accuracy=lambda r, lr: 0.9 if lr == MID else 0.5)
INSIDE = of(ONE, lrs=(LOW, MID, 1e-2), accuracy=lambda r, lr: 0.9 if lr == MID else 0.5)
SLOW, SETTLED = (trained(losses=[4 * f**i for i in range(40)]) for f in (0.95, 0.7))
NOISY = trained(losses=[4.0, 1.0] * 20)
FORGETS = {"forgetting": lambda rank, lr: 0.3}


def collapsed() -> StudyRecords:
    """One of three seeds gains nothing."""
    study = synthetic_study(replace(ONE, full_lrs=()))
    evals = dict(study.evals)
    key = (study.trials[1].spec.trial_id, "med", "test")
    evals[key] = evals[key].model_copy(update={"score": evals["base", "med", "test"].score})
    return replace(study, evals=evals)


def cut(share: float) -> Make:
    study = synthetic_study(ONE)
    key = ("base", "med", "test")
    record = study.evals[key].model_copy(update={"truncated": round(share * study.evals[key].n)})
    return lambda: replace(study, evals={**study.evals, key: record})


CHECKS = [
    ("retention fine loses at most", of(ONE), "The 95 % interval of the mean over"),
    ("retention weak may lose", of(ONE, num_items=30), "Score more retention items."),
    ("retention weak general is lost", of(ONE, **FORGETS), "beyond 6.0 points"),
    ("retention weak forgetting unknown", of(retention=()), "Add one to the study file."),
    ("retention weak general at chance", AT_CHANCE, "so it has little to lose"),
    ("contamination fine no overlap", of(), "No test row overlaps the training set."),
    ("contamination weak 1 of 200 test rows", contaminated(1, 0), "(1 by exact match)"),
    ("contamination bad 18 of 200 test rows", contaminated(9, 9), "(9 by exact match, 9 by 13-"),
    ("answers bad 84 % right for several questions", alike("yes no"), "such as 'yes no', so the"),
    ("items weak 6 % of med cut", cut(0.06), "items of med"),
    ("learning_rate weak r=8 at the only rate tried", of(), "may do better."),
    ("learning_rate weak r=8 and r=2 at the highest rate tried", HIGHEST, "may do better."),
    ("learning_rate weak r=8 at the lowest rate tried", LOWEST, "may do better."),
    ("learning_rate fine 3 rates tried", INSIDE, "lie inside their lists."),
    ("ranks weak r=8 is the largest tried", of(), "A larger rank may gain more."),
    ("loss bad only 5 steps after warm-up", trained(losses=[3.5, 3.2, 2.9, 2.6, 2.3, 2.0]), "30"),
    ("loss weak still falling after 40 steps", SLOW, "longer training may change the order of"),
    ("loss weak not known to have settled", NOISY, "too noisy to tell"),
    # A loss near zero falls by half of itself, and by nothing of what it was.
    ("loss fine has settled", SETTLED, "it went from 0.00"),
    ("seeds fine 3 seeds, 0 of 6 models collapsed", of(), "0 of 6 models"),
    ("seeds weak 1 seed", of(seeds=(0,)), "is assumed for it, not measured"),
    ("seeds weak 3 seeds, 1 of 3 models collapsed", collapsed, "1 of 3 models lost most"),
    ("trials fine all 6 runs finished", of(), "Every run finished."),
    ("trials weak 1 of 6 runs failed", of(failed={(2, MID, 1): "oom"}), "seed=1: oom. A failed"),
    (
        "trials bad 2 of 6 runs are still to come",
        ended("planned"),
        "The answer waits for their scores.",
    ),
    ("trials fine 2 of 6 runs not begun", ended("skipped", "-"), "learn most from"),
    ("trials weak budget spent, 2 of 6", ended("skipped", OVER_BUDGET), "2 runs that the answer"),
]


@pytest.mark.parametrize(("fact", "make", "said"), CHECKS)
def test_a_check_has_its_status_and_its_fact(fact: str, make: Make, said: str) -> None:
    kind, status, value = fact.split(" ", 2)
    found = [c for c in advice_on(make()).checks if c.name == kind]
    (check,) = (c for c in found if c.value.startswith(value))
    assert check.status == status
    assert said in check.text


def test_a_rival_at_the_end_of_its_rates_is_open_too() -> None:
    """r=2 is best inside its rates, r=8 nearly as good at the highest of its own."""

    def accuracy(rank: int | None, lr: float) -> float:
        if rank == 2:
            return {LOW: 0.5, MID: 0.8, 1e-2: 0.6}[lr]
        return {LOW: 0.6, MID: 0.7, 1e-2: 0.79}[lr]

    study = synthetic_study(
        replace(TRUTH, lrs=(LOW, MID, 1e-2), accuracy=accuracy, forgetting=lambda r, lr: 0.0)
    )
    advice = advice_on(study)
    assert advice.chosen.rank == 2
    (check,) = (c for c in advice.checks if c.name == "learning_rate")
    assert (check.status, check.value) == ("weak", "r=8 at the highest rate tried")
    assert advice.next_steps[0].command.endswith("--set arms.0.lr=[0.0001,0.001,0.01,0.02]")


def test_answers_that_are_right_for_one_question_each_are_not_named() -> None:
    assert all(check.name != "answers" for check in advice_on(alike("")()).checks)


WIDE = {"num_items": 900, "objective": {"margin": 0.05}}
FINDINGS = [
    ("2 of 2 configurations are worse than the base", of(base_accuracy=0.7, **GAINS), True),
    ("worse than the base", of(), False),
    ("r=32 (alpha 64, lr 0.001) trains 61 % of the model's", of(ranks=(32,)), True),
    ("The base already scores 9", of(base_accuracy=0.98, **GAINS), True),
    ("Negative transfer: math falls", of(transfer=lambda r, lr: -0.2, num_items=400), True),
    ("Negative transfer", of(transfer=lambda r, lr: -0.04, num_items=2000), False),
    ("Negative transfer", of(transfer=lambda r, lr: -0.12, num_items=15), False),
    ("Over-forgetting: LoRA r=", of(forgetting=lambda r, lr: 0.15, **GAINS), True),
    ("Over-forgetting", of(), False),
    ("From r=2 to r=8 the net gain moves by less than 5.0 points", of(FLAT, **WIDE), True),
    ("rank hardly matters", of(**WIDE), False),
    ("Both ranks were trained at one learning rate (0.001)", of(), True),
    ("between learning rates", rates((LOW, MID), (LOW, MID)), False),
    ("(r=2 at 0.001; r=8 at 0.0001)", rates((MID,), (LOW,)), True),
    ("0.001; r=8 at 0.0001), and the best rate of r=2 and r=8", rates((LOW, MID), (LOW,)), True),
    ("between learning rates", rates((LOW, MID, 1e-2), (3e-4, MID, 3e-3)), False),
    ("and the best rate of r=8 may lie beyond", rates((LOW, MID, 1e-2), (MID, 3e-3)), True),
]


@pytest.mark.parametrize(("words", "make", "is_there"), FINDINGS)
def test_a_finding_is_named_where_it_is_alone(words: str, make: Make, is_there: bool) -> None:
    found = [r for r in advice_on(make()).findings if words in r.text]
    assert len(found) == is_there
    assert not any("Next: " in r.text for r in found)  # Advice has one place


def test_reasons_quote_the_test_split_and_name_what_is_expected() -> None:
    """A rise in retention is no forgetting."""
    truth = Truth(ranks=(8,), base_other=0.5, forgetting=lambda rank, lr: -0.2)
    (advice,) = recommend(synthetic_study(truth)).advice
    by_kind = {r.kind: r for r in advice.evidence}
    assert set(by_kind) == {"forgetting", "transfer"}
    subject = next(arm for arm in advice.arms if arm.label == advice.subject_label)
    rise = -100 * subject.forgetting.value
    kept = by_kind["forgetting"].text
    assert f"changes by +{rise:.1f} points (95 % interval " in kept
    assert "forgets" not in " ".join(r.text for r in advice.reasons)


def test_arms_that_differ_in_a_mitigation_alone_have_different_names() -> None:
    study = synthetic_study(replace(ONE, full_lrs=(5e-4,)))
    held: Mapping[str, object] = {"replay": "general", "replay_share": 0.3, "kl_to_base": 1.0}
    plain, kept = (
        [arm_name(arm.summary) for arm in summarize_arms(found)["med"]]
        for found in (study, with_specs(study, lambda spec: held))
    )
    assert plain == ["LoRA r=8 (alpha 16, lr 0.001)", "full fine-tuning (lr 0.0005)"]
    assert kept[0] == "LoRA r=8 (alpha 16, lr 0.001, replay=0.3xgeneral, kl=1)"
    assert kept[1] == "full fine-tuning (lr 0.0005, replay=0.3xgeneral, kl=1)"


def test_own_text_is_worded_in_nats() -> None:
    advice = advise(replace(ONE, metric="log_probability", retention=()))
    everything = advice.summary + advice.explanation + "".join(r.text for r in advice.evidence)
    assert "Learns +0." in everything
    assert "nats per token" in everything
    assert "points" not in everything
