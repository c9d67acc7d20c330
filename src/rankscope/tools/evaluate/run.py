"""Score any model and any number of its adapters on any tasks.

A result's key is a hash of the weights, the dtype, the task with everything that its scores depend
on, and the split; a result that the output folder already holds is not scored again.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rankscope.advise.statistics.estimates import paired_estimate
from rankscope.config.task import LM_EVAL_PREFIX
from rankscope.data.encode import Encoder
from rankscope.device import choose_device, choose_dtype, dtype_name
from rankscope.errors import reporting_shortages
from rankscope.evaluate.context_window import context_length
from rankscope.evaluate.evaluator import Evaluation
from rankscope.evaluate.lm_eval.bridge import is_mean
from rankscope.filesystem import output_folder
from rankscope.hashing import sha256_json, tokenizer_sha256, weights_sha256
from rankscope.models.base import Base
from rankscope.models.load import load_base, load_tokenizer
from rankscope.models.model_folder import model_folder
from rankscope.models.parameters import architecture, read_model_config
from rankscope.progress import NullReporter, ProgressReporter
from rankscope.records import BASE, Estimate, EvalRecord
from rankscope.tools.evaluate.adapters import AdapterFolder, read_adapters
from rankscope.tools.evaluate.lm_eval_layout import check_harness_names
from rankscope.tools.evaluate.request import EvalRequest
from rankscope.tools.evaluate.results_folder import ResultsFolder, Score, TaskInfo
from rankscope.tools.evaluate.tasks import EvalTask, Models, read_tasks

ACCURACIES = frozenset({"acc", "acc_norm", "acc_bytes", "exact_match"})
"""Primary metrics of lm-evaluation-harness that are shares of right answers."""


@dataclass(frozen=True, slots=True)
class _EvalResult:
    scores: tuple[Score, ...]
    """Task by task, the base first, then adapters in the order of the request."""
    failed: tuple[str, ...]  # One sentence per model and task without finite likelihoods
    num_new: int  # Scores computed now; the output folder held the others
    notes: tuple[str, ...]
    results: ResultsFolder  # The items of every score, by its key

    def as_json(self) -> dict[str, Any]:
        return {
            "scores": [score.model_dump(mode="json") for score in self.scores],
            "failed": list(self.failed),
            "scored_now": self.num_new,
            "scored_before": len(self.scores) - self.num_new,
            "notes": list(self.notes),
        }

    def summary(self, out: Path) -> str:
        """One line: where the results are, and how many of them are new."""
        num_before = len(self.scores) - self.num_new
        if not self.num_new:
            return f"{out}: all {num_before} results were there already; nothing was scored again"
        already = f", {num_before} were there already" if num_before else ""
        return f"{out}: {self.num_new} results scored now{already}"


def score(
    request: EvalRequest, out: Path | None = None, reporter: ProgressReporter | None = None
) -> _EvalResult:
    """Score a model and its adapters on tasks; skip what ``out`` already holds.

    Everything is read and checked before anything is written. Then every task's results are written
    as soon as they are complete. Raises UserError: a model, adapter, task, split or row cannot be
    used, or ``out`` cannot be written to; IntegrityError: results in ``out`` were altered.
    """
    source = request.model_source
    folder = model_folder(source)
    device = choose_device(request.device)
    dtype = choose_dtype(request.dtype, device)
    encoder = Encoder(load_tokenizer(folder), request.prompt_format, max_length=None)
    base_sha256 = weights_sha256(folder)
    config = read_model_config(folder)
    adapters = read_adapters(
        request.adapters, architecture(config), base_sha256, force=request.force
    )
    tasks = read_tasks(request, encoder, tokenizer_sha256(folder), context_length(config))
    if request.lm_eval_layout:
        check_harness_names(name for task in tasks for name in task.infos)
    notes = [*encoder.notes]
    notes += [note for adapter in adapters for note in adapter.notes]
    notes += [note for task in tasks for note in task.notes]
    weights = {BASE: base_sha256}
    weights |= {a.label: sha256_json([base_sha256, a.sha256]) for a in adapters}
    runs_in = dtype_name(dtype)
    keys = {
        (model, name): sha256_json([sha256, runs_in, info.task_sha256, request.split])[:16]
        for model, sha256 in weights.items()
        for task in tasks
        for name, info in task.infos.items()
    }
    results = ResultsFolder(out)
    scoring = Scoring(tasks, results, keys, reporter or NullReporter(), request)
    if scoring.missing(weights):
        with output_folder(out):
            scoring.run(load_base(source, device, dtype, folder), adapters)
    forced = {adapter.label for adapter in adapters if adapter.is_forced}
    scores = [
        Score(
            **info.model_dump(),
            key=keys[model, record.task],
            model=model,
            record=record,
            change=change,
            weights_sha256=weights[model],
            dtype=runs_in,
            prompt_format=encoder.prompt_format,
            other_base_forced=model in forced,
        )
        for model, info, record, change in scoring.comparisons(weights)
    ]
    results.write_scores(scores)
    return _EvalResult(tuple(scores), tuple(scoring.failed), scoring.num_new, tuple(notes), results)


def _paired_change(evaluation: Evaluation, base: Evaluation | None) -> Estimate | None:
    """The change against the base, paired by items; None if the score is no mean of its items."""
    record, items = evaluation
    scores = np.array([item.score for item in items])
    if base is None or (
        record.task.startswith(LM_EVAL_PREFIX) and not is_mean(record.score, scores)
    ):
        return None
    return paired_estimate(scores[None], np.array([item.score for item in base.items]))


@dataclass(slots=True)
class Scoring:
    tasks: Sequence[EvalTask]
    results: ResultsFolder
    keys: Mapping[tuple[str, str], str]  # (model, task) -> key
    reporter: ProgressReporter
    request: EvalRequest
    failed: list[str] = field(default_factory=list)
    num_new: int = 0

    def missing(self, models: Collection[str]) -> set[tuple[str, str]]:
        """(model, task) without a result."""
        return {
            (model, task)
            for (model, task), key in self.keys.items()
            if model in models and self.results.get(key) is None
        }

    def run(self, base: Base, adapters: Sequence[AdapterFolder]) -> None:
        """Score the base and LoRA adapters together, and every other method by itself. Raises
        UserError: an adapter is damaged or does not fit; checked before anything is scored."""
        wanted = [adapter for adapter in adapters if self.missing([adapter.label])]
        others = [adapter for adapter in wanted if not adapter.is_lora]
        for adapter in others:
            adapter.attach(base)
            base.multi_lora.clear()
        models: dict[str | None, str] = {None: BASE} if self.missing([BASE]) else {}
        for adapter in wanted:
            if adapter.is_lora:
                adapter.attach(base)
                models[adapter.label] = adapter.label
        if models:
            self.score_models(base, models)
        base.multi_lora.clear()
        for adapter in others:
            adapter.attach(base)
            try:
                self.score_models(base, {None: adapter.label})
            finally:
                base.multi_lora.clear()

    def score_models(self, base: Base, models: Models) -> None:
        """Score the models on the base together, task by task."""
        missing = self.missing(models.values())
        self.reporter.stage(f"scoring {', '.join(models.values())}", len(self.tasks))
        for num_done, task in enumerate(self.tasks):
            self.reporter.advance(num_done, task.source)
            needed = {
                name: model
                for name, model in models.items()
                if any((model, task_name) in missing for task_name in task.infos)
            }
            if not needed:
                continue
            batch_tokens = self.request.settings.batch_tokens
            do = f"give fewer adapters, or a smaller --batch-tokens (now {batch_tokens})"
            with reporting_shortages(f"scoring {task.source}", do=do):
                evaluations, failures = task.evaluate(base, needed)
            self.failed += failures
            for model, evaluation in evaluations:
                key = self.keys[model, evaluation.record.task]
                if self.results.get(key) is None:
                    self.results.put(key, model, evaluation)
                    self.num_new += 1
        self.reporter.finish()

    def comparisons(
        self, models: Collection[str]
    ) -> Iterator[tuple[str, TaskInfo, EvalRecord, Estimate | None]]:
        """(model, task, its record, its change against the base), task by task."""
        infos = {name: info for task in self.tasks for name, info in task.infos.items()}
        for name, info in infos.items():
            base = self.results.get(self.keys[BASE, name])
            for model in models:
                evaluation = self.results.get(self.keys[model, name])
                if evaluation is not None:
                    record = evaluation.record.model_copy(update={"trial_id": model})
                    unit = info.score_unit
                    if record.metric.partition(",")[0] in ACCURACIES:
                        unit = unit or "accuracy"
                    yield (
                        model,
                        info.model_copy(update={"score_unit": unit}),
                        record,
                        None if model == BASE else _paired_change(evaluation, base),
                    )
