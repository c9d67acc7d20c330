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


def tokens(number: int, rows: int = 200, ranks: tuple[int, ...] = (8,)) -> Make:
    return trained(num_label_tokens=number, rows=rows, ranks=ranks)


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
INSIDE = of(ONE, lrs=(LOW, MID, 1e-2), accuracy=lambda r, lr: 0.9 if lr == MID else 0.5)
SLOW, SETTLED = (trained(losses=[4 * f**i for i in range(40)]) for f in (0.95, 0.7))
CHECKS = [
    ("retention fine 1 retention task", of(), "The base is above chance"),
    ("retention weak forgetting unknown", of(retention=()), "Add one to the study file."),
    ("retention weak general not above chance", AT_CHANCE, "guessing gives 25.0 %), so accuracy"),
    ("contamination fine no overlap", of(), "No test row overlaps the training set."),
    ("contamination weak 1 of 200 test rows", contaminated(1, 0), "(1 by exact match)"),
    ("contamination bad 18 of 200 test rows", contaminated(9, 9), "(9 by exact match, 9 by 13-"),
    ("answers bad 84 % right for several questions", alike("yes no"), "such as 'yes no', so the"),
    ("learning_rate weak one learning rate tried", of(), "better: add 0.00032 and 0.0032."),
    (
        "learning_rate weak highest learning rate tried",
        HIGHEST,
        "highest of the 2 tried for it: a high",
    ),
    ("learning_rate fine 3 learning rates tried", INSIDE, "lies inside the 3 tried for it."),
    ("loss bad still falling after 6 steps", trained(losses=[3.5, 3.2, 2.9, 2.6, 2.3, 2.0]), "may"),
    ("loss bad only 5 steps", trained(losses=[2.0, 2.1, 1.9, 2.0, 2.0]), "Train at least 20"),
    ("loss weak still falling", SLOW, "longer training may change the order of arms."),
    # A loss near zero falls by half of itself, and by nothing of what it was.
    ("loss fine has settled", SETTLED, "has leveled off by the end of 40 steps."),
    ("trials fine all 6 trials finished", of(), "Every trial finished."),
    ("trials weak 1 of 6 trials failed", of(failed={(2, MID, 1): "oom"}), "seed=1: oom). A failed"),
    ("trials bad 1 of 6 trials failed", of(failed={(8, MID, 1): "oom"}), "counts as no gain, if"),
    ("trials bad 2 of 6 trials to run", ended("planned"), "2 of 6 trials have not run yet."),
    ("trials weak 2 of 6 trials stopped", ended("skipped", "-"), "did not ask for 2 trials. Train"),
    ("trials weak budget spent, 2 of 6", ended("skipped", OVER_BUDGET), "2 trials that the answer"),
]


@pytest.mark.parametrize(("fact", "make", "said"), CHECKS)
def test_a_check_has_its_status_and_its_fact(fact: str, make: Make, said: str) -> None:
    kind, status, value = fact.split(" ", 2)
    found = [c for c in advice_on(make()).checks if c.name == kind]
    (check,) = (c for c in found if c.value.startswith(value))
    assert check.status == status
    assert said in check.text


def test_answers_that_are_right_for_one_question_each_are_not_named() -> None:
    assert all(check.name != "answers" for check in advice_on(alike("")()).checks)


