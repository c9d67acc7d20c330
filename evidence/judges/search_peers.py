"""Search against Optuna's pruners, at equal training tokens.

    python evidence/judges/search_peers.py [--draws 16]

The rule of the comparison, set before any result was seen:

- Studies: the twelve random worlds of ``search.py``, draws that no rule was set on.
- Rankscope's budget is 0.235 of the grid's trials.
- The tokens that Rankscope's study took are the budget of every peer. A peer begins no trial once
  they are spent; a trial that has begun may end. Scoring and diverged trials cost nobody anything.
- A peer has the same arms, seeds and validation items, maximizes the same net gain, and draws arms
  in random order without repetition (``GridSampler``). It chooses the arm of the highest mean net
  gain of its completed trials, over validation and test items (Rankscope sees test items of its
  finalists alone), or the base if none is above 0.
- Rankscope's answer is the arm of fewest parameters that is expected to lose at most a quarter of
  the margin. *Rankscope, best* is the arm of the highest expected net gain of the same study, which
  is what peers look for. (Added after a first look at twelve studies that are not reported.)
- *no pruner*: every (arm, seed) is a trial, trained whole. *ASHA, 3* and *ASHA, 2*:
  ``SuccessiveHalvingPruner`` by the net gain at 1/9, 1/3 and all steps, or at 1/4, 1/2 and all.
- *Wilcoxon, seeds*: ``WilcoxonPruner`` with its defaults; a trial is an arm, its instances are its
  seeds, each trained whole. *Wilcoxon, items*: its instances are validation items, of the first
  seed at 1/5, 1/2 and all steps, then of every further seed.
- Compared: regret (true net gain of the best arm or the base, minus that of the choice), share
  within the margin, share of the grid's tokens, geometric mean of the chosen arms' parameters. A
  race is won or lost if the 95 % interval of the mean difference in regret excludes 0.
It prints one line of JSON. One thread.
"""

import argparse
import json
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import optuna

from rankscope.advise.arms import summarize_arms
from rankscope.advise.decide import decide
from rankscope.advise.results import expected, task_results
from rankscope.advise.retention import net_parts
from rankscope.records import BASE, EvalKey, ItemScores, Split
from search import MARGIN, RANDOM, SHARES, Drawn, Oracle, play_grid, play_search

warnings.simplefilter("ignore")  # Wilcoxon's is experimental
FIRST_DRAW = 6000
OURS, OUR_BEST = "Rankscope", "Rankscope, best"


