"""Any task of lm-evaluation-harness, by name or by a YAML file, under many models in memory.

The harness (package ``lm-eval``, optional) renders prompts and judges answers; Rankscope scores and
generates. Nothing of the harness's response cache is used: its key does not name the model. Random
generators are put back as they were. What a task's files may do is checked in ``lm_eval_tasks.py``
before anything in them can run; its templates run in Jinja's sandbox.
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

from rankscope.errors import UserError
from rankscope.evaluate.lm_eval.task_files import PREFIX, check_task, is_file
from rankscope.evaluate.metrics import standard_error
from rankscope.models.base import Base
from rankscope.provenance import sha256_file, sha256_json
from rankscope.records import EvalRecord, ItemResult, Split

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from rankscope.evaluate.lm_eval.model import LmEvalModel

SEEDS = (0, 1234)
"""Of Python's generator and of all others, few-shot samplers among them: the harness's own."""
Evaluation = tuple[EvalRecord, list[ItemResult]]


@dataclass(frozen=True, slots=True)
class LmEvalSettings:
    """How harness tasks are run."""

    batch_tokens: int = 4096
    context: int = 2048
    """Most tokens that the model takes in."""
    num_fewshot: int | None = None
    """Examples before each question; None leaves it to the task."""
    max_items: int | None = None
    """At most so many items of each task, its first ones."""
    chat: bool = False
    """Prompts in the tokenizer's chat template, examples as turns."""
    allow_functions: bool = False
    """Let the task's files run the Python that they name."""


def is_lm_eval_task(name: str) -> bool:
    """A task name such as ``lm_eval:hellaswag`` or ``lm_eval:./own_task.yaml``."""
    return name.startswith(PREFIX)


@dataclass(frozen=True, slots=True)
class LmEvalTask:
    """A harness task, or every task of a group or tag, with its documents."""

    source: str
    """``lm_eval:NAME``, or the same with the path of a YAML file."""
    loaded: dict[str, Any]
    """As the harness's index returns it."""
    settings: LmEvalSettings
    sha256: str
    """Of its files, documents and settings: of all that scores depend on but model and tokenizer.
    Of code that it may run, the Python files beside its own."""

    @property
    def names(self) -> tuple[str, ...]:
        """Its tasks, as records call them."""
        return tuple(PREFIX + name for name in self.loaded["tasks"])

    def config(self, name: str, key: str) -> Any:
        """What one of :attr:`names` says under a key of its file."""
        return self.loaded["tasks"][name.removeprefix(PREFIX)].get_config(key)


def read_lm_eval_task(source: str, settings: LmEvalSettings) -> LmEvalTask:
    """Read a task and its documents; no model is needed.

    Args:
        source: ``lm_eval:NAME``, or the same with the path of a YAML file.
        settings: see there.

    Raises:
        UserError: the package is missing, no such task, or one that is refused or cannot be read.
    """
    _, manager = harness(source)
    checked = check_task(manager, source.removeprefix(PREFIX), settings.allow_functions)
    with generators_put_back(), sandboxed_templates():
        loaded = load(manager, checked.names)
        for task in loaded["tasks"].values():
            if settings.num_fewshot is not None:
                task.set_config(key="num_fewshot", value=settings.num_fewshot)
            elif task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
        return LmEvalTask(source, loaded, settings, hash_of(loaded, checked.files, settings))


def hash_of(loaded: Mapping[str, Any], files: Sequence[Path], settings: LmEvalSettings) -> str:
    """Hash of all that a task's scores depend on but the model and its tokenizer."""
    read = list(files)
    if settings.allow_functions:
        read += [code for folder in {f.parent for f in files} for code in folder.glob("*.py")]
    documents = [
        [list(task.eval_docs), list(task.fewshot_docs()) if task.get_config("num_fewshot") else []]
        for task in loaded["tasks"].values()
    ]
    return sha256_json(
        {
            "lm_eval": version("lm_eval"),
            "files": sorted(sha256_file(path) for path in read),
            "documents": json.dumps(documents, default=str, sort_keys=True),
            "settings": asdict(settings),
        }
    )