LARGE, SMALL = (
    "The adapter is large for the data: 8,192",
    "The adapter is small for the data: 8,192",
)
WIDE = {"num_items": 900, "objective": {"margin": 0.05}}
FINDINGS = [
    ("2 of 2 arms are worse than the base", of(base_accuracy=0.7, **GAINS), True),
    ("worse than the base", of(), False),
    ("The base already scores 9", of(base_accuracy=0.98, **GAINS), True),
    ("Negative transfer: math falls", of(transfer=lambda r, lr: -0.2, num_items=400), True),
    ("Negative transfer", of(transfer=lambda r, lr: -0.04, num_items=2000), False),
    ("Negative transfer", of(transfer=lambda r, lr: -0.12, num_items=15), False),
    ("Over-forgetting: LoRA r=", of(forgetting=lambda r, lr: 0.15, **GAINS), True),
    ("Over-forgetting", of(), False),
    # 8 x 2 layers x 4 modules x 2 x 64 = 8,192 parameters; 40 steps of 8 rows are 1.6 passes over
    # 200 rows, so 64 labeled tokens in training are 40 of the data. 8 / 2.048 = 3.9, a power below.
    (f"{LARGE} parameters for about 40 answer tokens (205 to one), enough", tokens(64), True),
    ("Next: a smaller rank (r=2 by the capacity rule), fewer epochs", tokens(64), True),
    # The last step of an epoch is short, and is a step; two rows are seen whole in each of 40.
    (f"{LARGE} parameters for about 40 ", tokens(64, rows=199), True),
    (f"{LARGE} parameters for about 8 ", tokens(320, rows=2), True),
    (f"{SMALL} parameters for about 20,000", tokens(32_000), True),
    ("for the data", tokens(3_200), False),
    ("one parameter per token. Next: more target modules.", tokens(10**6, ranks=(64,)), True),
    ("From r=2 to r=8 the net gain moves by less than 5.0 points", of(FLAT, **WIDE), True),
    ("rank hardly matters", of(**WIDE), False),
    ("Both ranks were trained at one learning rate (0.001)", of(), True),
    ("between learning rates", rates((LOW, MID), (LOW, MID)), False),
    ("(r=2 at 0.001; r=8 at 0.0001)", rates((MID,), (LOW,)), True),
    ("0.001; r=8 at 0.0001), and the best rate of r=2 and r=8", rates((LOW, MID), (LOW,)), True),
    ("between learning rates", rates((LOW, MID, 1e-2), (3e-4, MID, 3e-3)), False),
    ("and the best rate of r=8 may lie beyond", rates((LOW, MID, 1e-2), (MID, 3e-3)), True),
    ("r=8 is the largest rank tried: a larger one may gain more.", of(), True),
    ("largest rank tried, and larger ones add no directions", of(ranks=(2, 64)), True),
    ("r=2 is the smallest rank tried: a smaller one may be enough.", of(FLAT), True),
    ("smallest rank tried", of(FLAT, ranks=(1, 8)), False),
    # The capacity rule asks for a rank on the other side.
    ("largest rank tried", tokens(64, ranks=(8, 32)), False),
]


@pytest.mark.parametrize(("words", "make", "is_there"), FINDINGS)
def test_a_finding_is_named_where_it_is_alone(words: str, make: Make, is_there: bool) -> None:
    found = [r for r in advice_on(make()).findings if words in r.text]
    assert len(found) == is_there
    assert all(r.kind == "caveat" or "Next: " in r.text for r in found)


def test_reasons_quote_the_test_split_and_name_what_is_expected() -> None:
    """A rise in retention is no forgetting."""
    truth = Truth(ranks=(8,), base_other=0.5, forgetting=lambda rank, lr: -0.2)
    (advice,) = recommend(synthetic_study(truth)).advice
    by_kind = {r.kind: r for r in advice.evidence}
    assert set(by_kind) == {"forgetting", "transfer"}
    subject = next(arm for arm in advice.arms if arm.label == advice.subject_label)
    rise, expected = -100 * subject.forgetting.value, -100 * subject.expected.forgetting
    kept = by_kind["forgetting"].text
    assert f"changes by +{rise:.1f} points (95 % interval " in kept
    assert f"Expected from all items, seeds and arms: +{expected:.1f} points (" in kept
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


def test_own_text_is_worded_in_shares_and_nats() -> None:
    advice = advise(
        replace(ONE, metric="log_probability", retention=(), objective={"scale": "nats"})
    )
    everything = advice.verdict + advice.explanation + "".join(r.text for r in advice.evidence)
    assert "nats per token" in everything
    assert "points" not in everything
