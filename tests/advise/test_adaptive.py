"""Rules of adaptive studies: hand numbers, levels by simulation, and laws of stopping."""

from dataclasses import replace
from math import inf, sqrt

import numpy as np
import pytest
from scipy import stats
from synthetic_study import Truth, synthetic_study, with_trials

from adaptive import WORLDS, Drawn, compare, play_adaptive
from adaptive_replay import Stored
from rankscope.advise.adaptive import (
    AdaptiveRule,
    Gap,
    finalists,
    next_trials,
    sequential_interval,
    stops_at_rung,
)
from rankscope.advise.statistics.estimates import Comparison
from rankscope.errors import UserError
from rankscope.records import BASE, StudyRecords, TrialRecords

RULE = AdaptiveRule()
FLAT = Truth(cross=(), accuracy=lambda rank, lr: 0.7, forgetting=lambda rank, lr: 0.0)
APART = replace(FLAT, objective={"margin": 0.1})
RATES = Truth(
    cross=(),
    ranks=(4, 16),
    lrs=(1e-4, 3e-4, 1e-3, 3e-3),
    full_lrs=(),
    agreement=0.95,
    seed_spread=0.0,
    accuracy=lambda rank, lr: 0.4 + 0.12 * np.log10(lr / 1e-4),
)


def at_rung(study: StudyRecords, *, seed: int = 0) -> StudyRecords:
    """A view of a study in which one seed of every arm has reached a rung."""
    reached = {t.spec.trial_id for t in study.trials if t.spec.seed == seed}
    waiting = with_trials(
        study, lambda t: t if t.spec.trial_id in reached else TrialRecords(t.spec, "planned")
    )
    return replace(
        waiting,
        items={
            key: scores
            for key, scores in study.items.items()
            if key[0] in (BASE, *reached) and key[2] == "validation"
        },
    )


def right(*blocks: tuple[int, int]) -> np.ndarray:
    """One model's answers, (1, N): (score, how many) after each other."""
    return np.concatenate([np.full(n, float(score)) for score, n in blocks])[None]


def stopped(study: StudyRecords, rung: int = 1) -> dict[str, str]:
    """Label of a stopped arm -> the reason."""
    labels = {t.spec.trial_id: t.spec.arm_label for t in study.trials}
    return {labels[i]: stop.reason for i, stop in stops_at_rung(study, "med", rung, RULE).items()}


class TestInterval:
    def test_hand_numbers(self) -> None:
        """Ten of 18 items lost: with one item more for each side the mean is -10/20, the variance
        (12 - 20/4)/19, and t of 17 leaves 5 % beyond 1.7396."""
        pair = Comparison(right((0, 10), (1, 8)), right((1, 18)))
        found = sequential_interval([pair], [1.0], looks=1)
        half = 1.7396 * sqrt(7 / 19 / 20)
        assert found.value == pytest.approx(-10 / 18)
        assert (found.low, found.high) == pytest.approx(
            (-10 / 18 - half, -10 / 18 + half), abs=1e-4
        )

    def test_tasks_and_seeds_add_in_squares(self) -> None:
        """Two tasks of weight 1 and 1/2; seeds apart by .03, two against one."""
        rng = np.random.default_rng(0)
        scores = rng.standard_normal((2, 30))
        nats = Comparison(scores, rng.standard_normal((1, 30)))
        found = sequential_interval([nats, nats], [1.0, 0.5], looks=3, spread=0.03)
        error = nats.item_means.std(ddof=1) / sqrt(30)
        half = stats.t.ppf(1 - 0.05 / 3, 29) * sqrt(error**2 * 1.25 + 0.03**2 * 1.5)
        assert found.high - found.value == pytest.approx(half)

    @pytest.mark.parametrize(
        ("items", "clusters"), [(5, None), (60, np.arange(60) % 4)], ids=["items", "subjects"]
    )
    def test_few_items_or_subjects_settle_nothing(
        self, items: int, clusters: np.ndarray | None
    ) -> None:
        pair = Comparison(right((0, items)), right((1, items)), clusters)
        assert sequential_interval([pair], [1.0], looks=1) == Gap(-inf, -1.0, inf)

    def test_equal_answers_leave_room(self) -> None:
        alike = Comparison(right((1, 20)), right((1, 20)))
        found = sequential_interval([alike], [1.0], looks=1)
        assert found.low < -0.05 < 0.05 < found.high

    @pytest.mark.parametrize(
        ("low", "high", "answer"), [(-0.5, -0.03, True), (-0.5, -0.01, False), (-0.03, 0.3, False)]
    )
    def test_what_an_interval_shows(self, low: float, high: float, answer: bool) -> None:
        assert Gap(low, 0.0, high).is_worse(0.02) == answer

    @pytest.mark.parametrize("looks", [1, 4])
    def test_level(self, looks: int) -> None:
        """An arm worse by exactly the margin, looked at again and again with items of its own, is
        called worse at some look in at most 5 %."""
        rng = np.random.default_rng(looks)
        studies, margin, called = 1500, 0.05, 0
        for _ in range(studies):
            for _ in range(looks):
                luck = rng.uniform(size=100)
                rows = np.where(rng.uniform(size=(2, 100)) < 0.6, luck, rng.uniform(size=(2, 100)))
                scores = (rows < np.array([[0.55], [0.6]])).astype(float)
                pair = Comparison(scores[:1], scores[1:])
                if sequential_interval([pair], [1.0], looks).is_worse(margin):
                    called += 1
                    break
        assert called / studies <= 0.05 + 3 * sqrt(0.05 * 0.95 / studies)