def evaluate_lm_eval(
    base: Base,
    source: str,
    models: Mapping[str | None, str],
    settings: LmEvalSettings,
    split: Split = "test",
) -> dict[str | None, list[Evaluation]]:
    """Read a harness task and score it, see :func:`score_lm_eval_task`."""
    return score_lm_eval_task(base, read_lm_eval_task(source, settings), models, split)


def score_lm_eval_task(
    base: Base, task: LmEvalTask, models: Mapping[str | None, str], split: Split = "test"
) -> dict[str | None, list[Evaluation]]:
    """Score one harness task, or every task of a group or tag, under the base and any adapters.

    Args:
        base: with the adapters attached.
        task: with its settings.
        models: adapter_name -> trial id for the records; adapter_name None is the bare base.
        split: what the records call these items; the harness takes a task's test or validation.

    Returns:
        Per adapter_name the record and items of each task, in the harness's order.

    Raises:
        UserError: a prompt beyond the context, or a task that samples.
    """
    evaluate, _ = harness(task.source)
    was_training, base.multi_lora.training = base.multi_lora.training, False
    try:
        with generators_put_back(), sandboxed_templates(), torch.inference_mode():
            found: dict[str | None, list[Evaluation]] = {}
            for adapter_name, trial_id in models.items():
                results, lm = run(evaluate, base, adapter_name, task.loaded, task.settings)
                found[adapter_name] = [
                    evaluation_of(name, results, lm, trial_id, split)
                    for name in task.loaded["tasks"]
                ]
    finally:
        base.multi_lora.training = was_training
    return found


def harness(source: str) -> tuple[Any, "TaskManager"]:
    """The harness's ``evaluate``, and its index of tasks (of none where a file is given).

    Raises:
        UserError: the package is not installed.
    """
    try:
        from lm_eval.evaluator import evaluate
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(
            f"task {source!r} needs the package lm-eval ({error}): pip install 'rankscope[lm-eval]'"
        ) from error
    return evaluate, TaskManager(include_defaults=not is_file(source.removeprefix(PREFIX)))


# --- running ------------------------------------------------------------------------------------


@contextmanager
def generators_put_back() -> Iterator[None]:
    """Seed as the harness does, and leave every global generator as it was."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    random.seed(SEEDS[0])
    np.random.seed(SEEDS[1])
    torch.manual_seed(SEEDS[1])
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if on_gpus:
            torch.cuda.set_rng_state_all(on_gpus)


@contextmanager
def sandboxed_templates() -> Iterator[None]:
    """A task's templates can read the document and nothing else of Python's."""
    import lm_eval.utils as templates
    from jinja2.sandbox import SandboxedEnvironment

    own = templates.env
    box = SandboxedEnvironment(
        loader=own.loader, undefined=own.undefined, keep_trailing_newline=True
    )
    box.filters.update(own.filters)
    templates.env = box
    try:
        yield
    finally:
        templates.env = own


def load(manager: "TaskManager", names: list[str]) -> dict[str, Any]:
    """The tasks with their documents.

    Raises:
        UserError: the harness or the data sets library refuses them.
    """
    try:
        return dict(manager.load(names))
    except UserError:
        raise
    except Exception as error:  # whatever the libraries raise is about this task's own file or data
        reason = str(error).strip().splitlines() or ["no message"]
        expected = f"a task that lm-evaluation-harness {version('lm_eval')} can load: see its file"
        if came_from_data(error):
            expected = (
                "a harness task whose data set is at hand (local files in dataset_kwargs: "
                "data_files, or a reachable hub)"
            )
        raise UserError(
            f"task {PREFIX}{names[0]}: cannot be loaded: {type(error).__name__}: {reason[0]}. "
            f"Expected {expected}"
        ) from error


def came_from_data(error: BaseException) -> bool:
    """Whether the data sets library raised it while it looked for a data set or read it."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__") == "datasets.load" for frame, _ in frames)


