"""Rules of adaptive studies: laws of stopping, and what is trained next."""

from dataclasses import replace

import numpy as np
import pytest
from synthetic_study import Truth, synthetic_study, with_trials

from adaptive import WORLDS, Drawn, compare, play_adaptive
from adaptive_replay import Stored
from rankscope.advise.adaptive import finalists, next_trials, stops_at_rung
from rankscope.records import BASE, StudyRecords, TrialRecords, TrialSpec

FLAT = Truth(cross=(), accuracy=lambda rank, lr: 0.7, forgetting=lambda rank, lr: 0.0)
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


def steps(spec: TrialSpec) -> int:
    return 40


def stopped(study: StudyRecords, rung: int = 1) -> set[str]:
    """Labels of the arms that stop; at the second rung all have leveled off."""
    labels = {t.spec.trial_id: t.spec.arm_label for t in study.trials}
    before = study if rung else None
    return {labels[i] for i in stops_at_rung(study, "med", steps, before, is_last=rung == 1)}


class TestStops:
    def test_an_arm_that_forgets_all_stops(self) -> None:
        """It gains as much as the others: the net gain is compared."""
        truth = replace(FLAT, forgetting=lambda rank, lr: 0.7 if rank == 8 else 0.0)
        assert stopped(at_rung(synthetic_study(truth))) == {"r=8 lr=0.001"}

    def test_hopeless_rates_stop_and_ranks_compete_at_the_last_rung_only(self) -> None:
        """Rates are apart by 0.12; after the first rung no rank stops for the other's sake."""
        study = at_rung(synthetic_study(RATES))
        at_first = stopped(study, 0)
        assert {"r=4 lr=0.0001", "r=16 lr=0.0001"} <= at_first
        assert not {"r=4 lr=0.003", "r=16 lr=0.003"} & at_first
        truth = replace(FLAT, accuracy=lambda rank, lr: 0.4 if rank == 8 else 0.8)
        ranks = at_rung(synthetic_study(truth))
        assert (stopped(ranks, 0), stopped(ranks, 1)) == (set(), {"r=8 lr=0.001"})
        (stop,) = stops_at_rung(ranks, "med", steps, ranks, is_last=True).values()
        assert stop.low < stop.heading < stop.high
        assert stop.heading < -0.2
        assert stop.difference == pytest.approx(-0.4, abs=0.1)
        assert stop.p < 0.1
        assert stop.rival != "r=8 lr=0.001"

    def test_a_rate_that_broke_a_model_saves_no_other(self) -> None:
        """It is 30 nats below the base; other rates are apart by 0.12 as ever."""

        def score(rank: int | None, lr: float) -> float:
            return -30.0 if (rank, lr) == (16, 3e-3) else 0.4 + 0.12 * np.log10(lr / 1e-4)

        truth = replace(RATES, metric="log_probability", accuracy=score)
        whole = {"r=4 lr=0.0001", "r=16 lr=0.0001", "r=16 lr=0.003"}
        assert whole <= stopped(at_rung(synthetic_study(truth)), 0)

    @pytest.mark.parametrize("leads", ["lora", "full"])
    def test_the_best_arm_and_the_best_lora_arm_go_on(self, leads: str) -> None:
        truth = replace(
            FLAT,
            ranks=(4, 16),
            accuracy=lambda rank, lr: (
                (0.9 if (rank is None) == (leads == "full") else 0.4) - 0.2 * (rank == 4)
            ),
        )
        study = at_rung(synthetic_study(truth))
        going = {t.spec.arm_label for t in study.trials} - stopped(study)
        assert "r=16 lr=0.001" in going
        assert ("full lr=0.0005" in going) == (leads == "full")

    def test_arms_of_more_rows_stop_none_of_fewer(self) -> None:
        """Those of 64 rows are 0.3 below those of 1,024; of each, r = 4 is 0.2 below r = 16."""
        truth = replace(
            RATES,
            lrs=(1e-4, 1e-3),
            accuracy=lambda rank, lr: 0.9 - 0.2 * (rank == 4) - 0.3 * (lr < 1e-3),
        )

        def with_rows(trial: TrialRecords) -> TrialRecords:
            rows = 64 if trial.spec.lr < 1e-3 else 1024
            return replace(trial, spec=trial.spec.model_copy(update={"rows": rows, "lr": 1e-3}))

        study = at_rung(with_trials(synthetic_study(truth), with_rows))
        assert stopped(study) == {"r=4 lr=0.001 rows=64", "r=4 lr=0.001 rows=1024"}

    def test_the_order_of_arms_does_not_matter(self) -> None:
        study = at_rung(synthetic_study(RATES, 3))
        turned = replace(study, trials=study.trials[::-1])
        assert stopped(study, 0) == stopped(turned, 0)

    def test_an_arm_that_rises_late_is_expected_ahead(self) -> None:
        """From 0.55 to 0.6 against from 0.3 to 0.59: half of the last rise is expected again."""
        rising = replace(FLAT, ranks=(4,), lrs=(1e-3, 3e-3), full_lrs=(), seed_spread=0.0)
        rising = replace(rising, base_accuracy=0.2, num_items=2000)
        earlier, now = (
            at_rung(synthetic_study(replace(rising, accuracy=lambda rank, lr, p=p: p[lr])))
            for p in ({1e-3: 0.55, 3e-3: 0.3}, {1e-3: 0.6, 3e-3: 0.59})
        )
        stops = stops_at_rung(now, "med", steps, earlier, is_last=False).values()
        assert {stop.rival for stop in stops} <= {"r=4 lr=0.003"}

    def test_nothing_reached_the_rung(self) -> None:
        study = synthetic_study(FLAT)
        study = with_trials(study, lambda t: TrialRecords(t.spec, "planned"))
        assert stops_at_rung(study, "med", steps, is_last=False) == {}
        assert next_trials(study, "med") == []


