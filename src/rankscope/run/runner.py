"""The stages of a run, group by group: train, evaluate, analyze; each stores what it made.

A stage asks the ledger what is missing and does that much. Its results enter the ledger in one
transaction per group (training) or per group, task and split (evaluation), so that whatever kills the
process, the next run finds whole units and repeats none.
"""

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from rankscope.analyze.svd_cache import SvdCache, svd_cache_folder
from rankscope.analyze.trial_spectra import analyze_trial
from rankscope.device import out_of_memory_message, reset_peak_memory
from rankscope.errors import Interrupted, UserError
from rankscope.evaluate.evaluator import evaluate_task, evaluate_with_failures
from rankscope.evaluate.mixtures import Evaluation
from rankscope.models.base import Base
from rankscope.progress import ProgressReporter, SpeedMeter
from rankscope.records import (
    BASE,
    EvalKey,
    Split,
    TrialSpec,
    trial_of,
    write_items,
)
from rankscope.run.callbacks import EarlyStopping, LearningCurve, WeightSnapshot, in_turn
from rankscope.run.group_ledger import (
    budget_of,
    halve,
    halves_of,
    hand_down,
    shrink,
    smaller_budget,
)
from rankscope.run.groups import Group, described, group_id, group_steps
from rankscope.run.prepare import PreparedStudy
from rankscope.run.stages.heads import HeadStage
from rankscope.run.stages.training_results import store_training
from rankscope.run.stages.variants import attach_variants, scaled_models
from rankscope.run.trial_weights import with_weights, write_weights
from rankscope.store import Artifact, Ledger, TrialFailure, items_path
from rankscope.train.checkpoint import GroupCheckpoint
from rankscope.train.loop import train_group
from rankscope.train.trial_state import TrialState

CHECKPOINTS = "checkpoints"
GROUP_ID = re.compile(r"[0-9a-f]{16}")
"""Only folders so named are ours to remove."""


