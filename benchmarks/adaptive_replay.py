"""Finished grid studies with learning curves, replayed by the rules of adaptive studies.

    python benchmarks/adaptive_replay.py OUT [OUT ...]

For every training task, and every seed whose trials have curves as the first one: the decision of
the whole grid, that of the adaptive study, the points lost by all of the grid's scores, and the
cost. Then how many pairs of ranks, and of learning rates of one rank, stood in another order at a
rung than at the end.

A curve keeps the score of a rung and not its items, so these are made from the items of the trial's
end: as few answers as give the curve's score are changed, those first that fewest models get right
(or wrong) at the end. What a curve does not have (log-probabilities of right answers) is taken to
move evenly from the base's to the end's.
"""

import argparse
import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from adaptive import play_adaptive, play_grid
from rankscope.advise.adaptive import RUNGS
from rankscope.advise.arms import summarize_arms
from rankscope.advise.decide import decide
from rankscope.advise.results import task_results
from rankscope.records import (
    BASE,
    WAITING,
    EvalKey,
    ItemScores,
    Split,
    StudyRecords,
    TrialRecords,
    finished_trials,
)
from rankscope.tools.compare import load_finished_study

Array = np.ndarray


@dataclass
class Stored:
    """One training task of a finished study, one of its seeds before the others."""

    frame: StudyRecords
    task: str
    trials: Mapping[str, TrialRecords] = field(init=False)

    def __post_init__(self) -> None:
        self.trials = {t.spec.trial_id: t for t in self.frame.trials}

    @classmethod
    def of(cls, study: StudyRecords, task: str, first_seed: int) -> "Stored":
        own = [t for t in study.trials if t.spec.task == task and t.status not in WAITING]
        own.sort(key=lambda t: t.spec.seed != first_seed)
        return cls(replace(study, trials=tuple(own)), task)

    def items(
        self, ids: Iterable[str], split: Split, share: float = 1.0
    ) -> dict[EvalKey, ItemScores]:
        names = {BASE, *ids}
        found = {k: v for k, v in self.frame.items.items() if k[0] in names and k[2] == split}
        if share == 1.0:
            return found
        return {k: v if k[0] == BASE else self.at(k, v, share) for k, v in found.items()}

    def at(self, key: EvalKey, end: ItemScores, share: float) -> ItemScores:
        """Items at a rung."""
        base = self.frame.items[BASE, *key[1:]]
        points = [p for p in self.trials[key[0]].curve if p.task == key[1]]
        n = min((p.n for p in points), default=len(end.scores))
        first = ItemScores(
            *(part[:n] for part in (end.item_ids, end.scores, end.gold_logprobs)), end.subjects[:n]
        )
        gold = base.gold_logprobs[:n] + share * (first.gold_logprobs - base.gold_logprobs[:n])
        if not points:
            return replace(first, gold_logprobs=gold)
        steps = max(p.step for p in points)
        score = np.interp(
            share * steps,
            [0, *(p.step for p in points)],
            [base.scores[:n].mean(), *(p.score for p in points)],
        )
        return replace(
            first, scores=self.moved(key, first.scores, float(score)), gold_logprobs=gold
        )

    def moved(self, key: EvalKey, scores: Array, mean: float) -> Array:
        if not ((scores == 0) | (scores == 1)).all():
            return scores + mean - scores.mean()
        every = [s.scores[: len(scores)] for k, s in self.frame.items.items() if k[1:] == key[1:]]
        hardest = np.argsort(np.mean(every, axis=0), kind="stable")
        missing = round(mean * len(scores)) - int(scores.sum())
        order = hardest if missing < 0 else hardest[::-1]
        changed = [i for i in order if scores[i] == (missing < 0)][: abs(missing)]
        moved = scores.copy()
        moved[changed] = 1 - moved[changed]
        return moved


def decided(records: StudyRecords, task: str) -> tuple[str, str | None]:
    """The decision, and the label of the arm that is recommended."""
    answer = decide(task_results(records, task, summarize_arms(records)[task]))
    return answer.decision, None if answer.chosen is None else answer.chosen.label


