"""Any task of lm-evaluation-harness, by name or by a YAML file, under many models in memory.

The optional package ``lm-eval`` renders prompts and judges answers; Rankscope scores and generates.
The harness's response cache is never used: its keys do not name the model. Random generators are
restored. ``task_files.py`` checks what a task's files may do before anything in them can run;
templates run in Jinja's sandbox.
"""

import json
import math
import random
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rankscope.config.task import LM_EVAL_PREFIX
from rankscope.errors import UserError
from rankscope.evaluate.evaluator import Evaluation
from rankscope.evaluate.lm_eval.task_files import check_task, is_yaml
from rankscope.evaluate.metrics import standard_error
from rankscope.hashing import sha256_file, sha256_json
from rankscope.models.base import Base
from rankscope.records import EvalRecord, ItemResult

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from rankscope.evaluate.lm_eval.model import LmEvalModel

SEEDS = (0, 1234)  # The harness's: of Python's generator, and of all others


@dataclass(frozen=True, slots=True)
class LmEvalSettings:
    batch_tokens: int = 4096
    context: int = 2048  # Most tokens that the model accepts
    num_fewshot: int | None = None  # None keeps the task's own number
    max_items: int | None = None  # At most this many items of each task, its first ones
    chat: bool = False  # Prompts in the tokenizer's chat template, examples as turns
    allow_functions: bool = False  # Let the task's files run the Python functions that they name


@dataclass(frozen=True, slots=True)
class LmEvalTask:
    """A task of the harness, or every task of a group or tag, with its documents."""

    source: str  # ``lm_eval:NAME``, or the same with the path of a YAML file
    loaded: dict[str, Any]  # As the harness's index returns it
    settings: LmEvalSettings
    sha256: str
    """Of files, documents and settings: everything that scores depend on, model and tokenizer
    excepted. If it may run code, of the Python files in its folder too."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(LM_EVAL_PREFIX + name for name in self.loaded["tasks"])

    def config(self, name: str, key: str) -> Any:
        """The value of a key in the file of one of :attr:`names`."""
        return self.loaded["tasks"][name.removeprefix(LM_EVAL_PREFIX)].get_config(key)


def read_lm_eval_task(source: str, settings: LmEvalSettings) -> LmEvalTask:
    """Read ``lm_eval:NAME``, or the same with a YAML file, and its documents; needs no model."""
    _, manager = _import_harness(source)
    named = source.removeprefix(LM_EVAL_PREFIX)
    name, files = check_task(manager, named, settings.allow_functions)
    with _harness_seeds(), _sandboxed_templates():
        loaded = _load_documents(manager, name)
        for task in loaded["tasks"].values():
            if settings.num_fewshot is not None:
                task.set_config(key="num_fewshot", value=settings.num_fewshot)
            elif task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
        return LmEvalTask(source, loaded, settings, _task_hash(loaded, files, settings))


def _task_hash(loaded: Mapping[str, Any], files: Sequence[Path], settings: LmEvalSettings) -> str:
    """Hash of everything that a task's scores depend on, the model and its tokenizer excepted."""
    hashed = list(files)
    if settings.allow_functions:
        hashed += [code for folder in {f.parent for f in files} for code in folder.glob("*.py")]
    documents = [
        [list(task.eval_docs), list(task.fewshot_docs()) if task.get_config("num_fewshot") else []]
        for task in loaded["tasks"].values()
    ]
    return sha256_json(
        {
            "lm_eval": version("lm_eval"),
            "files": sorted(sha256_file(path) for path in hashed),
            "documents": json.dumps(documents, default=str, sort_keys=True),
            "settings": asdict(settings),
        }
    )


def score_lm_eval_task(
    base: Base, task: LmEvalTask, models: Mapping[str | None, str]
) -> dict[str | None, list[Evaluation]]:
    """Score a task of the harness, or every task of a group or tag, under the base and adapters.

    ``models`` maps adapter names to trial ids; None is the bare base. Gives each model's record and
    items of each task, in the harness's order. Records call the split ``test``: the harness scores
    a task's test split, or its validation split without one.
    """
    evaluate, _ = _import_harness(task.source)
    evaluations: dict[str | None, list[Evaluation]] = {}
    dropout_off = base.multi_lora.dropout_off()
    with _harness_seeds(), _sandboxed_templates(), dropout_off, torch.inference_mode():
        for adapter_name, trial_id in models.items():
            results, lm = _run_harness(evaluate, base, adapter_name, task)
            evaluations[adapter_name] = [
                evaluation_of(name, results, lm, trial_id) for name in task.loaded["tasks"]
            ]
    return evaluations


# --- the harness --------------------------------------------------------------------------------


