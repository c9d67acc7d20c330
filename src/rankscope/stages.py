"""The stages of a run, pack by pack: train, evaluate, analyze; each stores what it made.

A stage asks the ledger what is missing and does that much. Its results enter the ledger in one
transaction per pack (training) or per pack, task and split (evaluation), so that whatever kills the
process, the next run finds whole units and repeats none.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from rankscope.analyze.spectra import BaseSpectra, analyze_adapter, analyze_full
from rankscope.errors import Interrupted
from rankscope.evaluate.suite import evaluate_task
from rankscope.inputs import StudyInputs
from rankscope.ledger import Artifact, Ledger, TrialFailure, adapter_path, items_path, model_path
from rankscope.models.adapter_io import load_adapter, save_adapter
from rankscope.models.base import Base
from rankscope.models.load import load_base
from rankscope.models.lora import rank_notes, target_linears
from rankscope.provenance import sha256_file, sha256_json
from rankscope.records import (
    BASE,
    FAILED,
    EvalKey,
    SpectraRecord,
    Split,
    TrainRecord,
    TrialSpec,
    write_items,
)
from rankscope.runtime import peak_memory_bytes, reset_peak_memory
from rankscope.train.checkpoint import PackCheckpoint
from rankscope.train.loop import PackResult, train_pack
from rankscope.train.trainee import Trainee
from rankscope.trials import Pack, pack_id, planned_steps
from rankscope.watch import Watcher

OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)


@dataclass(slots=True)
class Runner:
    """One run of a study: what it works on, where results go, who watches."""

    ledger: Ledger
    inputs: StudyInputs
    base: Base
    watcher: Watcher
    should_stop: Callable[[], bool]
    spectra: BaseSpectra = field(default_factory=BaseSpectra)

    def run(self) -> None:
        """Bring every trial to its end.

        Raises:
            Interrupted: ``should_stop`` said so; everything finished is stored.
        """
        self.evaluate(self.base, {None: BASE}, self.inputs.base_evals(), "base")
        num_packs = len(self.inputs.packs)
        for index, pack in enumerate(self.inputs.packs):
            self.run_pack(pack, f"pack {index + 1}/{num_packs} {pack[0].task}")

    def run_pack(self, pack: Pack, name: str) -> None:
        """Train, evaluate and analyze one pack, as far as that is not done."""
        statuses = self.ledger.statuses()
        if any(statuses[trial.trial_id] == "planned" for trial in pack):
            self.train(pack, f"{name} train {described(pack)}")
        statuses = self.ledger.statuses()
        alive = [trial for trial in pack if statuses[trial.trial_id] not in FAILED]
        if all(statuses[trial.trial_id] == "done" for trial in alive):
            return
        try:
            base = self.with_weights(alive)
            wanted = [
                key
                for trial in alive
                for key in self.inputs.wanted_evals(trial.trial_id, trial.task)
            ]
            is_full = alive[0].method == "full"
            models = {(None if is_full else trial.trial_id): trial.trial_id for trial in alive}
            self.evaluate(base, models, wanted, f"{name} evaluate")
            self.analyze(base, alive, f"{name} spectra")
        finally:
            self.base.pack.clear()
        self.ledger.finish_trials([trial.trial_id for trial in alive])

    # --- train

    def train(self, pack: Pack, name: str) -> None:
        """Train a pack and store weights and records together."""
        config = self.inputs.config
        rows = self.inputs.rows[pack[0].task]
        checkpoint = PackCheckpoint(self.ledger.out / "checkpoints" / pack_id(pack))
        for note in dict.fromkeys(n for t in pack for n in rank_notes(self.base.model, t)):
            self.watcher.note(note)
        meter = SpeedMeter(self.watcher)
        self.watcher.stage(name, planned_steps(len(rows.rows), config.train))
        reset_peak_memory(self.base.device)
        try:
            result = train_pack(
                self.base,
                pack,
                rows.rows,
                config.train,
                checkpoint=checkpoint,
                progress=meter,
                should_stop=self.should_stop,
            )
        except OUT_OF_MEMORY as error:
            self.base.pack.clear()
            reason = f"out of memory: {str(error).splitlines()[0]}"
            self.ledger.fail_trials([TrialFailure(t.trial_id, "oom", reason) for t in pack])
            checkpoint.remove()
            return
        self.watcher.finish(f"{result.seconds:.1f} s")
        self.store_training(pack, result)
        checkpoint.remove()
        self.base.pack.clear()

    def store_training(self, pack: Pack, result: PackResult) -> None:
        """Weights of every trial that ended well, and all records, in one transaction."""
        peak = peak_memory_bytes(self.base.device)
        total_tokens = max(1, sum(trainee.num_tokens for trainee in result.trainees))
        artifacts: list[Artifact] = []
        records = []
        failures = []
        for trainee in result.trainees:
            if trainee.failure is not None:
                failures.append(TrialFailure(trainee.spec.trial_id, "diverged", trainee.failure))
                continue
            with self.ledger.stage() as folder:
                weights = self.write_weights(trainee, result, folder)
                artifacts += self.ledger.publish(folder, weights_place(trainee.spec))
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

    def write_weights(self, trainee: Trainee, result: PackResult, folder: Path) -> str:
        """Write a PEFT adapter, or a whole model, into ``folder``; sha256 of its weights."""
        if trainee.adapter is not None:
            save_adapter(trainee.adapter, trainee.spec, self.base.record, folder)
        else:
            result.base.model.save_pretrained(folder)
            result.base.tokenizer.save_pretrained(folder)
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

    def with_weights(self, trials: Sequence[TrialSpec]) -> Base:
        """The base with the trials' stored adapters attached, or a full trial's own model.

        Raises:
            IntegrityError: stored weights are not what was written.
        """
        if trials[0].method == "full":
            folder = self.ledger.checked_path(weights_place(trials[0]))
            return load_base(self.inputs.config.model, self.base.device, self.inputs.dtype, folder)
        for trial in trials:
            folder = self.ledger.checked_path(weights_place(trial))
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
        self.watcher.stage(name, len(units))
        for done, (task, split) in enumerate(units):
            self.check_stop()
            self.watcher.advance(done, f"{task} {split}")
            chosen = {
                slot: trial_id
                for slot, trial_id in models.items()
                if (trial_id, task, split) in missing
            }
            self.evaluate_unit(base, chosen, task, split)
        self.watcher.finish()

    def evaluate_unit(
        self, base: Base, models: Mapping[str | None, str], task: str, split: Split
    ) -> None:
        """Score some models on one split of one task and store records and items."""
        results = evaluate_task(
            base,
            self.inputs.encoder,
            self.inputs.tasks[task],
            split,
            models,
            self.inputs.config.evaluate,
        )
        artifacts: list[Artifact] = []
        with self.ledger.stage() as folder:
            for slot, (_, items) in results.items():
                file = folder / f"{models[slot]}.parquet"
                write_items(file, items)
                artifacts += self.ledger.publish(file, items_path(models[slot], task, split))
        self.ledger.commit_evals([record for record, _ in results.values()], artifacts)

    # --- analyze

    def analyze(self, base: Base, trials: Sequence[TrialSpec], name: str) -> None:
        """Spectra of the trials that have none."""
        settings = self.inputs.config.analyze.spectra
        missing = {trial.trial_id for trial in self.ledger.missing_spectra()}
        todo = [trial for trial in trials if trial.trial_id in missing]
        if not settings.enabled or not todo:
            return
        weights = {name: layer.weight.detach() for name, layer in self.base.linears().items()}
        self.watcher.stage(name, len(todo))
        for done, trial in enumerate(todo):
            self.check_stop()
            self.watcher.advance(done, trial.arm_label)
            self.ledger.commit_spectra([self.spectra_of(base, trial, weights)])
        self.watcher.finish()

    def spectra_of(
        self, base: Base, trial: TrialSpec, weights: Mapping[str, torch.Tensor]
    ) -> SpectraRecord:
        """Spectra of one trial: of its adapter, or of the matrices the study's adapters target."""
        settings = self.inputs.config.analyze.spectra
        if trial.method != "full":
            adapter = base.pack.adapters[trial.trial_id]
            factors = {n: (adapter.a[n].detach(), adapter.b[n].detach()) for n in adapter.a}
            return analyze_adapter(
                weights, factors, adapter.scaling, settings, trial.trial_id, self.spectra
            )
        tuned = {name: layer.weight.detach() for name, layer in base.linears().items()}
        return analyze_full(
            weights, tuned, self.compared_names(), settings, trial.trial_id, self.spectra
        )

    def compared_names(self) -> list[str]:
        """Matrices compared over arms: those some adapter of the study changes, else all linear
        layers but the output head, so that full fine-tuning and LoRA are measured on the same."""
        targets = sorted({name for trial in self.inputs.trials for name in trial.targets})
        if targets:
            return list(target_linears(self.base.model, targets))
        head = self.base.model.get_output_embeddings()
        return [name for name, layer in self.base.linears().items() if layer is not head]

    def check_stop(self) -> None:
        """Leave between two units of work where the user asked to."""
        if self.should_stop():
            raise Interrupted("stopped; everything finished is stored")


class SpeedMeter:
    """Passes a pack's steps on to the watcher with the loss range and tokens per second."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher
        self.begun = time.monotonic()
        self.num_tokens = 0

    def __call__(self, step: int, num_steps: int, num_tokens: int, losses: list[float]) -> None:
        self.num_tokens += num_tokens
        speed = self.num_tokens / max(1e-9, time.monotonic() - self.begun)
        span = f"loss {min(losses):.3f} to {max(losses):.3f}" if losses else "no finite loss"
        self.watcher.advance(step, f"{span}, {speed:,.0f} tokens/s")


def weights_place(trial: TrialSpec) -> str:
    """Where a trial's weights lie in the study: an adapter, or a whole model."""
    return model_path(trial.trial_id) if trial.method == "full" else adapter_path(trial.trial_id)


def described(pack: Pack) -> str:
    """A pack for one line of the screen: ``12 adapters r 2-128``, or ``full lr=0.0005``."""
    if len(pack) == 1:
        return pack[0].arm_label
    ranks = [trial.rank for trial in pack if trial.rank is not None]
    return f"{len(pack)} adapters r {min(ranks)}-{max(ranks)}"