@dataclass
class Curves:
    """A peer can ask this of a study: net gains of its trials at any share of their steps."""

    study: Oracle
    found: dict[tuple[Split, float], dict[EvalKey, ItemScores]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ids: dict[str, dict[int, str]] = defaultdict(dict)
        for name, trial in self.study.trials.items():
            if trial.status == "done":
                self.ids[trial.spec.arm_label][trial.spec.seed] = name
        self.done = [name for of_arm in self.ids.values() for name in of_arm.values()]
        parts = net_parts(play_grid(self.study).records, self.study.task)
        self.parts = [part for part in parts if part.weight]
        self.seeds = sorted({t.spec.seed for t in self.study.trials.values()})

    def instances(self, name: str, share: float, *splits: Split) -> np.ndarray:
        """One value for each item of every task that counts, whose mean is the net gain."""
        rows = []
        for part in self.parts:
            changes = []
            for split in splits:
                if (split, share) not in self.found:
                    self.found[split, share] = self.study.items(self.done, split, share)
                models = (self.found[split, share][m, part.task, split] for m in (name, BASE))
                tuned, base = (model.scores for model in models)
                changes.append(part.weight * (tuned - base[: len(tuned)]))
            rows.append(np.nan_to_num(np.concatenate(changes)))
        return np.concatenate([row * sum(map(len, rows)) / len(row) for row in rows])


@dataclass
class Run:
    """One study as a peer trains it."""

    curves: Curves
    spent: float = 0.0
    completed: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def completes(self, arm: str, name: str) -> None:
        both = self.curves.instances(name, 1.0, "validation", "test")
        self.completed[arm].append(float(both.mean()))

    @property
    def choice(self) -> str | None:
        means = {arm: np.mean(values) for arm, values in self.completed.items()}
        best = max(means, key=means.__getitem__, default=None)
        return best if best is not None and means[best] > 0 else None


Peer = tuple[optuna.pruners.BasePruner, Callable[[Run, optuna.Trial], float]]


def by_rungs(factor: int, rungs: Sequence[int]) -> Peer:
    """One trial of an arm and a seed, judged by its net gain at shares of ``rungs[-1]`` steps."""

    def objective(run: Run, trial: optuna.Trial) -> float:
        arm = trial.suggest_categorical("arm", sorted(run.curves.ids))
        seed = trial.suggest_categorical("seed", run.curves.seeds)
        name, before = run.curves.ids[arm].get(seed), 0.0
        if name is None:
            raise optuna.TrialPruned  # It diverged, which costs nobody anything
        for step in rungs:
            share = step / rungs[-1]
            run.spent += share - before
            before = share
            trial.report(float(run.curves.instances(name, share, "validation").mean()), step)
            if share < 1 and trial.should_prune():
                raise optuna.TrialPruned
        run.completes(arm, name)
        return run.completed[arm][-1]

    return optuna.pruners.SuccessiveHalvingPruner(1, factor), objective


def by_instances(rungs: Sequence[float], per_item: bool) -> Peer:
    """One trial of an arm: ``rungs`` of its first seed, then whole seeds."""

    def objective(run: Run, trial: optuna.Trial) -> float:
        arm = trial.suggest_categorical("arm", sorted(run.curves.ids))
        first, *others = run.curves.ids[arm].values()
        before, place = 0.0, 0
        for name, share in [(first, share) for share in rungs] + [(name, 1.0) for name in others]:
            run.spent += share - before
            before = share if share < 1 else 0.0
            if share == 1:
                run.completes(arm, name)
            found = run.curves.instances(name, share, "validation")
            for value in found if per_item else [found.mean()]:
                trial.report(float(value), place)
                place += 1
            if trial.should_prune():
                if arm in run.completed:
                    break
                raise optuna.TrialPruned
        return float(np.mean(run.completed[arm]))

    return optuna.pruners.WilcoxonPruner(), objective


PEERS = {
    "no pruner": by_rungs(2, (1,)),
    "ASHA, 3": by_rungs(3, (1, 3, 9)),
    "ASHA, 2": by_rungs(2, (1, 2, 4)),
    "Wilcoxon, seeds": by_instances((1.0,), per_item=False),
    "Wilcoxon, items": by_instances((0.2, 0.5, 1.0), per_item=True),
}


def play_peer(curves: Curves, peer: str, budget: float, seed: int) -> Run:
    run, (pruner, objective) = Run(curves), PEERS[peer]
    space: dict[str, Sequence[object]] = {"arm": sorted(curves.ids), "seed": curves.seeds}
    if isinstance(pruner, optuna.pruners.WilcoxonPruner):
        del space["seed"]
    sampler = optuna.samplers.GridSampler(space, seed=seed)
    study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
    stop = lambda study, _: study.stop() if run.spent >= budget - 1e-9 else None  # noqa: E731
    study.optimize(lambda trial: objective(run, trial), callbacks=[stop])
    return run


def race(study: Drawn, order: int) -> dict[str, tuple[float, float, float]]:
    """One study by everyone: regret, share of the grid's trainings, parameters of the choice."""
    curves = Curves(study)
    ours = play_search(study, round(SHARES[0] * len(curves.done)))
    (arms,) = summarize_arms(play_grid(study).records).values()
    sizes = {arm.summary.label: arm.summary.trainable_parameters for arm in arms}
    results = task_results(ours.records, study.task, summarize_arms(ours.records)[study.task])
    answer, ended = decide(results).chosen, [a.summary for a in results.arms if a.finished]
    top = max(ended, key=lambda arm: expected(arm).net.value)
    chosen = {OURS: (answer and answer.label, ours.trainings)}
    chosen[OUR_BEST] = (top.label if expected(top).net.value > 0 else None, ours.trainings)
    for peer in PEERS:
        run = play_peer(curves, peer, ours.trainings, order)
        chosen[peer] = (run.choice, run.spent)
    return {
        name: (
            study.best - (study.net(arm) if arm else 0.0),
            spent / len(curves.done),
            sizes.get(arm, np.nan),
        )
        for name, (arm, spent) in chosen.items()
    }


def summary(rows: Sequence[dict]) -> dict[str, dict]:
    """Regret in points, and by how much that of a peer is above Rankscope's."""
    found: dict[str, dict] = {}
    for name in rows[0]:
        lost, tokens, size = np.array([row[name] for row in rows]).T
        found[name] = {
            "regret": 100 * lost.mean(),
            "regret_95": 100 * np.quantile(lost, 0.95),
            "within": (lost <= MARGIN).mean(),
            "tokens": tokens.mean(),
            "parameters": np.exp(np.nanmean(np.log(size))),
        }
        found[name] = {key: round(float(value), 3) for key, value in found[name].items()}
        for own in (OURS, OUR_BEST) if name in PEERS else ():
            more = 100 * (lost - np.array([row[own][0] for row in rows]))
            error = 1.96 * more.std(ddof=1) / len(more) ** 0.5
            ends = [round(float(more.mean() + sign * error), 3) for sign in (-1, 1)]
            race = "won" if ends[0] > 0 else "lost" if ends[1] < 0 else "open"
            found[name][f"above {own}"] = [round(float(more.mean()), 3), *ends, race]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=16)
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    by_world = defaultdict[str, list[dict]](list)
    for seed in range(FIRST_DRAW, FIRST_DRAW + args.draws):
        for world in RANDOM:
            by_world[world.name].append(race(Drawn(world, seed), seed))
    result = {"all": summary([row for rows in by_world.values() for row in rows])}
    result["worlds"] = {name: summary(rows) for name, rows in by_world.items()}
    print(json.dumps({"benchmark": "search_peers", "optuna": optuna.__version__, **result}))


if __name__ == "__main__":
    main()
