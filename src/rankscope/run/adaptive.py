"""The rounds of an adaptive study: which trials train how far, decided between rounds.

    the first seed of every arm, from rung to rung; ``advise/adaptive.py`` says which trials stop
    the survivors to their end, scored on validation items
    further trials, those worth most per token, until the answer is as sure as was asked for
    test items and analyses of the finalists

Groups within a round are independent, and every decision is a function of stored records. So a
study ends alike in one process, with workers, and after a kill.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from math import ceil, inf

from rankscope.advise.adaptive import finalists, next_trials, stops_at_rung
from rankscope.advise.evidence import rung_items
from rankscope.records import (
    BASE,
    FAILED,
    LEFT_OUT,
    OVER_BUDGET,
    EvalKey,
    ItemScores,
    StopRecord,
    StudyRecords,
    TrainRecord,
    TrialRecords,
    TrialSpec,
)
from rankscope.run.context import Round, RunContext
from rankscope.run.prepared import PreparedStudy, first_trials
from rankscope.run.stages.evaluate import EvaluateStage
from rankscope.run.stages.train import TrainStage

NOT_NEEDED = "not needed for the answer"
TYPICAL_FINALISTS = 1
"""Arms of a task that get all their seeds, as a plan counts them; a study that is sure trains fewer
and one that is not trains more (docs/findings, adaptive studies)."""


def run_rounds(context: RunContext, run_groups: Callable[[], None]) -> None:
    """Run a study round by round; ``run_groups`` runs the groups of the round that has begun.

    A grid is one round. It takes up what an adaptive study of the same file left out.
    """
    study, ledger = context.study, context.ledger
    if study.config.strategy == "adaptive":
        _AdaptiveStudy(context, run_groups).run()
        return
    ledger.retry_trials([i for i, status in ledger.statuses().items() if status in LEFT_OUT])
    context.begin_round(study.trials, Round())
    run_groups()


class _AdaptiveStudy:
    def __init__(self, context: RunContext, run_groups: Callable[[], None]) -> None:
        self.context, self.ledger = context, context.ledger
        self.declared = context.study  # Before any round: that of the context has its groups
        self.run_groups = run_groups
        self.first_over_budget: set[str] = set()
        self.over_budget: set[str] = set()

    def run(self) -> None:
        first = first_trials(self.declared)
        begun = {trial.trial_id for trial in first}
        seed = self.declared.config.seeds[0]
        untrained = [t for t in self.declared.trials if not t.trains]
        of_seed = {t.trial_id for t in self.declared.trials if t.seed == seed and t.trains}
        self.over_budget = self.first_over_budget = of_seed - begun
        self.remove_points_without_items(first)
        rungs = len(self.declared.rungs)
        for rung in range(rungs):
            label = f"rung {rung + 1} of {rungs},"
            self.round(first, Round(rung=rung, is_last=False, label=label))
            self.stop_trials(rung)
        prompts = [t for t in untrained if t.prompt is not None]
        self.round([*first, *prompts], Round(is_last=False, label="first seed,"))
        # A round that was killed is finished before anything is decided anew.
        further = self.ledger.round_trials()
        while True:
            waiting = [t for t in self.declared.trials if t.trial_id in further]
            self.round(waiting, Round(is_last=False, label="further seeds,"))
            new = self.affordable(self.next_trials())
            if not new:
                break
            further = [trial.trial_id for trial in new]
            self.ledger.put_round(further)
        last = [*untrained, *(trial for arm in self.finalists() for trial in arm)]
        self.round(last, Round(label="finalists,"))
        asked = list[TrialSpec]()
        # Test items may have put another arm first.
        while (untested := self.untested()) and untested != asked:
            self.round(untested, Round(label="finalists,"))
            asked = untested
        self.end()

    def round(self, trials: Sequence[TrialSpec], this_round: Round) -> None:
        statuses, ended = self.ledger.statuses(), FAILED | {"stopped"}
        left = [trial for trial in trials if statuses[trial.trial_id] not in ended]
        # The last round also removes what a crash left; it is to come even for no trial. So is one
        # whose decision compares with a base that a worker has not scored yet.
        if left or this_round.is_last or EvaluateStage(self.context).missing_of_base():
            skipped = [t.trial_id for t in left if statuses[t.trial_id] == "skipped"]
            self.ledger.retry_trials(skipped)
            self.context.begin_round(left, this_round)
            self.run_groups()
            # A shortage of memory may have split groups, which changes the ledger alone.
            self.context.begin_round(left, this_round)
            self.context.count_time()  # the run may be killed later

    def remove_points_without_items(self, trials: Sequence[TrialSpec]) -> None:
        """Remove the points at rungs that a grid stored: they lack the items by which trials are
        compared. Trials that it trained to their end keep theirs, for no rung judges them."""
        statuses = self.ledger.statuses()
        left = {t.trial_id: t for t in trials if statuses[t.trial_id] == "planned"}
        points = self.ledger.curve_points(list(left.values()))
        self.ledger.remove_points(
            key
            for key, point in points.items()
            if point.step in self.declared.rung_steps(left[point.trial_id])
            and not point.item_scores
        )

    # --- decisions

    def stop_trials(self, rung: int) -> None:
        """Stop the trials that lost at a rung. Trials that it stopped before are judged again with
        the others, so a run that continues decides the same."""
        records, trains = self.ledger.load(), self.rung_trains(rung)
        seed = self.declared.config.seeds[0]
        view = _rung_view(records, trains, seed)
        earlier = _rung_view(records, self.rung_trains(rung - 1), seed) if rung else None
        is_last, steps = rung == len(self.declared.rungs) - 1, self.declared.num_steps
        stops: dict[str, StopRecord] = {}
        for task in self.declared.data.rows:
            stops |= stops_at_rung(view, task, steps, earlier, is_last=is_last)
        by_id = {trial.trial_id: trial for trial in self.declared.trials}
        statuses = self.ledger.statuses()
        stopped = [stop for i, stop in stops.items() if statuses[i] == "planned"]
        if not stopped:
            return
        for record in stopped:
            self.context.reporter.note(f"{by_id[record.trial_id].label} stopped {record.text}")
        stage, gone = TrainStage(self.context), {record.trial_id for record in stopped}
        before = [
            stage.keep_checkpoint(group, {t.trial_id for t in group} - gone)
            for group in map(stage.untrained, self.context.study.groups)
            if group
        ]
        self.ledger.commit(stopped)
        for checkpoint in before:
            checkpoint.remove()

    def rung_trains(self, rung: int) -> dict[str, TrainRecord]:
        """By trial that reached a rung, its training as far as it went."""
        steps = {t.trial_id: self.declared.rung_steps(t) for t in self.declared.trials}
        return self.ledger.rung_trains({i: found[rung] for i, found in steps.items() if found})

    def next_trials(self) -> list[TrialSpec]:
        view = self.validated()
        own = [trial for trial in self.declared.trials if trial.trains]
        tokens = {trial.trial_id: float(self.declared.training_tokens(trial)) for trial in own}
        until = self.declared.config.until
        by_task = [next_trials(view, task, until, tokens) for task in self.declared.data.rows]
        return [trial for of_task in by_task for trial in of_task]

    def finalists(self) -> list[list[TrialSpec]]:
        """By finalist, its trials that were trained."""
        view = self.validated()
        arms = [arm for task in self.declared.data.rows for arm in finalists(view, task)]
        return [[trial.spec for trial in arm.finished] for arm in arms]

    def untested(self) -> list[TrialSpec]:
        """The trained trials of the recommended arms that lack test scores or analyses, and those
        whose test scores a killed run stored in part; these may put another arm first."""
        view = self.with_trained(self.ledger.load())
        arms = [arm for task in self.declared.data.rows for arm in finalists(view, task)[:1]]
        first = {trial.spec.trial_id for arm in arms for trial in arm.finished}
        tested = {model for model, _, split in view.evals if split == "test"}
        statuses = self.ledger.statuses()

        def is_wanted(trial: TrialSpec) -> bool:
            if statuses[trial.trial_id] == "trained":
                return trial.trial_id in first | tested
            wanted = self.declared.wanted_evals(trial.trial_id, trial.task)
            return trial.trial_id in first and not view.evals.keys() >= {*wanted}

        return [trial for trial in self.declared.trials if is_wanted(trial)]

    def validated(self) -> StudyRecords:
        """The records without test items: a run that goes on after a kill would see those of some
        arms."""
        records = self.ledger.load()
        items = {k: v for k, v in records.items.items() if k[0] == BASE or k[2] == "validation"}
        return self.with_trained(replace(records, items=items))

    def with_trained(self, records: StudyRecords) -> StudyRecords:
        """The records with trials that were scored as finished ones, and those that were left out
        before as planned ones."""

        def seen(trial: TrialRecords) -> TrialRecords:
            if trial.status == "trained":
                return replace(trial, status="done")
            return replace(trial, status="planned") if trial.status == "skipped" else trial

        return replace(records, trials=tuple(map(seen, records.trials)))

    # --- budget

    def affordable(self, trials: Sequence[TrialSpec]) -> list[TrialSpec]:
        """The first of ``trials`` that the rest of the budget pays for."""
        budget, records = self.declared.config.budget, self.ledger.load()
        if budget is None:
            return list(trials)
        own = [trial for trial in records.trials if trial.spec.trains]
        begun = [trial for trial in own if trial.status not in ("planned", "skipped")]
        num_trials, tokens = len(begun), float(sum(self.tokens(trial) for trial in begun))
        hours = records.total_seconds / 3600
        kept = list[TrialSpec]()
        for trial in trials if hours < (budget.hours or inf) else ():
            num_trials, tokens = num_trials + 1, tokens + self.declared.training_tokens(trial)
            if not budget.pays_for(num_trials, tokens):
                break
            kept.append(trial)
        # Not those of an earlier round: the answer may no longer ask for them.
        unpaid = {trial.trial_id for trial in trials[len(kept) :]}
        self.over_budget = self.first_over_budget | unpaid
        return kept

    def tokens(self, trial: TrialRecords) -> int:
        """What a trial that began has cost; in full if it failed."""
        if trial.stop is not None:
            return trial.stop.train.num_tokens
        return self.declared.training_tokens(trial.spec)

    def end(self) -> None:
        """Give every trial that is left its last status."""
        statuses = self.ledger.statuses()
        self.ledger.finish_trials([i for i, status in statuses.items() if status == "trained"])
        # One that an earlier run skipped may have another reason now.
        left = {i for i, status in statuses.items() if status in ("planned", "skipped")}
        self.ledger.skip_trials(left & self.over_budget, OVER_BUDGET)
        self.ledger.skip_trials(left - self.over_budget, NOT_NEEDED)


def expected_shares(study: PreparedStudy) -> dict[str, float]:
    """By trial, the share of its training that an adaptive study is expected to take.

    Nothing is known yet: the rates of a rank thin out evenly, down to one after the last rung, and
    later seeds are trained of ``TYPICAL_FINALISTS`` arms of a task. Trials and tokens of the budget
    limit both; its hours do not, for they depend on the machine.
    """
    seed = study.config.seeds[0]
    trials = [trial for trial in study.trials if trial.trains]
    first = [trial for trial in trials if trial.seed == seed]
    arms = Counter(trial.task for trial in first)
    shares = {t.trial_id: min(1.0, TYPICAL_FINALISTS / arms[t.task]) for t in trials}
    rates = defaultdict[Hashable, list[TrialSpec]](list)
    for trial in first:
        rates[trial.arm_without_lr].append(trial)
    for of_rank in rates.values():
        for position, trial in enumerate(of_rank):
            kept = len(of_rank) / (len(study.rungs) + 1)
            stops = (
                share
                for rung, share in enumerate(study.rungs)
                if position >= ceil(kept * (len(study.rungs) - rung))
            )
            shares[trial.trial_id] = next(stops, 1.0)
    return _within_budget(study, shares)


def _within_budget(study: PreparedStudy, shares: Mapping[str, float]) -> dict[str, float]:
    """Shares cut to the trials and tokens of the budget, which pays for first seeds first."""
    budget = study.config.budget
    if budget is None:
        return dict(shares)
    seed, begun = study.config.seeds[0], {trial.trial_id for trial in first_trials(study)}
    kept = {trial_id: share for trial_id, share in shares.items() if trial_id in begun}
    seeds = {trial.trial_id: trial.seed for trial in study.trials}
    later = {trial_id: share for trial_id, share in shares.items() if seeds[trial_id] != seed}
    whole = {trial.trial_id: study.training_tokens(trial) for trial in study.trials}
    tokens = (budget.tokens or inf) - sum(share * whole[i] for i, share in kept.items())
    wanted = sum(share * whole[i] for i, share in later.items())
    trials = (budget.trials or inf) - len(begun)
    part = min(1.0, trials / max(1.0, sum(later.values())), tokens / max(1.0, wanted))
    return dict.fromkeys(shares, 0.0) | kept | {i: part * share for i, share in later.items()}


def _rung_view(
    records: StudyRecords, trains: Mapping[str, TrainRecord], first_seed: int
) -> StudyRecords:
    """The records as if training had ended at a rung, for trials that reached it: ``trains``."""
    items: dict[EvalKey, ItemScores] = {k: records.items[k] for k in records.items if k[0] == BASE}
    trials = []
    for trial in records.trials:
        trial_id, train = trial.spec.trial_id, trains.get(trial.spec.trial_id)
        if train is None:
            has_failed = trial.spec.seed == first_seed and trial.status in FAILED
            trials.append(trial if has_failed else replace(trial, status="planned", stop=None))
            continue
        trials.append(replace(trial, status="done", train=train, stop=None))
        for point in trial.curve:
            if point.step == train.steps and point.item_scores:
                base = items[BASE, point.task, "validation"]
                items[trial_id, point.task, "validation"] = rung_items(point, base)
    return replace(records, trials=tuple(trials), items=items)
