"""The stages of a run, pack by pack: train, evaluate, analyze; each stores what it made.

A stage asks the ledger what is missing and does that much. Its results enter the ledger in one
transaction per pack (training) or per pack, task and split (evaluation), so that whatever kills the
process, the next run finds whole units and repeats none.
"""

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from rankscope.analyze.decomposition import BaseSpectra, spectra_folder
from rankscope.analyze.trial import analyze_trial
from rankscope.curves import Curves, KeptWeights, in_turn
from rankscope.errors import BadInput, Interrupted
from rankscope.evaluate.suite import Evaluation, evaluate_apart, evaluate_task
from rankscope.head_stage import HeadStage
from rankscope.inputs import StudyInputs
from rankscope.ledger import Artifact, Ledger, TrialFailure, items_path, weights_path
from rankscope.models.adapter_io import load_adapter, save_adapter
from rankscope.models.base import Base
from rankscope.models.load import load_base
from rankscope.models.peft_tuner import load_tuner
from rankscope.packing import budget_of, halve, halves_of, hand_down, shrink, smaller_budget
from rankscope.provenance import sha256_file, sha256_json
from rankscope.records import (
    BASE,
    EvalKey,
    Split,
    TrainRecord,
    TrialSpec,
    write_items,
)
from rankscope.runtime import peak_memory_bytes, reset_peak_memory, shortage_said
from rankscope.train.checkpoint import PackCheckpoint
from rankscope.train.loop import NOTHING_TRAINED, PackResult, train_pack
from rankscope.train.trainee import Trainee
from rankscope.trials import ALONE, Pack, described, pack_id, pack_steps
from rankscope.watch import SpeedMeter, Watcher

CHECKPOINTS = "checkpoints"
PACK_ID = re.compile(r"[0-9a-f]{16}")
"""Only folders so named are ours to remove."""