@dataclass(slots=True)
class Runner:
    """One run of a study: what it works on, where results go, who watches."""

    ledger: Ledger
    inputs: PreparedStudy
    base: Base
    reporter: ProgressReporter
    should_stop: Callable[[], bool]
    spectra: SvdCache = field(default_factory=lambda: SvdCache(folder=svd_cache_folder()))
    did_something: bool = False
    """Whether anything was missing."""
    heads: HeadStage = field(init=False)

    def __post_init__(self) -> None:
        self.heads = HeadStage(self.ledger, self.inputs, self.base, self.reporter, self.check_stop)

    def run(self) -> None:
        """Bring every trial to its end; Interrupted where ``should_stop`` said so."""
        self.remove_orphans()
        self.evaluate(self.base, {None: BASE}, self.inputs.base_evals(), "base")
        try:
            self.did_something |= self.heads.measure_base()
        except (MemoryError, RuntimeError) as error:
            raise UserError(
                f"analyze.heads: looking into the base ran {out_of_memory_message(error)}; lower "
                "evaluate.batch_tokens, or leave heads out ('enabled: false')"
            ) from error
        num_groups = len(self.inputs.groups)
        for index, group in enumerate(self.inputs.groups):
            self.run_group(group, f"group {index + 1}/{num_groups} {group[0].task}")

    def run_group(self, group: Group, name: str) -> None:
        """Train, evaluate and analyze one group, as far as that is not done."""
        untrained = self.untrained(group)
        if untrained:
            self.train(untrained, f"{name} train")
        if alive := self.unfinished(group):
            self.conclude(alive, name)

    def conclude(self, group: Group, name: str) -> None:
        """Score trained trials, then look into them.

        One that cannot be scored for want of memory is ``oom``; one that can, and of which what is
        asked besides does not fit, is told and ends with its scores.
        """
        short = self.by_halves(group, partial(self.score, name=name), "scored")
        self.ledger.fail_trials(
            [TrialFailure(i, "oom", f"scoring it ran {why}") for i, why in short.items()]
        )
        scored = tuple(trial for trial in self.unfinished(group) if trial.trial_id not in short)
        asked = tuple(trial for trial in scored if self.is_more_asked(trial))
        short = self.by_halves(asked, partial(self.look_into, name=name), "looked into")
        for trial in asked:
            if trial.trial_id in short:
                why = short[trial.trial_id]
                self.reporter.note(f"{trial.label}: looking into it ran {why}; its scores stand")
        self.ledger.finish_trials([trial.trial_id for trial in scored])

    def by_halves(
        self, group: Group, work: Callable[[Base, Group], None], done: str
    ) -> dict[str, str]:
        """Do ``work`` with the trials' weights on the base, by halves where memory is short.

        Returns why each trial that does not fit alone does not; ``done`` says what was tried.
        """
        if not group:
            return {}
        shortage = ""
        tuned: Base | None = None
        try:
            tuned = with_weights(self.ledger, self.inputs, self.base, group)
            if tuned is not None:
                work(tuned, group)
        except (MemoryError, RuntimeError) as error:
            shortage = out_of_memory_message(error)
        finally:
            tuned = None  # a model of its own must be gone before memory is counted again
            self.base.multi_lora.clear()
        if not shortage:
            return {}
        self.tell_shortage(shortage)
        if len(group) == 1:
            return {group[0].trial_id: shortage}
        self.reporter.note(f"{len(group)} trials cannot be {done} together: halved")
        first, second = (self.by_halves(half, work, done) for half in halves_of(group))
        return first | second

    def score(self, tuned: Base, group: Group, name: str) -> None:
        """Score the trials themselves."""
        wanted = [key for t in group for key in self.inputs.wanted_evals(t.trial_id, t.task)]
        is_alone = group[0].trains_alone
        models = {(None if is_alone else t.trial_id): t.trial_id for t in group}
        self.evaluate(tuned, models, wanted, f"{name} evaluate")

    def look_into(self, tuned: Base, group: Group, name: str) -> None:
        """Score the trials' milder forms and analyze their weights and heads, where missing."""
        wanted = [key for trial in group for key in self.inputs.wanted_variants(trial)]
        missing = {model_id for model_id, _, _ in self.ledger.missing_evals(wanted)}
        milder = attach_variants(tuned, self.inputs, group, self.spectra, missing)
        self.evaluate(
            tuned, {adapter_name: adapter_name for adapter_name in milder}, wanted, f"{name} milder"
        )
        for adapter_name in milder:
            tuned.multi_lora.detach(adapter_name)
        for model_id, scaled in scaled_models(
            self.base, tuned, self.inputs, group, self.spectra, missing
        ):
            self.evaluate(scaled, {None: model_id}, wanted, f"{name} {model_id[17:]}")
            del scaled
        self.analyze(tuned, group, f"{name} spectra")
        self.did_something |= self.heads.run(tuned, group, f"{name} heads")

    def untrained(self, group: Group) -> Group:
        """The trials of a group that training has to deal with: all, unless the study was edited.

        A group's results enter the ledger together, so some are trained and some are not only where
        the study file gained trials since; those train by themselves and the others stay as they
        are.
        """
        statuses = self.ledger.statuses()
        return tuple(trial for trial in group if statuses[trial.trial_id] == "planned")

    def unfinished(self, group: Group) -> Group:
        """The trained trials of a group that are not done, or of which more is asked since."""
        statuses = self.ledger.statuses()

        def is_unfinished(trial: TrialSpec) -> bool:
            if statuses[trial.trial_id] != "done":
                return statuses[trial.trial_id] == "trained"
            wanted = self.inputs.wanted_evals(trial.trial_id, trial.task)
            return bool(self.ledger.missing_evals(wanted)) or self.is_more_asked(trial)

        return tuple(trial for trial in group if is_unfinished(trial))

    def is_more_asked(self, trial: TrialSpec) -> bool:
        """Whether something is missing of what is asked besides its scores."""
        lacking = self.heads.missing()
        if self.inputs.config.analyze.spectra.enabled:
            lacking |= {t.trial_id for t in self.ledger.missing_spectra()}
        variants = self.ledger.missing_evals(self.inputs.wanted_variants(trial))
        return bool(variants) or trial.trial_id in lacking

    def remove_orphans(self) -> None:
        """Remove states of groups that no run of this study as it is now would go on with."""
        current = {group_id(untrained) for untrained in map(self.untrained, self.inputs.groups)}
        for folder in (self.ledger.out / CHECKPOINTS).glob("*"):
            if GROUP_ID.fullmatch(folder.name) and folder.name not in current:
                shutil.rmtree(folder, ignore_errors=True)

    # --- train

    def train(self, group: Group, name: str) -> None:
        """Train a group and store what it gave; one too large for the memory is halved."""
        budget = budget_of(self.ledger, self.inputs, group)
        protocol = self.inputs.config.train.model_copy(update={"batch_tokens": budget})
        rows = self.inputs.rows[group[0].task]
        checkpoint = self.checkpoint(group)
        meter = SpeedMeter(self.reporter, len(group))
        self.did_something = True
        num_steps = group_steps(group, len(rows.rows), rows.num_tokens, protocol)
        self.reporter.stage(f"{name} {described(group)}", num_steps)
        reset_peak_memory(self.base.device)
        shortage = ""
        try:
            result = train_group(
                self.base,
                group,
                rows.rows,
                protocol,
                replay={name: encoded.rows for name, encoded in self.inputs.replay.items()},
                checkpoint=checkpoint,
                progress=meter,
                after_step=in_turn(
                    WeightSnapshot(self.ledger, self.inputs, self.write_weights),
                    LearningCurve(self.ledger, self.inputs, self.base, meter, self.should_stop),
                    EarlyStopping(self.ledger, self.inputs),
                ),
                should_stop=self.should_stop,
            )
        except (MemoryError, RuntimeError) as error:
            shortage = out_of_memory_message(error)
        if shortage:  # outside of the except block, whose traceback keeps the tensors alive
            self.after_shortage(group, name, shortage)
        else:
            self.reporter.finish(f"{result.seconds:.1f} s")
            store_training(self.ledger, self.inputs, self.base, group, result)
            self.base.multi_lora.clear()
        checkpoint.remove()

    def after_shortage(self, group: Group, name: str, shortage: str) -> None:
        """Train what did not fit in smaller passes, then by halves; a single trial is ``oom``."""
        self.tell_shortage(shortage)
        self.base.multi_lora.clear()
        budget = budget_of(self.ledger, self.inputs, group)
        smaller = smaller_budget(self.inputs, group, budget)
        if smaller is not None:
            self.reporter.note(f"out of memory: forward passes are cut to {smaller} tokens")
            shrink(self.ledger, self.inputs, group, smaller)
            self.train(group, name)
        elif len(group) == 1:
            self.ledger.fail_trials([TrialFailure(group[0].trial_id, "oom", shortage)])
        else:
            self.reporter.note(f"{len(group)} trials do not fit into memory together: halved")
            halves = halve(self.ledger, self.inputs, group)
            for half in halves:
                hand_down(self.checkpoint(group), half, self.checkpoint(half))
            for half in halves:
                self.train(half, name)

    def tell_shortage(self, shortage: str) -> None:
        """End the stage that ran out of memory, whose tensors are gone by now."""
        self.reporter.finish(shortage)
        if self.base.device.type == "cuda":
            torch.cuda.empty_cache()

    def checkpoint(self, group: Group) -> GroupCheckpoint:
        """Where a group's resumable state goes."""
        return GroupCheckpoint(self.ledger.out / CHECKPOINTS / group_id(group))

    def write_weights(self, trial_state: TrialState, base: Base, folder: Path) -> str:
        """Write a trial's weights into ``folder``; their sha256."""
        return write_weights(trial_state, base, self.base.record, folder)

    # --- evaluate

    def evaluate(
        self, base: Base, models: Mapping[str | None, str], wanted: Sequence[EvalKey], name: str
    ) -> None:
        """Score what is missing of ``wanted``; ``models`` maps adapter_names to trial ids."""
        missing = self.ledger.missing_evals(wanted)
        here = [key for key in missing if key[0] in models.values()]
        units = list(dict.fromkeys((task, split) for _, task, split in here))
        if not units:
            return
        self.did_something = True
        self.reporter.stage(name, len(units))
        failed: set[str] = set()
        for done, (task, split) in enumerate(units):
            self.check_stop()
            self.reporter.advance(done, f"{task} {split}")
            chosen = {
                adapter_name: trial_id
                for adapter_name, trial_id in models.items()
                if (trial_id, task, split) in missing and trial_of(trial_id) not in failed
            }
            failed |= self.evaluate_unit(base, chosen, task, split)
        self.reporter.finish()

    def evaluate_unit(
        self, base: Base, models: Mapping[str | None, str], task: str, split: Split
    ) -> set[str]:
        """Score some models on one split of one task and store records and items.

        Returns the trials that could not be scored and are ``failed`` now.
        """
        results, failures = self.scored(base, models, task, split)
        artifacts: list[Artifact] = []
        with self.ledger.stage() as folder:
            for adapter_name, (_, items) in results.items():
                file = folder / f"{models[adapter_name]}.parquet"
                write_items(file, items)
                artifacts += self.ledger.publish(
                    file, items_path(models[adapter_name], task, split)
                )
        self.ledger.commit_evals([record for record, _ in results.values()], artifacts)
        self.ledger.fail_trials(failures)
        return {failure.trial_id for failure in failures}

    def scored(
        self, base: Base, models: Mapping[str | None, str], task: str, split: Split
    ) -> tuple[dict[str | None, Evaluation], list[TrialFailure]]:
        """Results by adapter_name, and the trials without finite likelihoods.

        Raises:
            UserError: there is not enough memory for the base.
            IntegrityError: the untuned base has no finite likelihoods.
        """
        encoder, settings = self.inputs.encoder, self.inputs.config.evaluate
        loaded = self.inputs.tasks[task]
        if BASE not in models.values():
            results, reasons = evaluate_with_failures(
                base, encoder, loaded, split, models, settings
            )
            return results, [
                TrialFailure(trial_of(models[adapter_name]), "failed", f"{task} {split}: {reason}")
                for adapter_name, reason in reasons.items()
            ]
        try:
            return evaluate_task(base, encoder, loaded, split, models, settings), []
        except (MemoryError, RuntimeError) as error:
            raise UserError(
                f"{task} {split}: scoring the base ran {out_of_memory_message(error)}; lower evaluate."
                f"batch_tokens (now {settings.batch_tokens}) in a study with an --out of its own"
            ) from error

    # --- analyze

    def analyze(self, base: Base, trials: Sequence[TrialSpec], name: str) -> None:
        """Spectra of the trials that have none."""
        settings = self.inputs.config.analyze.spectra
        missing = {trial.trial_id for trial in self.ledger.missing_spectra()}
        todo = [trial for trial in trials if trial.trial_id in missing]
        if not settings.enabled or not todo:
            return
        self.did_something = True
        self.reporter.stage(name, len(todo))
        for done, trial in enumerate(todo):
            self.check_stop()
            self.reporter.advance(done, trial.arm_label)
            found = analyze_trial(
                trial, self.base, base, self.inputs.trials, settings, self.spectra
            )
            if not found.matrices:
                self.reporter.note(
                    f"{trial.arm_label}: the method changes no matrix that it can be merged into, "
                    "so there are no spectra of it"
                )
            self.ledger.commit_spectra([found])
        self.reporter.finish()

    def check_stop(self) -> None:
        """Leave between two units of work where the user asked to."""
        if self.should_stop():
            raise Interrupted("stopped; everything finished is stored: the same command continues")