def measured(records: StudyRecords, task: str) -> dict[str, float]:
    """Net gain of every arm as it was measured, by label."""
    results, nets = task_results(records, task, summarize_arms(records)[task]), defaultdict(float)
    for place, part in itertools.product(results.scored, results.measured):
        change = part.changes.means[part.places.index(place)] if part.part.weight else 0.0
        nets[results.arms[place].summary.label] += part.part.weight * float(change)
    return nets


def utilities(study: Stored, share: float, seed: int) -> dict[tuple[object, float], float]:
    """(settings without the rate, rate) -> net gain of one seed at a share of its steps."""
    done = [t for t in finished_trials(study.trials.values()) if t.spec.seed == seed]
    items = study.items([t.spec.trial_id for t in done], "validation", share)
    nets = measured(replace(study.frame, trials=tuple(done), items=items), study.task)
    return {(t.spec.arm_without_lr, t.spec.lr): nets[t.spec.arm_label] for t in done}


def reversals(study: Stored, share: float) -> dict[str, tuple[int, int]]:
    """Pairs apart by more than the margin in the end, and how many stood the other way round."""
    margin = study.frame.config.objective.margin
    found = {"rates": [0, 0], "ranks": [0, 0]}
    for seed in seeds_with_curves(study.frame, study.task):
        end, now = utilities(study, 1.0, seed), utilities(study, share, seed)
        best = {s: max((k for k in end if k[0] == s), key=end.__getitem__) for s, _ in end}
        pairs = {
            "rates": [(a, b) for a, b in itertools.combinations(end, 2) if a[0] == b[0]],
            "ranks": list(itertools.combinations(best.values(), 2)),
        }
        for kind, of_kind in pairs.items():
            for a, b in of_kind:
                if abs(end[a] - end[b]) > margin:
                    found[kind][0] += 1
                    found[kind][1] += (end[a] - end[b]) * (now[a] - now[b]) < 0
    return {kind: (pairs, turned) for kind, (pairs, turned) in found.items()}


def seeds_with_curves(study: StudyRecords, task: str) -> list[int]:
    """Seeds all of whose finished trials have a curve."""
    done = [t for t in finished_trials(study.trials) if t.spec.task == task]
    return sorted({t.spec.seed for t in done} - {t.spec.seed for t in done if not t.curve})


def replay(study: StudyRecords, task: str) -> None:
    """Print what the rules make of one task."""
    for seed in seeds_with_curves(study, task):
        stored = Stored.of(study, task, seed)
        grid, ours = play_grid(stored), play_adaptive(stored)
        nets = measured(grid.records, task)
        decisions = [decided(grid.records, task), decided(ours.records, task)]
        worth = [0.0 if label is None else nets[label] for _, label in decisions]
        cells = (
            f"{study.name}, {task}",
            str(seed),
            *(f"{decision}: {label}" for decision, label in decisions),
            f"{100 * (worth[0] - worth[1]):.1f}",
            f"{ours.trainings:.1f} of {grid.trainings:.0f} = {ours.trainings / grid.trainings:.2f}",
            f"{ours.scored / grid.scored:.2f}",
        )
        print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    studies = [load_finished_study(folder) for folder in parser.parse_args().folders]
    tasks = [(s, t) for s in studies for t in dict.fromkeys(x.spec.task for x in s.trials)]
    print(
        "| study | first seed | grid | adaptive | points lost | trainings | answers |\n"
        + "|---" * 7
        + "|"
    )
    for study, task in tasks:
        replay(study, task)
    shares = sorted({0.125, *RUNGS})
    print(
        "\n| study | pairs | apart in the end | "
        + " | ".join(f"reversed at {s:g}" for s in shares)
        + " |"
    )
    print("|---" * (3 + len(shares)) + "|")
    for study, task in tasks:
        stored = Stored.of(study, task, 0)
        found = [reversals(stored, share) for share in shares]
        for kind in found[0]:
            turned = [str(f[kind][1]) for f in found]
            print(
                f"| {study.name}, {task} | {kind} | {found[0][kind][0]} | "
                + " | ".join(turned)
                + " |"
            )


if __name__ == "__main__":
    main()