@dataclass(slots=True)
class Runner:
    """One run of a study: what it works on, where results go, who watches."""

    ledger: Ledger
    inputs: StudyInputs
    base: Base
    watcher: Watcher
    should_stop: Callable[[], bool]
    spectra: BaseSpectra = field(default_factory=lambda: BaseSpectra(folder=spectra_folder()))
    did_something: bool = False
    """Whether anything was missing."""
    heads: HeadStage = field(init=False)

    def __post_init__(self) -> None:
        self.heads = HeadStage(self.ledger, self.inputs, self.base, self.watcher, self.check_stop)

    def run(self) -> None:
        """Bring every trial to its end; Interrupted where ``should_stop`` said so."""
        self.remove_orphans()
        self.evaluate(self.base, {None: BASE}, self.inputs.base_evals(), "base")
        self.did_something |= self.heads.measure_base()
        num_packs = len(self.inputs.packs)
        for index, pack in enumerate(self.inputs.packs):
            self.run_pack(pack, f"pack {index + 1}/{num_packs} {pack[0].task}")

    def run_pack(self, pack: Pack, name: str) -> None:
        """Train, evaluate and analyze one pack, as far as that is not done."""
        untrained = self.untrained(pack)
        if untrained:
            self.train(untrained, f"{name} train")
        if alive := self.unfinished(pack):
            self.conclude(alive, name)

    def conclude(self, pack: Pack, name: str) -> None:
        """Evaluate and analyze trained trials, by halves where they do not fit into memory
        together; a single one that does not fit is ``oom``."""
        wanted = [key for trial in pack for key in self.wanted_evals(trial)]
        shortage = ""
        try:
            base = self.with_weights(pack)
            if base is not None:
                is_alone = pack[0].method in ALONE
                models = {(None if is_alone else trial.trial_id): trial.trial_id for trial in pack}
                self.evaluate(base, models, wanted, f"{name} evaluate")
                self.analyze(base, pack, f"{name} spectra")
                self.did_something |= self.heads.run(base, pack, f"{name} heads")
        except (MemoryError, RuntimeError) as error:
            shortage = shortage_said(error)
        finally:
            self.base.pack.clear()
        if not shortage:
            self.ledger.finish_trials([trial.trial_id for trial in pack])
            return
        self.tell_shortage(shortage)
        if len(pack) == 1:
            failure = TrialFailure(pack[0].trial_id, "oom", f"scoring it ran {shortage}")
            self.ledger.fail_trials([failure])
            return
        self.watcher.note(f"{len(pack)} trials cannot be scored together: halved")
        for half in halves_of(pack):
            self.conclude(half, name)

    def untrained(self, pack: Pack) -> Pack:
        """The trials of a pack that training has to deal with: all, unless the study was edited.

        A pack's results enter the ledger together, so some are trained and some are not only where
        the study file gained trials since; those train by themselves and the others stay as they
        are.
        """
        statuses = self.ledger.statuses()
        return tuple(trial for trial in pack if statuses[trial.trial_id] == "planned")

    def unfinished(self, pack: Pack) -> Pack:
        """The trained trials of a pack that are not done, or of which more is asked since."""
        statuses = self.ledger.statuses()
        lacking = self.heads.missing()
        if self.inputs.config.analyze.spectra.enabled:
            lacking |= {trial.trial_id for trial in self.ledger.missing_spectra()}

        def is_unfinished(trial: TrialSpec) -> bool:
            if statuses[trial.trial_id] != "done":
                return statuses[trial.trial_id] == "trained"
            missing = self.ledger.missing_evals(self.wanted_evals(trial))
            return bool(missing) or trial.trial_id in lacking

        return tuple(trial for trial in pack if is_unfinished(trial))

    def wanted_evals(self, trial: TrialSpec) -> list[EvalKey]:
        """What a trial is scored on."""
        return self.inputs.wanted_evals(trial.trial_id, trial.task)

    def remove_orphans(self) -> None:
        """Remove states of packs that no run of this study as it is now would go on with."""
        current = {pack_id(untrained) for untrained in map(self.untrained, self.inputs.packs)}
        for folder in (self.ledger.out / CHECKPOINTS).glob("*"):
            if PACK_ID.fullmatch(folder.name) and folder.name not in current:
                shutil.rmtree(folder, ignore_errors=True)

    # --- train

    def train(self, pack: Pack, name: str) -> None:
        """Train a pack and store what it gave; one too large for the memory is halved."""
        budget = budget_of(self.ledger, self.inputs, pack)
        protocol = self.inputs.config.train.model_copy(update={"batch_tokens": budget})
        rows = self.inputs.rows[pack[0].task]
        checkpoint = self.checkpoint(pack)
        meter = SpeedMeter(self.watcher, len(pack))
        self.did_something = True
        num_steps = pack_steps(pack, len(rows.rows), rows.num_tokens, protocol)
        self.watcher.stage(f"{name} {described(pack)}", num_steps)
        reset_peak_memory(self.base.device)
        shortage = ""
        try:
            result = train_pack(
                self.base,
                pack,
                rows.rows,
                protocol,
                checkpoint=checkpoint,
                progress=meter,
                after_step=in_turn(
                    KeptWeights(self.ledger, self.inputs, self.write_weights),
                    Curves(self.ledger, self.inputs, self.base, meter, self.should_stop),
                ),
                should_stop=self.should_stop,
            )
        except (MemoryError, RuntimeError) as error:
            shortage = shortage_said(error)
        if shortage:  # outside of the except block, whose traceback keeps the tensors alive
            self.after_shortage(pack, name, shortage)
        else:
            self.watcher.finish(f"{result.seconds:.1f} s")
            self.store_training(pack, result)
            self.base.pack.clear()
        checkpoint.remove()

    def after_shortage(self, pack: Pack, name: str, shortage: str) -> None:
        """Train what did not fit in smaller passes, then by halves; a single trial is ``oom``."""
        self.tell_shortage(shortage)
        self.base.pack.clear()
        budget = budget_of(self.ledger, self.inputs, pack)
        smaller = smaller_budget(self.inputs, pack, budget)
        if smaller is not None:
            self.watcher.note(f"out of memory: forward passes are cut to {smaller} tokens")
            shrink(self.ledger, self.inputs, pack, smaller)
            self.train(pack, name)
        elif len(pack) == 1:
            self.ledger.fail_trials([TrialFailure(pack[0].trial_id, "oom", shortage)])
        else:
            self.watcher.note(f"{len(pack)} trials do not fit into memory together: halved")
            halves = halve(self.ledger, self.inputs, pack)
            for half in halves:
                hand_down(self.checkpoint(pack), half, self.checkpoint(half))
            for half in halves:
                self.train(half, name)

    def tell_shortage(self, shortage: str) -> None:
        """End the stage that ran out of memory, whose tensors are gone by now."""
        self.watcher.finish(shortage)
        if self.base.device.type == "cuda":
            torch.cuda.empty_cache()

    def checkpoint(self, pack: Pack) -> PackCheckpoint:
        """Where a pack's resumable state goes."""
        return PackCheckpoint(self.ledger.out / CHECKPOINTS / pack_id(pack))

    def store_training(self, pack: Pack, result: PackResult) -> None:
        """Weights of every trial that ended well, and all records, in one transaction."""
        peak = peak_memory_bytes(self.base.device)
        total_tokens = max(1, sum(trainee.num_tokens for trainee in result.trainees))
        artifacts: list[Artifact] = []
        records = []
        failures = []
        for trainee in result.trainees:
            if trainee.failure is not None:
                nothing = trainee.failure.startswith(NOTHING_TRAINED)
                status: Literal["failed", "diverged"] = "failed" if nothing else "diverged"
                failures.append(TrialFailure(trainee.spec.trial_id, status, trainee.failure))
                continue
            with self.ledger.stage() as folder:
                weights = self.write_weights(trainee, result.base, folder)
                artifacts += self.ledger.publish(folder, weights_path(trainee.spec))
            records.append(
                self.train_record(
                    trainee,
                    pack,
                    seconds=result.seconds * trainee.num_tokens / total_tokens,
                    peak=peak,
                    weights_sha256=weights,
                )
            )
        self.ledger.commit_training(records, failures, artifacts)

    def write_weights(self, trainee: Trainee, base: Base, folder: Path) -> str:
        """Write a PEFT adapter, or a whole model, into ``folder``; sha256 of its weights."""
        if trainee.adapter is not None:
            save_adapter(trainee.adapter, trainee.spec, self.base.record, folder)
        elif trainee.tuner is not None:
            trainee.tuner.save(trainee.spec, self.base.record, folder)
        else:
            base.model.save_pretrained(folder)
            base.tokenizer.save_pretrained(folder)
        files = sorted(folder.glob("*.safetensors"))
        return sha256_json([sha256_file(path) for path in files])

    def train_record(
        self, trainee: Trainee, pack: Pack, *, seconds: float, peak: int, weights_sha256: str
    ) -> TrainRecord:
        """What training one trial gave."""
        rows = self.inputs.rows[trainee.spec.task]
        return TrainRecord(
            trial_id=trainee.spec.trial_id,
            pack_id=pack_id(pack),
            pack_size=len(pack),
            trainable_parameters=sum(p.numel() for p in trainee.parameters),
            steps=trainee.num_steps,
            num_tokens=trainee.num_tokens,
            num_label_tokens=trainee.num_label_tokens,
            rows=len(rows.rows),
            rows_dropped=rows.dropped,
            rows_truncated=rows.truncated,
            seconds=seconds,
            peak_memory_bytes=peak,
            losses=tuple(trainee.losses),
            weights_sha256=weights_sha256,
        )

    def with_weights(self, trials: Sequence[TrialSpec]) -> Base | None:
        """The base with the trials' stored adapters attached, or a full trial's own model; None
        where training left that in a state in which it cannot run, so that the trial is ``failed``.

        Raises:
            IntegrityError: stored weights are not what was written.
        """
        if trials[0].method == "full":
            folder = self.ledger.checked_path(weights_path(trials[0]))
            model = self.inputs.config.model
            try:
                return load_base(model, self.base.device, self.inputs.dtype, folder)
            except BadInput as error:  # the base itself has passed the same checks
                reason = f"the trained model cannot be used: {str(error).split(';')[0]}"
                self.ledger.fail_trials([TrialFailure(trials[0].trial_id, "failed", reason)])
                return None
        if trials[0].method == "peft":
            load_tuner(self.base, self.ledger.checked_path(weights_path(trials[0])))
            return self.base
        for trial in trials:
            folder = self.ledger.checked_path(weights_path(trial))
            adapter = load_adapter(folder, trial.trial_id, self.base.record)
            self.base.pack.attach(adapter.to(self.base.device))
        return self.base

    # --- evaluate

    def evaluate(
        self, base: Base, models: Mapping[str | None, str], wanted: Sequence[EvalKey], name: str
    ) -> None:
        """Score what is missing of ``wanted``; ``models`` maps slots to trial ids."""
        missing = self.ledger.missing_evals(wanted)
        units = list(dict.fromkeys((task, split) for _, task, split in missing))
        if not units:
            return
        self.did_something = True
        self.watcher.stage(name, len(units))
        failed: set[str] = set()
        for done, (task, split) in enumerate(units):
            self.check_stop()
            self.watcher.advance(done, f"{task} {split}")
            chosen = {
                slot: trial_id
                for slot, trial_id in models.items()
                if (trial_id, task, split) in missing and trial_id not in failed
            }
            failed |= self.evaluate_unit(base, chosen, task, split)
        self.watcher.finish()

    def evaluate_unit(
        self, base: Base, models: Mapping[str | None, str], task: str, split: Split
    ) -> set[str]:
        """Score some models on one split of one task and store records and items.

        Returns the trials that could not be scored and are ``failed`` now.
        """
        results, failures = self.scored(base, models, task, split)
        artifacts: list[Artifact] = []
        with self.ledger.stage() as folder:
            for slot, (_, items) in results.items():
                file = folder / f"{models[slot]}.parquet"
                write_items(file, items)
                artifacts += self.ledger.publish(file, items_path(models[slot], task, split))
        self.ledger.commit_evals([record for record, _ in results.values()], artifacts)
        self.ledger.fail_trials(failures)
        return {failure.trial_id for failure in failures}

    def scored(
        self, base: Base, models: Mapping[str | None, str], task: str, split: Split
    ) -> tuple[dict[str | None, Evaluation], list[TrialFailure]]:
        """Results by slot, and the trials without finite likelihoods.

        Raises:
            BadInput: there is not enough memory for the base.
            IntegrityError: the untuned base has no finite likelihoods.
        """
        encoder, settings = self.inputs.encoder, self.inputs.config.evaluate
        loaded = self.inputs.tasks[task]
        if BASE not in models.values():
            results, reasons = evaluate_apart(base, encoder, loaded, split, models, settings)
            return results, [
                TrialFailure(models[slot], "failed", f"{task} {split}: {reason}")
                for slot, reason in reasons.items()
            ]
        try:
            return evaluate_task(base, encoder, loaded, split, models, settings), []
        except (MemoryError, RuntimeError) as error:
            raise BadInput(
                f"{task} {split}: scoring the base ran {shortage_said(error)}; lower evaluate."
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
        self.watcher.stage(name, len(todo))
        for done, trial in enumerate(todo):
            self.check_stop()
            self.watcher.advance(done, trial.arm_label)
            found = analyze_trial(
                trial, self.base, base, self.inputs.trials, settings, self.spectra
            )
            if not found.matrices:
                self.watcher.note(
                    f"{trial.arm_label}: the method changes no matrix that it can be merged into, "
                    "so there are no spectra of it"
                )
            self.ledger.commit_spectra([found])
        self.watcher.finish()

    def check_stop(self) -> None:
        """Leave between two units of work where the user asked to."""
        if self.should_stop():
            raise Interrupted("stopped; everything finished is stored: the same command continues")