class TestStops:
    def test_equal_arms_are_not_called_worse(self) -> None:
        """The best of equal arms is best by chance; at most 5 % of studies may say so."""
        reasons = [stopped(at_rung(synthetic_study(FLAT, seed))).values() for seed in range(12)]
        assert not any("worse" in r for r in reasons)

    def test_an_arm_that_forgets_all_stops(self) -> None:
        """It gains as much as the others: the net gain is compared."""
        truth = replace(APART, forgetting=lambda rank, lr: 0.5 if rank == 8 else 0.0)
        assert stopped(at_rung(synthetic_study(truth))) == {"r=8 lr=0.001": "worse"}

    def test_rates_thin_out(self) -> None:
        """Of four rates and two rungs three go on; after the last rung all that may be within the
        margin of the best one, which is ahead by .06, .12 and .18."""
        near, far = (
            at_rung(synthetic_study(replace(RATES, objective={"margin": margin})))
            for margin in (0.2, 0.02)
        )
        assert set(stopped(near, 0)) == {"r=4 lr=0.0001", "r=16 lr=0.0001"}
        assert stopped(near, 1) == {}
        everything = {t.spec.arm_label for t in far.trials}
        assert set(stopped(far, 1)) == everything - {"r=4 lr=0.003", "r=16 lr=0.003"}

    @pytest.mark.parametrize(
        ("rungs", "declared", "kept"),
        [((0.2, 0.5), 2, [2]), ((0.2, 0.5), 3, [2]), ((0.2, 0.4, 0.6), 4, [3, 2]), ((0.5,), 5, [])],
    )
    def test_how_many_rates_go_on(
        self, rungs: tuple[float, ...], declared: int, kept: list[int]
    ) -> None:
        rule = AdaptiveRule(rungs=rungs)
        assert [rule.rates_kept(i, declared) for i in range(len(rungs) - 1)] == kept

    @pytest.mark.parametrize("leads", ["lora", "full"])
    def test_the_best_lora_arm_and_full_fine_tuning_go_on(self, leads: str) -> None:
        """However far they are behind; other rates of the LoRA arm stop, since they are worse."""
        truth = replace(
            APART,
            ranks=(4, 16),
            lrs=(1e-3, 3e-3),
            full_lrs=(1e-4, 3e-4),
            accuracy=lambda rank, lr: (
                (0.9 if (rank is None) == (leads == "full") else 0.6)
                - (0.2 if lr in (3e-3, 3e-4) else 0.0)
                - (0.2 if rank == 4 else 0.0)
            ),
        )
        study = at_rung(synthetic_study(truth))
        going = {t.spec.arm_label for t in study.trials} - set(stopped(study))
        assert going == {"r=16 lr=0.001", "full lr=0.0001", "full lr=0.0003"}

    def test_rates_of_full_fine_tuning_thin_out_to_two(self) -> None:
        scores = {1e-4: 0.3, 3e-4: 0.9, 1e-3: 0.5}
        truth = replace(
            APART,
            full_lrs=tuple(scores),
            accuracy=lambda rank, lr: scores[lr] if rank is None else 0.6,
        )
        study = at_rung(synthetic_study(truth))
        assert stopped(study, 0) == {"full lr=0.0001": "worse"}
        assert {x for x in stopped(study, 1) if "full" in x} == {"full lr=0.0001"}
        assert [RULE.rates_kept(i, 4, is_full=True) for i in range(2)] == [3, 2]

    def test_ranks_compete_at_the_last_rung_only(self) -> None:
        truth = replace(APART, accuracy=lambda rank, lr: 0.4 if rank == 8 else 0.8)
        study = at_rung(synthetic_study(truth))
        assert stopped(study, 0) == {}
        assert stopped(study, 1) == {"r=8 lr=0.001": "worse"}
        (stop,) = stops_at_rung(study, "med", 1, RULE).values()
        assert stop.gap.low < -0.4 < stop.gap.high < -0.02
        assert stop.against.startswith("med-")
        assert "-8-" not in stop.against

    def test_the_order_of_arms_does_not_matter(self) -> None:
        study = at_rung(synthetic_study(RATES, 3))
        turned = replace(study, trials=study.trials[::-1])
        assert stops_at_rung(study, "med", 0, RULE) == stops_at_rung(turned, "med", 0, RULE)

    def test_an_arm_over_the_limit_stops_none_that_keeps_it(self) -> None:
        truth = replace(
            FLAT,
            full_lrs=(),
            accuracy=lambda rank, lr: 0.9 if rank == 32 else 0.4,
            forgetting=lambda rank, lr: 0.1 if rank == 32 else 0.0,
            objective={"max_forgetting": 0.05, "margin": 0.08},
        )
        assert stopped(at_rung(synthetic_study(truth))) == {}

    def test_an_arm_that_rises_late_passes_the_one_ahead(self) -> None:
        """Rungs at .2 and .5: each goes on by 5/3 of its last change. From .55 to .65 and on to
        .82; from .3 to .55 and on to .97."""
        rising = replace(FLAT, ranks=(4,), lrs=(1e-3, 3e-3), full_lrs=(), seed_spread=0.0)
        rising = replace(rising, base_accuracy=0.2, num_items=2000)
        earlier, now = (
            at_rung(synthetic_study(replace(rising, accuracy=lambda rank, lr, p=p: p[lr])))
            for p in ({1e-3: 0.55, 3e-3: 0.3}, {1e-3: 0.65, 3e-3: 0.55})
        )
        (stop,) = stops_at_rung(now, "med", 1, RULE, earlier).values()
        assert stop.against == "med-4-0.003-0"
        assert stop.gap.value == pytest.approx(0.1, abs=0.06)
        assert stop.reason == "outranked"
        assert stop.projected == pytest.approx(0.65 + 0.1 / 0.6 - 0.55 - 0.25 / 0.6, abs=0.15)
        (stop,) = stops_at_rung(now, "med", 1, RULE).values()
        assert (stop.against, stop.reason, stop.projected) == ("med-4-0.001-0", "worse", None)

    def test_nothing_reached_the_rung(self) -> None:
        study = synthetic_study(FLAT)
        study = with_trials(study, lambda t: TrialRecords(t.spec, "planned"))
        assert stops_at_rung(study, "med", 0, RULE) == {}
        assert next_trials(study, "med", RULE) == []


