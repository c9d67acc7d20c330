"""The rounds of a search, which decides between rounds what a study trains next.

    a first design: a cross of ranks and rates, and full fine-tuning
    rounds of a few trials that may be the best, scored on validation items; ``advise/search.py``
    test items and analyses of the finalists

Every decision is a function of stored records. So a study ends alike in one process, with workers,
and after a kill. Time is the exception: a budget of minutes ends a study by the clock.
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
from rankscope.run.stages.evaluate import EvaluateStage
from rankscope.run.study_clock import training_work

NOT_NEEDED = "not needed for the answer"
LAST_SHARE = 0.1  # Share of a time budget, held back for work after the last round
FINALISTS = 4  # Expected number of arms that are scored on test items
UNMEASURED = 2.0
"""Factor by which an unmeasured kind of training is taken to be slower than the slowest one."""


def run_rounds(context: RunContext, run_groups: Callable[[], None]) -> None:
    """Run a study round by round; ``run_groups`` runs the groups of the current round.

    A grid is one round. It also trains what a search of the same file left out.
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
        self.study = context.study
        self.run_groups = run_groups
        self.budget = self.study.search_budget
        self.over_budget: set[str] = set()

    def run(self) -> None:
        prompts = [t for t in self.study.trials if t.prompt is not None]
        self.context.count_time()  # of the base's scores
        if not self.ledger.rounds():
            self.context.reporter.note(
                f"search: at most {self.budget.text}; the lists have "
                f"{len(self.study.trials)} trials. 'budget' changes that"
            )
            self.put_round()
        while True:
            # Trials of a round that a kill or a smaller budget left come before the next round.
            rounds = self.ledger.rounds()
            asked = self.asked_for(rounds)
            # Trials beyond the lists count, too: a grid in between did not show them.
            shown = self.ledger.statuses().keys() | {trial.trial_id for trial in asked}
            self.ledger.put_trials([t for t in self.study.candidates if t.trial_id in shown])
            records, waiting = self.validated(), set(self.waiting())
            left = [trial for trial in asked if trial in waiting]
            paid = self.affordable(left, records)
            self.over_budget = {t.trial_id for t in left if t not in paid}
            self.say(rounds, paid, records)
            # A killed grid may have begun others.
            waiting -= set(paid)
            trials = [t for t in self.study.candidates if t.trains and t not in waiting]
            label = f"round {rounds[-1].number}," if rounds[-1].number else ""
            self.round([*trials, *prompts], Round(is_last=False, label=label))
            if not paid if self.over_budget else not self.put_round():
                break
        others = [t for t in self.study.trials if not t.trains]
        arms = self.finalists()
        last = [*others, *(trial for arm in arms for trial in arm)]
        # A budget of minutes gives training the time that analyses of all finalists would take.
        own = [*others, *(arms[0] if arms else ())]
        first = tuple(t.trial_id for t in own) if self.budget.hours else None
        self.round(last, Round(label="finalists,", analyzed=first))
        asked = list[TrialSpec]()
        # Test items may have put another arm first.
        while (untested := self.untested()) and untested != asked:
            self.round(untested, Round(label="finalists,"))
            asked = untested
        self.end()

    def round(self, trials: Sequence[TrialSpec], this_round: Round) -> None:
        statuses = self.ledger.statuses()
        left = [trial for trial in trials if statuses[trial.trial_id] not in FAILED]
        # The last round also removes leftovers of a crash, so it comes even for no trial. So does a
        # round whose decision compares with a base that a worker has not scored yet.
        if left or this_round.is_last or EvaluateStage(self.context).missing_of_base():
            skipped = [t.trial_id for t in left if statuses[t.trial_id] == "skipped"]
            self.ledger.retry_trials(skipped)
            self.context.begin_round(left, this_round)
            self.run_groups()
            # A shortage of memory may have split groups, which changes the ledger alone.
            self.context.begin_round(left, this_round)
            self.context.count_time()  # the run may be killed later

    # --- decisions

    def put_round(self) -> bool:
        """Decide and store what is trained next: the first design, or trials that the scores ask
        for.

        Returns False if nothing is left to train.
        """
        rounds, records = self.ledger.rounds(), self.validated()
        number, known = rounds[-1].number + 1 if rounds else 0, self.asked_for(rounds)
        # Its lists may have become longer since.
        if design := tuple(t for t in self.study.first if t not in known):
            asked = {"": NextRound(design)}
        else:
            asked = {task: self.asked(records, task) for task in self.study.data.rows}
        new = [
            RoundRecord(
                number=number,
                task=task,
                trial_ids=tuple(trial.trial_id for trial in of.trials),
                labels=tuple(f"{t.arm_label} seed={t.seed}" for t in of.trials),
                seconds=records.total_seconds,
                leader=of.leader,
                regret=None if of.regret == inf else of.regret,
                after=None if of.after == inf else of.after,
            )
            for task, of in asked.items()
            if of.trials
        ]
        self.ledger.put_rounds([*rounds, *new])
        return bool(new)

    def asked_for(self, rounds: Sequence[RoundRecord]) -> list[TrialSpec]:
        """Return the trials of all rounds, in order."""
        by_id = {trial.trial_id: trial for trial in self.study.candidates}
        return [by_id[i] for of in rounds for i in of.trial_ids if i in by_id]

    def say(
        self, rounds: Sequence[RoundRecord], paid: Sequence[TrialSpec], records: StudyRecords
    ) -> None:
        """Report what is trained now, and why."""
        unit = unit_of(next(t.score_unit for t in self.study.task_records))
        for of in rounds:
            trials = [trial for trial in paid if trial.trial_id in of.trial_ids]
            if not trials or of.regret is None or of.after is None:
                continue
            labels = ", ".join(f"{t.arm_label} seed={t.seed}" for t in trials)
            seconds = sum(map(self.pace(records), trials))
            took = f", {rough_duration(seconds)}" if seconds else ""
            fall = f"{amount(of.regret, unit)} -> {amount(of.after, unit)}"
            text = f"round {of.number}: {labels}{took}: expected regret {fall}"
            self.context.reporter.note(text)

    def asked(self, records: StudyRecords, task: str) -> NextRound:
        declared = {trial.trial_id for trial in self.study.trials}
        waiting = [trial for trial in self.waiting() if trial.task == task]
        begun = {t.spec.arm for t in records.trials if t.status not in ("planned", "skipped")}
        own = [t for t in waiting if t.trial_id in declared or t.arm in begun]
        beyond = [t for t in waiting if t not in own]
        return next_round(records, task, own, beyond, self.study.config.until)

    def waiting(self) -> list[TrialSpec]:
        """Return the trials that may be trained and have not begun."""
        statuses = self.ledger.statuses()
        trials = [trial for trial in self.study.candidates if trial.trains]
        known = [statuses.get(trial.trial_id, "planned") for trial in trials]
        return [t for t, s in zip(trials, known, strict=True) if s in ("planned", "skipped")]

    def finalists(self) -> list[list[TrialSpec]]:
        """Return the trained trials of each finalist."""
        view = self.validated()
        arms = [arm for task in self.study.data.rows for arm in finalists(view, task)]
        return [[trial.spec for trial in arm.finished] for arm in arms]

    def untested(self) -> list[TrialSpec]:
        """Return trained trials that lack test scores or analyses, of the arms that need them.

        They are the recommended arms, and arms whose test scores a killed run stored in part; those
        may put another arm first.
        """
        view = self.with_trained(self.ledger.load())
        arms = [arm for task in self.study.data.rows for arm in finalists(view, task)[:1]]
        first = {trial.spec.trial_id for arm in arms for trial in arm.finished}
        tested = {model for model, _, split in view.evals if split == "test"}
        statuses = self.ledger.statuses()

        def is_wanted(trial: TrialSpec) -> bool:
            if statuses.get(trial.trial_id) == "trained":
                return trial.trial_id in first | tested
            wanted = self.study.wanted_evals(trial.trial_id, trial.task)
            return trial.trial_id in first and not view.evals.keys() >= {*wanted}

        return [trial for trial in self.study.candidates if is_wanted(trial)]

    def validated(self) -> StudyRecords:
        """Return the records without test items.

        A run that continues after a kill would otherwise see the test items of some arms.
        """
        records = self.ledger.load()
        items = {k: v for k, v in records.items.items() if k[0] == BASE or k[2] == "validation"}
        return self.with_trained(replace(records, items=items))

    def with_trained(self, records: StudyRecords) -> StudyRecords:
        """Return the records in the form that decisions take.

        Scored trials count as finished, and trials that were left out before as planned.
        """

        def seen(trial: TrialRecords) -> TrialRecords:
            if trial.status == "trained":
                return replace(trial, status="done")
            return replace(trial, status="planned") if trial.status == "skipped" else trial

        return replace(records, trials=tuple(map(seen, records.trials)))

    # --- budget

    def affordable(self, trials: Iterable[TrialSpec], records: StudyRecords) -> list[TrialSpec]:
        """Return the first of ``trials`` that the rest of the budget pays for."""
        own = [trial for trial in records.trials if trial.spec.trains]
        begun = [trial.spec for trial in own if trial.status not in ("planned", "skipped")]
        num_trials = len(begun)
        tokens = float(sum(map(self.study.training_tokens, begun)))
        hours = self.budget.hours or inf
        seconds = records.total_seconds + LAST_SHARE * 3600 * hours + self.last_seconds(records)
        pace, kept = self.pace(records), list[TrialSpec]()
        for trial in trials:
            num_trials, tokens = num_trials + 1, tokens + self.study.training_tokens(trial)
            seconds += pace(trial)
            if not self.budget.pays_for(num_trials, tokens) or seconds > 3600 * hours:
                break
            kept.append(trial)
            if hours < inf and not begun:  # nothing was measured: one trial shows the pace
                break
        return kept

    def pace(self, records: StudyRecords) -> Callable[[TrialSpec], float]:
        """Return a function that estimates the seconds of a trial here; 0 before any was measured.

        The estimate follows from trials that were trained and scored.
        """
        trained = [t for t in records.trials if t.train is not None and t.spec.trains]
        scoring = sum(e.seconds for e in records.evals.values())
        measured = scoring + sum(t.train.seconds for t in trained if t.train)
        if not trained or not measured:
            return lambda trial: 0.0
        # All other time, and overlap of parallel work, is shared out among the trials.
        share = records.total_seconds / measured
        of_trials = [e.seconds for e in records.evals.values() if e.trial_id != BASE]
        scored = sum(of_trials) / len(trained)
        paces: dict[bool, float] = {}
        for trial in trained:
            work = training_work(self.study, trial.spec)
            own = (trial.train.seconds if trial.train else 0.0) / max(1.0, work)
            paces[trial.spec.is_full] = max(own, paces.get(trial.spec.is_full, 0.0))

        def seconds(trial: TrialSpec) -> float:
            of_kind = paces.get(trial.is_full, UNMEASURED * max(paces.values()))
            return share * (of_kind * training_work(self.study, trial) + scored)

        return seconds

    def last_seconds(self, records: StudyRecords) -> float:
        """Estimate the seconds of the finalists' test items, by the base's."""
        scored = records.evals.values()
        return FINALISTS * sum(e.seconds for e in scored if (e.trial_id, e.split) == (BASE, "test"))

    def end(self) -> None:
        """Give every trial that is left its last status."""
        statuses = self.ledger.statuses()
        self.ledger.finish_trials([i for i, status in statuses.items() if status == "trained"])
        # One that an earlier run skipped may have another reason now.
        left = {i for i, status in statuses.items() if status in ("planned", "skipped")}
        self.ledger.skip_trials(left & self.over_budget, OVER_BUDGET)
        self.ledger.skip_trials(left - self.over_budget, NOT_NEEDED)