def run(
    evaluate: Any,
    base: Base,
    adapter_name: str | None,
    loaded: dict[str, Any],
    settings: LmEvalSettings,
) -> tuple[dict[str, Any], "LmEvalModel"]:
    """The harness's results of all loaded tasks under one model, and what it cost."""
    from rankscope.evaluate.lm_eval.model import LmEvalModel

    for task in loaded["tasks"].values():
        task.set_fewshot_seed(seed=SEEDS[1])
    lm = LmEvalModel(base, adapter_name, settings.context, settings.batch_tokens)
    results = evaluate(
        lm=lm,
        task_dict=loaded,
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
    name: str, results: Mapping[str, Any], lm: "LmEvalModel", trial_id: str, split: Split
) -> Evaluation:
    """One task's record and items; the primary_metric is its first metric under its first filter.

    A group is run as one: its seconds and tokens are shared by items.
    """
    metrics, primary_metric, kept = metrics_of(results["results"][name])
    samples = [s for s in results["samples"][name] if s["filter"] == kept]
    items = [item_of(name, primary_metric.partition(",")[0], sample) for sample in samples]
    of_items = [item.score for item in items]
    counts = {
        task: len({sample["doc_id"] for sample in found})
        for task, found in results["samples"].items()
    }
    share = counts[name] / max(1, sum(counts.values()))
    record = EvalRecord(
        trial_id=trial_id,
        task=PREFIX + name,
        split=split,
        metric=primary_metric,
        score=metrics[primary_metric],
        standard_error=standard_error(of_items)
        if is_mean(metrics[primary_metric], of_items)
        else None,
        n=len(items),
        metrics=metrics,
        seconds=share * lm.seconds,
        num_tokens=round(share * lm.num_tokens),
    )
    return record, items


def is_mean(score: float, of_items: Sequence[float] | np.ndarray[Any, Any]) -> bool:
    """A score that is the mean of its items: not a perplexity, nor an F1."""
    return math.isclose(score, math.fsum(of_items) / len(of_items), rel_tol=1e-9, abs_tol=1e-12)


def metrics_of(found: Mapping[str, Any]) -> tuple[dict[str, float], str, str]:
    """(numbers by metric, primary_metric, its filter); ``acc,none`` is ``acc``, others name theirs."""
    metrics: dict[str, float] = {}
    kept = "none"
    for key, value in found.items():
        metric, comma, filter_name = key.partition(",")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not comma or metric.endswith("_stderr") or not is_number:
            continue
        if not metrics:
            kept = filter_name
        metrics[metric if filter_name == "none" else key] = float(value)
    if not metrics:
        raise UserError(f"the task gave no number: {dict(found)}; expected a metric in metric_list")
    return metrics, next(iter(metrics)), kept


def item_of(name: str, metric: str, sample: Mapping[str, Any]) -> ItemResult:
    """One document as the harness judged it."""
    answers = sample["filtered_resps"]
    pairs = [a for a in answers if isinstance(a, tuple | list) and len(a) == 2]
    is_choice = len(pairs) == len(answers) > 1
    logprobs = tuple(float(pair[0]) for pair in pairs) if is_choice else None
    value = sample.get(metric)
    score = float(value) if isinstance(value, int | float | np.number) else math.nan
    if math.isnan(score) and isinstance(value, tuple | list) and value:
        score = float(value[0])  # perplexity: (log p of the text, its words or bytes)
    target = sample["target"]
    gold_logprob = None
    prediction = "" if logprobs else str(answers[0])
    if logprobs is not None:
        prediction = str(sample["arguments"][int(np.argmax(logprobs))][1]).strip()
        if isinstance(target, int) and 0 <= target < len(logprobs):
            gold_logprob = logprobs[target]
    return ItemResult(
        item_id=f"{PREFIX}{name}/{sample['doc_id']}",
        subject=None,
        score=score,
        gold=str(target),
        prediction=prediction,
        gold_logprob=gold_logprob,
        option_logprobs=logprobs,
        generated=answers[0] if isinstance(answers[0], str) else None,
    )