class TestSeeds:
    def played(self, truth: Truth, seed: int = 0) -> tuple[list[list[str]], StudyRecords]:
        """Rounds of next trials until there are none, and the study as it is then."""
        whole = synthetic_study(truth, seed)
        study, rounds = at_rung(whole), []
        while specs := next_trials(study, "med", RULE):
            ids = {s.trial_id for s in specs}
            rounds.append([s.label for s in specs])
            known = {k: v for k, v in whole.items.items() if k[0] in ids and k[2] == "validation"}
            study = replace(
                study,
                trials=tuple(
                    w if w.spec.trial_id in ids else t
                    for w, t in zip(whole.trials, study.trials, strict=True)
                ),
                items={**study.items, **known},
            )
        return rounds, study

    def test_seeds_go_to_the_arms_that_the_answer_rests_on(self) -> None:
        """A clear best rank: the smaller one is shown to be worse with its first seed."""
        truth = replace(FLAT, full_lrs=(), accuracy=lambda rank, lr: 0.9 if rank == 32 else 0.5)
        rounds, study = self.played(truth)
        assert rounds == [["med r=32 lr=0.001 seed=1"], ["med r=32 lr=0.001 seed=2"]]
        assert [a.summary.label for a in finalists(study, "med")] == [
            "r=32 lr=0.001",
            "r=8 lr=0.001",
        ]

    def test_in_the_end_the_best_arm_has_all_seeds(self) -> None:
        for seed in range(3):
            _, study = self.played(FLAT, seed)
            assert len(finalists(study, "med")[0].finished) == 3

    def test_lora_that_may_replace_full_fine_tuning_gets_its_seeds(self) -> None:
        """It is far behind, but only its test scores can show that."""
        truth = replace(FLAT, ranks=(8,), accuracy=lambda rank, lr: 0.9 if rank is None else 0.5)
        rounds, _ = self.played(truth)
        assert sorted(label for labels in rounds for label in labels) == [
            "med full lr=0.0005 seed=1",
            "med full lr=0.0005 seed=2",
            "med r=8 lr=0.001 seed=1",
            "med r=8 lr=0.001 seed=2",
        ]

    def test_the_best_full_arm_gets_its_seeds(self) -> None:
        """Within a margin of .1 of the best, all arms being equal."""
        rounds, _ = self.played(APART)
        assert any("full" in label for label in rounds[0])