def _import_harness(source: str) -> tuple[Any, "TaskManager"]:
    """The harness's ``evaluate``, and its index of tasks (empty for a file)."""
    try:
        from lm_eval.evaluator import evaluate
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(
            f"task {source!r} needs the package lm-eval ({error}): pip install 'rankscope[lm-eval]'"
        ) from error
    return evaluate, TaskManager(include_defaults=not is_yaml(source))


@contextmanager
def _harness_seeds() -> Iterator[None]:
    """Seed as the harness does, and restore every global generator afterwards."""
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
    """Let a task's templates read the document and nothing else of Python."""
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


def _load_documents(manager: "TaskManager", name: str) -> dict[str, Any]:
    try:
        return dict(manager.load([name]))
    except UserError:
        raise
    except Exception as error:  # any error of the libraries concerns the user's task or data
        reason = str(error).strip().splitlines() or ["no message"]
        expected = f"a task that lm-evaluation-harness {version('lm_eval')} can load: see its file"
        frames = traceback.walk_tb(error.__traceback__)
        if any(frame.f_globals.get("__name__") == "datasets.load" for frame, _ in frames):
            expected = (
                "a harness task whose data set can be read (local files in dataset_kwargs: "
                "data_files, or a reachable hub)"
            )
        raise UserError(
            f"task {LM_EVAL_PREFIX}{name}: cannot be loaded: {type(error).__name__}: "
            f"{reason[0]}. Expected {expected}"
        ) from error


def _run_harness(
    evaluate: Any, base: Base, adapter_name: str | None, task: LmEvalTask
) -> tuple[dict[str, Any], "LmEvalModel"]:
    """The harness's results under one model, and the model with its seconds and tokens."""
    from rankscope.evaluate.lm_eval.model import LmEvalModel

    settings = task.settings
    for member in task.loaded["tasks"].values():
        member.set_fewshot_seed(seed=SEEDS[1])
    lm = LmEvalModel(base, adapter_name, settings.context, settings.batch_tokens)
    results = evaluate(
        lm=lm,
        task_dict=task.loaded,
        limit=settings.max_items,
        cache_requests=False,
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=settings.chat,
        fewshot_as_multiturn=settings.chat,
        confirm_run_unsafe_code=settings.allow_functions,
    )
    return results, lm


# --- records ------------------------------------------------------------------------------------


def evaluation_of(
    name: str, results: Mapping[str, Any], lm: "LmEvalModel", trial_id: str
) -> Evaluation:
    """One task's record and items; the primary metric is its first metric under its first filter. A
    group runs as one; its seconds and tokens are divided by items."""
    metrics, primary, filter_name = _read_metrics(results["results"][name])
    samples = [s for s in results["samples"][name] if s["filter"] == filter_name]
    items = [_item_of(name, primary.partition(",")[0], sample) for sample in samples]
    scores = [item.score for item in items]
    counts = {
        task: len({sample["doc_id"] for sample in of_task})
        for task, of_task in results["samples"].items()
    }
    share = counts[name] / max(1, sum(counts.values()))
    record = EvalRecord(
        trial_id=trial_id,
        task=LM_EVAL_PREFIX + name,
        split="test",
        metric=primary,
        score=metrics[primary],
        standard_error=standard_error(scores) if is_mean(metrics[primary], scores) else None,
        n=len(items),
        metrics=metrics,
        seconds=share * lm.seconds,
        num_tokens=round(share * lm.num_tokens),
    )
    return Evaluation(record, items)


def is_mean(score: float, item_scores: Sequence[float] | np.ndarray[Any, Any]) -> bool:
    """Whether a score is the mean of its items, unlike a perplexity or an F1."""
    mean = math.fsum(item_scores) / len(item_scores)
    return math.isclose(score, mean, rel_tol=1e-9, abs_tol=1e-12)


def _read_metrics(numbers: Mapping[str, Any]) -> tuple[dict[str, float], str, str]:
    """(metrics, the primary one, its filter). ``acc,none`` becomes ``acc``; other filters stay."""
    metrics: dict[str, float] = {}
    primary_filter = "none"
    for key, value in numbers.items():
        metric, comma, filter_name = key.partition(",")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not comma or metric.endswith("_stderr") or not is_number:
            continue
        if not metrics:
            primary_filter = filter_name
        metrics[metric if filter_name == "none" else key] = float(value)
    if not metrics:
        raise UserError(
            f"the task gave no number: {dict(numbers)}; expected a metric in metric_list"
        )
    return metrics, next(iter(metrics)), primary_filter


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
        item_id=f"{LM_EVAL_PREFIX}{name}/{sample['doc_id']}",
        subject=None,
        score=score,
        gold=str(target),
        prediction=prediction,
        gold_logprob=gold_logprob,
        option_logprobs=logprobs,
        generated=answers[0] if isinstance(answers[0], str) else None,
    )
