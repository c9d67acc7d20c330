"""The engine alone: any model and any number of its adapters, on any tasks.

What was scored into a folder before is not scored again: a result's key is a hash of the weights,
the dtype, the task with everything its scores depend on, and the split.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rankscope.advise.statistics.estimates import Array, paired_estimate
from rankscope.data.encode import Encoder
from rankscope.data.tasks import LoadedTask
from rankscope.device import choose_device, choose_dtype, out_of_memory_message
from rankscope.errors import IntegrityError, UserError
from rankscope.evaluate.context_window import context_length
from rankscope.evaluate.evaluator import evaluate_with_failures, truncation_notes
from rankscope.evaluate.lm_eval.bridge import (
    LmEvalTask,
    is_lm_eval_task,
    is_mean,
    score_lm_eval_task,
)
from rankscope.evaluate.task_record import task_sha256
from rankscope.filesystem import output_folder
from rankscope.models.adapters.folder import load_adapter
from rankscope.models.base import Base
from rankscope.models.load import load_base, load_tokenizer, model_folder
from rankscope.models.parameters import read_model_config
from rankscope.models.peft_backend.tuner import PeftTuner
from rankscope.progress import NullReporter, ProgressReporter
from rankscope.provenance import sha256_json, tokenizer_sha256, weights_sha256
from rankscope.records import BASE, EvalRecord, ItemResult, Split
from rankscope.tools.evaluate.lm_eval_tasks import (
    SHARES,
    TaskFacts,
    facts_of,
    harness_facts,
    read_lm_eval_tasks,
    without_dead,
)
from rankscope.tools.evaluate.request import (
    DEVICE,
    DTYPES,
    PROMPT_FORMATS,
    AdapterFolder,
    EvalRequest,
    checked_split,
    model_config,
    one_of,
    read_adapters,
    read_tasks,
)
from rankscope.tools.evaluate.results_folder import Score, ScoresFolder


@dataclass(frozen=True, slots=True)
class EvalResult:
    """Everything that was asked for, and what could not be had."""

    scores: tuple[Score, ...]
    """Task by task, the base first, then adapters in the order asked."""
    failed: tuple[str, ...]
    """One sentence per adapter and task that gave no likelihoods."""
    new: int
    """How many were scored now; the others had been before."""
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """JSON-compatible."""
        return {
            "scores": [score.model_dump(mode="json") for score in self.scores],
            "failed": list(self.failed),
            "scored_now": self.new,
            "scored_before": len(self.scores) - self.new,
            "notes": list(self.notes),
        }

    def summary(self, out: Path) -> str:
        """Where results are, and which of them were there before, one line."""
        before = len(self.scores) - self.new
        if not self.new:
            return f"{out}: all {before} results were there already; nothing was scored again"
        already = f", {before} were there already" if before else ""
        return f"{out}: {self.new} results scored now{already}"


def score(
    asked: EvalRequest, out: Path | None = None, reporter: ProgressReporter | None = None
) -> EvalResult:
    """Score a model and its adapters on tasks, each only where ``out`` does not hold it yet.

    Nothing is written before everything asked for was checked and read; then every task's results
    are written whole, as soon as they are there.

    Raises:
        UserError: a model, adapter, task, split or row that cannot be used, or an ``out`` that
            cannot be written to.
        IntegrityError: ``out`` holds results that were altered.
    """
    reporter = reporter or NullReporter()
    split = checked_split(asked.split)
    prompt_format = one_of(asked.prompt_format, PROMPT_FORMATS, "--prompt-format")
    asked_dtype = one_of(asked.dtype, DTYPES, "--dtype")
    if not DEVICE.fullmatch(asked.device):
        raise UserError(f"--device {asked.device!r}: expected auto, cpu, mps, cuda or cuda:0")
    config = model_config(asked.model, prompt_format)
    folder = model_folder(config)
    device = choose_device(asked.device)
    dtype = choose_dtype(asked_dtype, device)
    encoder = Encoder(load_tokenizer(folder), prompt_format, max_length=None)
    base_sha256 = weights_sha256(folder)
    adapters = read_adapters(asked, folder, base_sha256)
    tasks = read_tasks(asked)
    notes = [*encoder.notes, *(note for task in tasks for note in task.notes)]
    notes += [forced_note(adapter) for adapter in adapters if adapter.is_forced]
    context = context_length(read_model_config(folder))
    for task in tasks:  # refuses what cannot be scored
        notes += truncation_notes(encoder, task, split, context, asked.settings)
    harness = read_lm_eval_tasks(asked, split, context, encoder.prompt_format)
    tokenizer_hash = tokenizer_sha256(folder)
    facts = [
        facts_of(task, task_sha256(task, encoder, tokenizer_hash, asked.settings)) for task in tasks
    ]
    facts += [fact for task in harness for fact in harness_facts(task, tokenizer_hash)]
    dtype_name = str(dtype).removeprefix("torch.")
    weights = {BASE: base_sha256, **{a.label: joint(base_sha256, a.sha256) for a in adapters}}
    keys = {
        (model, fact.name): key_of(found, dtype_name, fact.sha256, split)
        for model, found in weights.items()
        for fact in facts
    }
    stored = ScoresFolder(out)
    missing = {place for place, key in keys.items() if not stored.holds(key)}
    run = Run(asked, encoder, tasks, harness, split, stored, keys, reporter)
    if missing:
        with output_folder(out):
            run.score_missing(load_base(config, device, dtype, folder), adapters, missing)
    scores = run.collect(weights, dtype_name, facts, encoder.prompt_format, adapters)
    return EvalResult(tuple(scores), tuple(run.failed), run.new, tuple(notes))


def joint(base_sha256: str, adapter_hash: str) -> str:
    """Hash of the weights that a base with an adapter on it has."""
    return sha256_json([base_sha256, adapter_hash])


def key_of(weights: str, dtype: str, task_hash: str, split: str) -> str:
    """What makes a result the same result, 16 hex digits."""
    return sha256_json([weights, dtype, task_hash, split])[:16]


def forced_note(adapter: AdapterFolder) -> str:
    """What a reader of the scores must know of an adapter taken by force."""
    return (
        f"adapter {adapter.label}: says that it was made for other weights "
        f"({(adapter.recorded_base or '')[:12]}...) and is scored on this model by --force"
    )


def put_on(base: Base, adapter: AdapterFolder) -> None:
    """Put an adapter of a method other than LoRA on the base, as the injected_tuner of its group.

    Raises:
        UserError: it is damaged, or does not fit the model.
    """
    record = base.record
    if adapter.is_forced and adapter.recorded_base is not None:
        record = record.model_copy(update={"sha256": adapter.recorded_base})
    try:
        base.multi_lora.injected_tuner = PeftTuner.load(base.model, adapter.folder, record)
    except IntegrityError as error:
        raise UserError(f"{error}; expected an undamaged adapter of this model") from error


@dataclass(slots=True)
class Run:
    """One run of the engine over what is missing."""

    asked: EvalRequest
    encoder: Encoder
    tasks: list[LoadedTask]
    harness: list[LmEvalTask]
    split: Split
    stored: ScoresFolder
    keys: Mapping[tuple[str, str], str]
    """(model, task) -> key."""
    reporter: ProgressReporter
    failed: list[str] = field(default_factory=list)
    new: int = 0

    def score_missing(
        self, base: Base, adapters: Sequence[AdapterFolder], missing: set[tuple[str, str]]
    ) -> None:
        """Base and LoRA adapters together; every other method by itself on the base.

        Raises:
            UserError: an adapter that is damaged or does not fit, before anything is scored.
        """
        wanted = {model for model, _ in missing}
        packed = [a for a in adapters if a.is_lora and a.label in wanted]
        guests = [a for a in adapters if not a.is_lora and a.label in wanted]
        for adapter in guests:
            put_on(base, adapter)
            base.multi_lora.clear()
        models: dict[str | None, str] = {None: BASE} if BASE in wanted else {}
        for adapter in packed:
            made = load_adapter(adapter.folder, adapter.label).to(base.device)
            base.multi_lora.attach(made)
            models[adapter.label] = adapter.label
        if models:
            self.score_models(base, models, missing)
        base.multi_lora.clear()
        for adapter in guests:
            put_on(base, adapter)
            try:
                self.score_models(base, {None: adapter.label}, missing)
            finally:
                base.multi_lora.clear()

    def score_models(
        self, base: Base, models: Mapping[str | None, str], missing: set[tuple[str, str]]
    ) -> None:
        """Score models that are on the base together, task by task."""
        num_tasks = len(self.tasks) + len(self.harness)
        self.reporter.stage(f"scoring {', '.join(models.values())}", num_tasks)
        for done, task in enumerate(self.tasks):
            name = task.spec.name
            self.reporter.advance(done, name)
            chosen = {
                adapter_name: model
                for adapter_name, model in models.items()
                if (model, name) in missing
            }
            if not chosen:
                continue
            with self.shortage_told(name):
                results, reasons = evaluate_with_failures(
                    base, self.encoder, task, self.split, chosen, self.asked.settings
                )
            self.failed += [
                f"{chosen[adapter_name]}: {name}: {why}" for adapter_name, why in reasons.items()
            ]
            for adapter_name, result in results.items():
                self.keep(chosen[adapter_name], *result)
        for done, members in enumerate(self.harness, start=len(self.tasks)):
            self.reporter.advance(done, members.source)
            self.score_harness(base, members, models, missing)
        self.reporter.finish()

    def score_harness(
        self,
        base: Base,
        task: LmEvalTask,
        models: Mapping[str | None, str],
        missing: set[tuple[str, str]],
    ) -> None:
        """Score models on a harness task, or all members of a group of which one is missing."""
        chosen = {
            adapter_name: model
            for adapter_name, model in models.items()
            if any((model, name) in missing for name in task.names)
        }
        if not chosen:
            return
        with self.shortage_told(task.source):
            found, reasons = without_dead(score_lm_eval_task(base, task, chosen, self.split))
        self.failed += [
            f"{chosen[adapter_name]}: {name}: {why}"
            for (adapter_name, name), why in reasons.items()
        ]
        for adapter_name, evaluations in found.items():
            for record, items in evaluations:
                if (chosen[adapter_name], record.task) in missing:
                    self.keep(chosen[adapter_name], record, items)

    @contextmanager
    def shortage_told(self, name: str) -> Iterator[None]:
        """Out of memory is a matter of what was asked for.

        Raises:
            UserError: memory ran out.
        """
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            raise UserError(
                f"{name}: scoring ran {out_of_memory_message(error)}; give fewer adapters at once, or "
                f"a smaller --batch-tokens (now {self.asked.settings.batch_tokens})"
            ) from error

    def keep(self, model: str, record: EvalRecord, items: list[ItemResult]) -> None:
        """Hand one result over to the folder."""
        self.stored.keep(self.keys[model, record.task], model, record, items)
        self.new += 1

    def collect(
        self,
        weights: Mapping[str, str],
        dtype: str,
        facts: Sequence[TaskFacts],
        prompt_format: Literal["chat", "plain"],
        adapters: Sequence[AdapterFolder],
    ) -> list[Score]:
        """Every score asked for, compared with the base's, and stored as ``scores.json``."""
        forced = {adapter.label for adapter in adapters if adapter.is_forced}
        scores = []
        for task in facts:
            name = task.name
            base = self.stored.items(self.keys[BASE, name])
            for model in weights:
                key = self.keys[model, name]
                record = self.stored.record(key)
                if record is None:
                    continue
                change = None
                found = self.stored.items(key)
                assert found is not None
                # Of a harness score that is no mean of its items there is nothing to pair.
                is_paired = not is_lm_eval_task(name) or is_mean(record.score, scores_of(found))
                if model != BASE and base is not None and is_paired:
                    change = paired_estimate(scores_of(found)[None], scores_of(base))
                scores.append(
                    Score(
                        key=key,
                        model=model,
                        record=record.model_copy(update={"trial_id": model}),
                        change=change,
                        chance=task.chance,
                        score_unit=task.score_unit or accuracy_of(record),
                        weights_sha256=weights[model],
                        task_sha256=task.sha256,
                        dtype=dtype,
                        prompt_format=prompt_format,
                        num_fewshot=task.num_fewshot,
                        scorer=task.scorer,
                        source=task.source,
                        other_base_forced=model in forced,
                    )
                )
        self.stored.write(scores)
        return scores


def accuracy_of(record: EvalRecord) -> Literal["accuracy"] | None:
    """What a harness task's score is, as far as its metric's name tells."""
    return "accuracy" if record.metric.partition(",")[0] in SHARES else None


def scores_of(items: Sequence[ItemResult]) -> Array:
    """Headline scores, (items,)."""
    return np.array([item.score for item in items], dtype=np.float64)
