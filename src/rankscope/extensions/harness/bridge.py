"""Any task of lm-evaluation-harness, by name or by a YAML file, under many models in memory.

The optional package ``lm-eval`` renders prompts and judges answers; Rankscope scores and generates.
The harness's response cache is never used: its keys do not name the model. Random generators are
restored. ``task_files.py`` checks what a task's files may do before anything in them can run;
templates run in Jinja's sandbox.
"""

import json
import math
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rankscope.config.task import TaskConfig
from rankscope.data.encode import Encoder
from rankscope.data.items import Item
from rankscope.data.registry import TaskSpec
from rankscope.data.tasks import LoadedTask
from rankscope.errors import UserError, installed, reading
from rankscope.evaluate.context_window import EncodedSplit, context_length
from rankscope.evaluate.metrics import ModelScores
from rankscope.evaluate.scorers import ALLOWED, scorers
from rankscope.evaluate.scorers.scorer import Scorer
from rankscope.extensions.harness import PREFIX
from rankscope.extensions.harness.task_files import check_task, is_yaml
from rankscope.hashing import sha256_file, sha256_json
from rankscope.models.base import Base
from rankscope.records import ItemResult

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from rankscope.extensions.harness.model import LmEvalModel


SEEDS = (0, 1234)  # The harness's: of Python's generator, and of all others
DEFAULT_CONTEXT = 2048  # Most tokens of a prompt if the model's configuration gives no limit
ACCURACIES = frozenset({"acc", "acc_norm", "acc_bytes", "exact_match"})
"""Metrics that are shares of right answers."""


def harness_tasks(source: str) -> list[TaskConfig]:
    """List the task of ``lm_eval:NAME`` or ``lm_eval:FILE.yaml``, or every task of a group or
    tag."""
    named = source.removeprefix(PREFIX)
    file = str(Path(named).expanduser().resolve()) if is_yaml(named) else None
    return [
        TaskConfig.model_validate({"name": PREFIX + name, "source_file": file})
        for name in _read(source)[0]
    ]


def load_harness_task(config: TaskConfig, max_items: int | None) -> LoadedTask:
    """Read one task of the harness with its documents; needs no model.

    Records call the split ``test``: the harness scores a task's test split, or its validation split
    without one.
    """
    name = config.name.removeprefix(PREFIX)
    tasks, files = _read(PREFIX + (config.source_file or name))
    if name not in tasks:
        raise UserError(
            f"task {config.name}",
            f"{', '.join(list(tasks)[:3])}",
            "a single task of this name",
            f"score them with 'rankscope eval --tasks {config.name}'",
        )
    task = tasks[name]
    shots = task.get_config("num_fewshot") or 0
    task.set_config(
        key="num_fewshot", value=shots if config.num_fewshot == "own" else config.num_fewshot
    )
    scorer = _HarnessScorer(config.name, task, _task_hash(task, files))
    scorers()[scorer.name] = scorer
    documents = list(task.eval_docs)[:max_items]
    spec = TaskSpec(
        name=config.name,
        description="",
        scorer=scorer.name,
        prompt="",
        num_fewshot=int(task.get_config("num_fewshot")),
    )
    return LoadedTask(
        spec=spec,
        source=f"lm-evaluation-harness, {task.get_config('dataset_path')}",
        test=tuple(
            Item(f"{config.name}/{number}", json.dumps(document, default=str), "")
            for number, document in enumerate(documents)
        ),
        sha256=scorer.sha256,
    )


class _HarnessScorer(Scorer[None]):
    """Scores one task: the harness renders prompts and judges answers, Rankscope runs the models.

    The primary metric is the first of the task's ``metric_list``, under its first filter.
    """

    def __init__(self, name: str, task: Any, sha256: str) -> None:
        self.name = name
        self.task = task
        self.sha256 = sha256
        """Hash of files, documents and examples, on which scores depend besides model and
        tokenizer. If the task may run code, it covers the Python files in its folder, too."""
        metric, filter_name = next(iter(task._metric_fn_list)), task._filters[0].name
        self.metrics = {_full_name(metric, filter_name): ""}
        self.unit = "accuracy" if metric in ACCURACIES else None

    def encode(
        self, encoder: Encoder, items: Sequence[Item], spec: TaskSpec, context: int | None
    ) -> list[None]:
        return [None] * len(items)

    def encoder_settings(self, encoder: Encoder) -> dict[str, Any]:
        return {"harness_task": self.sha256}

    def run(
        self, base: Base, split: EncodedSplit, adapter_names: Sequence[str | None]
    ) -> dict[str | None, ModelScores]:
        from rankscope.extensions.harness.model import LmEvalModel

        context = context_length(base.model.config) or DEFAULT_CONTEXT
        limits = context, split.settings.batch_tokens
        with _harness_seeds(), _sandboxed_templates():
            models = {name: LmEvalModel(base, name, *limits) for name in adapter_names}
            return {name: self.scores(lm, split) for name, lm in models.items()}

    def scores(self, lm: "LmEvalModel", split: EncodedSplit) -> ModelScores:
        from lm_eval.evaluator import evaluate

        name, is_chat = self.task.task_name, split.encoder.prompt_format == "chat"
        self.task.set_fewshot_seed(seed=SEEDS[1])
        results = evaluate(
            lm=lm,
            task_dict={"tasks": {name: self.task}, "groups": {}, "group_map": {}},
            limit=len(split.items),
            cache_requests=False,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=is_chat,
            fewshot_as_multiturn=is_chat,
            confirm_run_unsafe_code=_allows_functions(),
        )
        metrics = _read_metrics(results["results"][name])
        if self.default_metric not in metrics:
            raise UserError(
                f"task {self.name}",
                f"the numbers {', '.join(metrics) or 'none'}",
                f"{self.default_metric}, the first of its metric_list",
                "correct the task's file",
            )
        metric, filter_name = self.default_metric.partition(",")[0], self.task._filters[0].name
        samples = [s for s in results["samples"][name] if s["filter"] == filter_name]
        items = [_item_of(self.name, metric, sample) for sample in samples]
        logprobs = [value for item in items for value in item.option_logprobs or ()]
        if not np.isfinite([*metrics.values(), *logprobs]).all():
            metrics["not_finite"] = 1.0
        return ModelScores(items, metrics, lm.seconds, lm.num_tokens)


