"""The rounds of a search: what a study trains next, decided between rounds.

    a first design: a cross of ranks and rates, and full fine-tuning
    rounds of a few trials that may be the best, scored on validation items; ``advise/search.py``
    test items and analyses of the finalists

Every decision is a function of stored records, so a study ends alike in one process, with workers,
and after a kill. Time is the exception: minutes end a study where the clock says.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from math import inf

from rankscope.advise.search import NextRound, finalists, next_round
from rankscope.formatting import amount, rough_duration, unit_of
from rankscope.records import (
    BASE,
    FAILED,
    OVER_BUDGET,
    RoundRecord,
    StudyRecords,
    TrialRecords,
    TrialSpec,
)
from rankscope.run.context import Round, RunContext
from rankscope.run.prepared import first_trials
from rankscope.run.stages.evaluate import EvaluateStage
from rankscope.run.study_clock import training_work

NOT_NEEDED = "not needed for the answer"
LAST_SHARE = 0.1  # Of a budget of time, held back for what comes after the last round
FINALISTS = 4  # Arms that are expected to be scored on test items
UNMEASURED = 2.0
"""A kind of training that was not measured is taken to be as many times slower as the slowest."""


def run_rounds(context: RunContext, run_groups: Callable[[], None]) -> None:
    """Run a study round by round; ``run_groups`` runs the groups of the round that has begun.

    A grid is one round. It takes up what a search of the same file left out.
    """
    study, ledger = context.study, context.ledger
    if study.config.strategy == "search":
        _Search(context, run_groups).run()
        return
    ledger.retry_trials([i for i, status in ledger.statuses().items() if status == "skipped"])
    context.begin_round(study.trials, Round())
    run_groups()


class _Search:
    def __init__(self, context: RunContext, run_groups: Callable[[], None]) -> None:
        self.context, self.ledger = context, context.ledger
        self.declared = context.study  # Before any round: that of the context has its groups
        self.run_groups = run_groups
        self.budget = self.declared.search_budget
        self.over_budget: set[str] = set()

    def run(self) -> None:
        prompts = [t for t in self.declared.trials if t.prompt is not None]
        if not self.ledger.rounds():
            self.context.reporter.note(
                f"search: trains at most {self.budget.text} of the {len(self.declared.trials)} "
                "trials of the lists and those beyond their ends; 'budget' changes that"
            )
            self.put_round([])
        while True:
            # A round that was killed is finished before anything is decided anew.
            waiting = {i for of in self.ledger.rounds() for i in of.trial_ids}
            trials = [t for t in self.declared.candidates if t.trial_id in waiting]
            number = max(of.number for of in self.ledger.rounds())
            label = f"round {number}," if number else ""
            self.round([*trials, *prompts], Round(is_last=False, label=label))
            if not self.put_round([t for t in first_trials(self.declared) if t not in trials]):
                break
        others = [t for t in self.declared.trials if not t.trains]
        last = [*others, *(trial for arm in self.finalists() for trial in arm)]
        self.round(last, Round(label="finalists,"))
        asked = list[TrialSpec]()
        # Test items may have put another arm first.
        while (untested := self.untested()) and untested != asked:
            self.round(untested, Round(label="finalists,"))
            asked = untested
        self.end()

    def round(self, trials: Sequence[TrialSpec], this_round: Round) -> None:
        statuses = self.ledger.statuses()
        left = [trial for trial in trials if statuses[trial.trial_id] not in FAILED]
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

    # --- decisions

    def put_round(self, design: Sequence[TrialSpec]) -> bool:
        """Decide and store what is trained next: the rest of the first design, or what the scores
        ask for. False if nothing is, or nothing that the budget pays for."""
        rounds, records = self.ledger.rounds(), self.validated()
        number = 1 + max((of.number for of in rounds), default=-1)
        if not rounds:
            asked = {"": NextRound(tuple(first_trials(self.declared)))}
        elif design:
            asked = {"": NextRound(tuple(design))}
        else:
            asked = {task: self.asked(records, task) for task in self.declared.data.rows}
        wanted = [trial for of in asked.values() for trial in of.trials]
        paid = self.affordable(wanted, records)
        self.over_budget = {t.trial_id for t in wanted if t not in paid}
        known = self.ledger.statuses()
        new = {t.trial_id for t in paid} - known.keys()
        shown = [t for t in self.declared.candidates if t.trial_id in known.keys() | new]
        self.ledger.put_trials(shown)
        for task, of in asked.items():
            trials = [trial for trial in of.trials if trial in paid]
            if trials or not rounds:
                record = RoundRecord(
                    number=number,
                    task=task,
                    trial_ids=tuple(trial.trial_id for trial in trials),
                    labels=tuple(f"{t.arm_label} seed={t.seed}" for t in trials),
                    seconds=records.total_seconds,
                    leader=of.leader,
                    regret=None if of.regret == inf else of.regret,
                    after=None if of.after == inf else of.after,
                )
                rounds.append(record)
                self.say(record, sum(map(self.pace(records), trials)))
        self.ledger.put_rounds(rounds)
        return bool(paid)

    def say(self, record: RoundRecord, seconds: float) -> None:
        if record.regret is None or record.after is None:
            return
        unit = unit_of(next(t.score_unit for t in self.declared.task_records))
        took = f", {rough_duration(seconds)}" if seconds else ""
        fall = f"{amount(record.regret, unit)} -> {amount(record.after, unit)}"
        text = f"round {record.number}: {', '.join(record.labels)}{took}: expected regret {fall}"
        self.context.reporter.note(text)

    def asked(self, records: StudyRecords, task: str) -> NextRound:
        statuses = self.ledger.statuses()
        declared = {trial.trial_id for trial in self.declared.trials}
        waiting = [
            trial
            for trial in self.declared.candidates
            if trial.task == task
            and trial.trains
            and statuses.get(trial.trial_id, "planned") in ("planned", "skipped")
        ]
        begun = {t.spec.arm for t in records.trials if t.status not in ("planned", "skipped")}
        own = [t for t in waiting if t.trial_id in declared or t.arm in begun]
        beyond = [t for t in waiting if t not in own]
        return next_round(records, task, own, beyond, self.declared.config.until)

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
            if statuses.get(trial.trial_id) == "trained":
                return trial.trial_id in first | tested
            wanted = self.declared.wanted_evals(trial.trial_id, trial.task)
            return trial.trial_id in first and not view.evals.keys() >= {*wanted}

        return [trial for trial in self.declared.candidates if is_wanted(trial)]

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

    def affordable(self, trials: Iterable[TrialSpec], records: StudyRecords) -> list[TrialSpec]:
        """The first of ``trials`` that the rest of the budget pays for."""
        own = [trial for trial in records.trials if trial.spec.trains]
        begun = [trial.spec for trial in own if trial.status not in ("planned", "skipped")]
        num_trials = len(begun)
        tokens = float(sum(map(self.declared.training_tokens, begun)))
        hours = self.budget.hours or inf
        seconds = records.total_seconds + LAST_SHARE * 3600 * hours + self.last_seconds(records)
        pace, kept = self.pace(records), list[TrialSpec]()
        for trial in trials:
            num_trials, tokens = num_trials + 1, tokens + self.declared.training_tokens(trial)
            seconds += pace(trial)
            if not self.budget.pays_for(num_trials, tokens) or seconds > 3600 * hours:
                break
            kept.append(trial)
            if hours < inf and not begun:  # nothing was measured: one trial shows the pace
                break
        return kept

    def pace(self, records: StudyRecords) -> Callable[[TrialSpec], float]:
        """Seconds that a trial is expected to take here, by those that were trained and scored; 0
        before any was."""
        study = self.declared
        trained = [t for t in records.trials if t.train is not None and t.spec.trains]
        scoring = sum(e.seconds for e in records.evals.values())
        measured = scoring + sum(t.train.seconds for t in trained if t.train)
        if not trained or not measured:
            return lambda trial: 0.0
        # Whatever else took time, and what ran side by side, is shared out.
        share = records.total_seconds / measured
        of_trials = [e.seconds for e in records.evals.values() if e.trial_id != BASE]
        scored = sum(of_trials) / len(trained)
        paces: dict[bool, float] = {}
        for trial in trained:
            work = training_work(study, trial.spec)
            own = (trial.train.seconds if trial.train else 0.0) / max(1.0, work)
            paces[trial.spec.is_full] = max(own, paces.get(trial.spec.is_full, 0.0))

        def seconds(trial: TrialSpec) -> float:
            of_kind = paces.get(trial.is_full, UNMEASURED * max(paces.values()))
            return share * (of_kind * training_work(study, trial) + scored)

        return seconds

    def last_seconds(self, records: StudyRecords) -> float:
        """Seconds of the finalists' test items, by the base's."""
        tests = [e.seconds for e in records.evals.values() if e.split == "test"]
        of_base = [e.seconds for e in records.evals.values() if e.trial_id == BASE]
        return FINALISTS * sum(tests) if len(of_base) else 0.0

    def end(self) -> None:
        """Give every trial that is left its last status."""
        statuses = self.ledger.statuses()
        self.ledger.finish_trials([i for i, status in statuses.items() if status == "trained"])
        # One that an earlier run skipped may have another reason now.
        left = {i for i, status in statuses.items() if status in ("planned", "skipped")}
        self.ledger.skip_trials(left & self.over_budget, OVER_BUDGET)
        self.ledger.skip_trials(left - self.over_budget, NOT_NEEDED)