class TestSeeds:
    def test_seeds_go_to_the_arms_that_may_be_best(self) -> None:
        """Never to the one that is hopeless; none at all once the answer is sure."""
        truth = replace(FLAT, accuracy=lambda rank, lr: 0.4 if rank == 2 else 0.8)
        study = at_rung(synthetic_study(truth))
        labels = [s.arm_label for s in next_trials(study, "med")]
        assert labels
        assert "r=2 lr=0.001" not in labels
        assert next_trials(study, "med", until=0.01) == []

    def test_a_dearer_trial_comes_later(self) -> None:
        truth = replace(FLAT, seed_spread=0.05, num_items=2000)
        studies = [at_rung(synthetic_study(truth, seed)) for seed in range(8)]
        unsure = [(s, found) for s in studies if len(found := next_trials(s, "med")) > 1]
        assert unsure
        for study, (first, second, *_) in unsure:
            dear = {first.trial_id: 1000.0}
            assert next_trials(study, "med", cost=dear)[0] == second

    def test_none_is_worth_it_if_every_arm_forgets_too_much(self) -> None:
        truth = replace(FLAT, forgetting=lambda rank, lr: 0.4, objective={"max_forgetting": 0.05})
        study = at_rung(synthetic_study(truth))
        assert next_trials(study, "med") == []

    def test_finalists_begin_with_the_recommended_arm(self) -> None:
        truth = replace(FLAT, full_lrs=(), accuracy=lambda rank, lr: 0.9 if rank == 32 else 0.5)
        study = at_rung(synthetic_study(truth))
        assert finalists(study, "med")[0].summary.label == "r=32 lr=0.001"


class TestSimulation:
    """Small forms of benchmarks/adaptive.py and adaptive_replay.py."""

    def test_simulated_studies_cost_less_than_their_grid(self) -> None:
        found = [compare(WORLDS["random, parallel curves"], seed) for seed in range(3)]
        assert all(0.1 < result["ratio"] < 0.5 for result in found)
        assert sum(bool(result["parity"]) for result in found) >= 2

    def test_a_study_without_rungs_or_differences_trains_what_it_must(self) -> None:
        """Every first seed, and later ones of some arms."""
        drawn = Drawn(WORLDS["random, parallel curves"], 0)
        played = play_adaptive(drawn, rungs=())
        arms = len({t.spec.arm for t in drawn.frame.trials})
        done = len([t for t in played.records.trials if t.status == "done"])
        assert played.trainings == done
        assert arms <= done < len(drawn.frame.trials)

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