@pytest.mark.parametrize("rungs", [(0.5, 0.25), (0.0, 0.5), (0.5, 1.0), (0.5, 0.5)])
def test_rungs_that_cannot_be(rungs: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="rungs"):
        AdaptiveRule(rungs=rungs)


class TestSimulation:
    """Small forms of benchmarks/adaptive.py and adaptive_replay.py."""

    def test_simulated_studies_cost_less_than_their_grid(self) -> None:
        found = [compare(WORLDS["random, parallel curves"], seed) for seed in range(3)]
        assert all(0.1 < result["ratio"] < 0.5 for result in found)
        assert sum(bool(result["parity"]) for result in found) >= 2

    def test_a_study_without_rungs_or_differences_trains_what_it_must(self) -> None:
        """Every first seed, and the later ones of finalists."""
        drawn = Drawn(WORLDS["random, parallel curves"], 0)
        played = play_adaptive(drawn, AdaptiveRule(rungs=()))
        arms = len({t.spec.arm for t in drawn.frame.trials})
        done = len([t for t in played.records.trials if t.status == "done"])
        assert played.trainings == done
        assert arms < done < len(drawn.frame.trials)

    def test_items_of_a_replayed_rung_have_the_score_of_the_curve(self) -> None:
        truth = Truth(cross=(), num_items=100, curve_items=50, curve_steps=(10, 20, 40))
        stored = Stored.of(synthetic_study(truth), "med", 1)
        ids = [t.spec.trial_id for t in stored.frame.trials[:3]]
        for (trial, task, _), items in stored.items(ids, "validation", 0.25).items():
            if trial != BASE:
                (point,) = [p for p in stored.trials[trial].curve if (p.task, p.step) == (task, 10)]
                assert items.scores.mean() == pytest.approx(point.score, abs=0.5 / 50 + 1e-9)
                assert set(items.scores) <= {0.0, 1.0}
        assert stored.frame.trials[0].spec.seed == 1