def _allows_functions() -> bool:
    """Whether task files may run the Python functions that they name."""
    return os.environ.get(ALLOWED) == "1"


def _read(source: str) -> tuple[dict[str, Any], list[Path]]:
    """Load the harness's tasks of a name or file, and the files that describe them, checked
    first."""
    manager = _import_harness(source)
    named, files = check_task(manager, source.removeprefix(PREFIX), _allows_functions())
    place = f"task {PREFIX}{named}: cannot be loaded"
    expected = (
        f"a task that lm-evaluation-harness {version('lm_eval')} can load, and whose data set can "
        "be read (local files in dataset_kwargs: data_files, or a reachable hub): see its file"
    )
    # Any error of the libraries concerns the user's task or data.
    with _harness_seeds(), _sandboxed_templates(), reading(place, expected):
        return manager.load([named])["tasks"], files


def _task_hash(task: Any, files: Sequence[Path]) -> str:
    hashed = list(files)
    if _allows_functions():
        hashed += [code for folder in {f.parent for f in files} for code in folder.glob("*.py")]
    shots = task.get_config("num_fewshot")
    documents = [list(task.eval_docs), list(task.fewshot_docs()) if shots else []]
    return sha256_json(
        {
            "lm_eval": version("lm_eval"),
            "files": sorted(sha256_file(path) for path in hashed),
            "documents": json.dumps(documents, default=str, sort_keys=True),
            "num_fewshot": shots,
            "allows_functions": _allows_functions(),
        }
    )


# --- the harness --------------------------------------------------------------------------------


def _import_harness(source: str) -> "TaskManager":
    """Return the harness's index of tasks, empty for a file."""
    with installed(f"task {source!r}", "lm-eval"):
        import lm_eval.evaluator  # noqa: F401
        from lm_eval.tasks import TaskManager
    return TaskManager(include_defaults=not is_yaml(source))


@contextmanager
def _harness_seeds() -> Iterator[None]:
    """Seed like the harness inside, and restore every global generator at the end."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        random.seed(SEEDS[0])
        np.random.seed(SEEDS[1])
        torch.manual_seed(SEEDS[1])
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


@contextmanager
def _sandboxed_templates() -> Iterator[None]:
    """Let a task's templates read the document, and nothing else of Python, inside."""
    import lm_eval.utils as templates
    from jinja2.sandbox import SandboxedEnvironment

    original = templates.env
    sandbox = SandboxedEnvironment(
        loader=original.loader, undefined=original.undefined, keep_trailing_newline=True
    )
    sandbox.filters.update(original.filters)
    templates.env = sandbox
    try:
        yield
    finally:
        templates.env = original


# --- numbers ------------------------------------------------------------------------------------


def _full_name(metric: str, filter_name: str) -> str:
    return metric if filter_name == "none" else f"{metric},{filter_name}"


def _read_metrics(numbers: Mapping[str, Any]) -> dict[str, float]:
    """Return every metric without standard errors; ``acc,none`` becomes ``acc``, other filters
    stay."""
    metrics: dict[str, float] = {}
    for key, value in numbers.items():
        metric, comma, filter_name = key.partition(",")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if comma and is_number and not metric.endswith("_stderr"):
            metrics[_full_name(metric, filter_name)] = float(value)
    return metrics


def _item_of(name: str, metric: str, sample: Mapping[str, Any]) -> ItemResult:
    answers, target, value = sample["filtered_resps"], sample["target"], sample.get(metric)
    if isinstance(value, tuple | list) and value:
        value = value[0]  # perplexity: (log p of the text, its words or bytes)
    score = float(value) if isinstance(value, int | float | np.number) else math.nan
    is_choice = len(answers) > 1 and all(
        isinstance(answer, tuple | list) and len(answer) == 2 for answer in answers
    )
    logprobs = tuple(float(answer[0]) for answer in answers) if is_choice else None
    prediction, gold_logprob = str(answers[0]), None
    if logprobs is not None:
        prediction = str(sample["arguments"][int(np.argmax(logprobs))][1]).strip()
        if isinstance(target, int) and 0 <= target < len(logprobs):
            gold_logprob = logprobs[target]
    return ItemResult(
        item_id=f"{name}/{sample['doc_id']}",
        subject=None,
        score=score,
        gold=str(target),
        prediction=prediction,
        gold_logprob=gold_logprob,
        option_logprobs=logprobs,
        generated=answers[0] if isinstance(answers[0], str) else None,
    )
