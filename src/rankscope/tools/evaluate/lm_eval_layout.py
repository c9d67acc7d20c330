"""Results in the layout of lm-evaluation-harness, for programs that read its output.

    OUT/<model>/results_<date>.json           scores of one model on all tasks
    OUT/<model>/samples_<task>_<date>.jsonl   its items

The layout is that of the harness's ``EvaluationTracker`` 0.4; the package itself is not needed.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rankscope.config.task import LM_EVAL_PREFIX
from rankscope.device import provenance
from rankscope.errors import UserError
from rankscope.filesystem import replace_text
from rankscope.hashing import sha256_json
from rankscope.records import BASE, ItemResult
from rankscope.tools.evaluate.adapters import adapter_labels
from rankscope.tools.evaluate.request import EvalRequest
from rankscope.tools.evaluate.results_folder import ResultsFolder, Score

UNFIT_FOR_FOLDERS = re.compile(r"[\"<>:/|\\?*\[\]]+")
LOWER_IS_BETTER = frozenset({"bits_per_byte", "perplexity", "not_finite"})
"""Metrics of Rankscope's own scorers that fall as a model gets better."""


def write_lm_eval_layout(
    scores: Sequence[Score], results: ResultsFolder, request: EvalRequest, out: Path
) -> None:
    """Write the scores and items of every model; the files of earlier calls stay."""
    now = datetime.now(UTC)
    date = now.replace(tzinfo=None).isoformat().replace(":", "-")
    items = {s.key: of.items if (of := results.get(s.key)) else [] for s in scores}
    # Only the base's items hold the prompt, which is every model's.
    prompts = {
        (s.record.task, item.item_id): item.prompt or ""
        for s in scores
        if s.model == BASE
        for item in items[s.key]
    }
    for model in dict.fromkeys(score.model for score in scores):
        of_model = [score for score in scores if score.model == model]
        folder = out / results_folder_name(model, request)
        folder.mkdir(parents=True, exist_ok=True)
        samples = {
            harness_name(s.record.task): _samples(s, items[s.key], prompts) for s in of_model
        }
        summary = _summary(model, of_model, samples, request, now)
        text = json.dumps(summary, indent=2, ensure_ascii=False)
        replace_text(folder / f"results_{date}.json", text)
        for task, rows in samples.items():
            text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
            replace_text(folder / f"samples_{task}_{date}.jsonl", text)


def _model_name(model: str, request: EvalRequest) -> str:
    return request.model if model == BASE else model


def results_folder_name(model: str, request: EvalRequest) -> str:
    """A model's name as a folder of ``out``, which ``.`` and ``..`` are not."""
    name = UNFIT_FOR_FOLDERS.sub("__", _model_name(model, request))
    return name if name.strip(".") else "model"


def harness_name(task: str) -> str:
    """The harness's own name of one of its tasks; other names as they are."""
    return re.sub(r"[^\w.+-]", "_", task.removeprefix(LM_EVAL_PREFIX))


def check_harness_names(tasks: Iterable[str]) -> None:
    """Raise UserError if two tasks have the same name in this layout."""
    by_name: dict[str, str] = {}
    for task in tasks:
        other = by_name.setdefault(harness_name(task), task)
        if other != task:
            raise UserError(
                f"--format lm-eval: tasks {other!r} and {task!r} are both {harness_name(task)!r} "
                "in that layout; score them in two commands"
            )


def _summary(
    model: str,
    scores: Sequence[Score],
    samples: Mapping[str, Sequence[Mapping[str, Any]]],
    request: EvalRequest,
    now: datetime,
) -> dict[str, Any]:
    versions = provenance()
    tasks = {harness_name(score.record.task): score for score in scores}
    seconds = sum(score.record.seconds for score in scores)
    arguments = {"pretrained": request.model, "dtype": scores[0].dtype}
    if model != BASE:
        paths = dict(zip(adapter_labels(request.adapters), request.adapters, strict=True))
        arguments["peft"] = paths[model]
    return {
        "results": {name: _metrics(name, score) for name, score in tasks.items()},
        "group_subtasks": {name: [] for name in tasks},
        "configs": {name: _task_config(name, score) for name, score in tasks.items()},
        "versions": dict.fromkeys(tasks, versions.rankscope),
        "n-shot": {name: score.num_fewshot for name, score in tasks.items()},
        "higher_is_better": {
            name: {m: m not in LOWER_IS_BETTER for m in score.record.metrics}
            for name, score in tasks.items()
            if not score.record.task.startswith(LM_EVAL_PREFIX)
        },
        "n-samples": {
            name: {"original": score.record.n, "effective": score.record.n}
            for name, score in tasks.items()
        },
        "config": {
            "model": "rankscope",
            "model_args": arguments,
            "batch_size": None,
            "device": request.device,
            "limit": request.settings.max_items,
            "random_seed": request.data_seed,
        },
        "git_hash": None,
        "date": now.timestamp(),
        "rankscope_version": versions.rankscope,
        "libraries": versions.libraries,
        "task_hashes": {
            name: sha256_json([row["doc_hash"] + row["prompt_hash"] for row in rows])
            for name, rows in samples.items()
        },
        "model_source": "rankscope",
        "model_name": _model_name(model, request),
        "model_name_sanitized": results_folder_name(model, request),
        "system_instruction": None,
        "fewshot_as_multiturn": None,
        "chat_template": scores[0].prompt_format if scores[0].prompt_format == "chat" else None,
        "total_evaluation_time_seconds": str(seconds),
    }


def _metrics(name: str, score: Score) -> dict[str, Any]:
    """``METRIC,none`` and its standard error, which the harness writes as N/A if unknown."""
    record = score.record
    values: dict[str, Any] = {}
    for metric, value in (record.metrics | {record.metric: record.score}).items():
        error = record.standard_error if metric == record.metric else None
        values[f"{metric},none"] = value
        values[f"{metric}_stderr,none"] = "N/A" if error is None else error
    return {"alias": name, **values}


def _task_config(name: str, score: Score) -> dict[str, Any]:
    metric: dict[str, Any] = {"metric": score.record.metric}
    if not score.record.task.startswith(LM_EVAL_PREFIX):
        metric["higher_is_better"] = score.record.metric not in LOWER_IS_BETTER
    return {
        "task": name,
        "output_type": score.scorer,
        "num_fewshot": score.num_fewshot,
        "metric_list": [metric],
        "metadata": {"source": score.source, "sha256": score.task_sha256},
    }


def _samples(
    score: Score, items: Sequence[ItemResult], prompts: Mapping[tuple[str, str], str]
) -> list[dict[str, Any]]:
    """Lines of a samples file; texts and likelihoods are strings, as the harness stores them."""
    metric, rows = score.record.metric, []
    for index, item in enumerate(items):
        prompt = prompts.get((score.record.task, item.item_id), "")
        document = {"item_id": item.item_id, "subject": item.subject, "prompt": prompt}
        likelihoods = item.letter_logprobs or item.option_logprobs or ()
        responses = [item.generated] if item.generated is not None else map(str, likelihoods)
        rows.append(
            {
                "doc_id": index,
                "doc": document,
                "target": item.gold,
                "arguments": {"gen_args_0": {"arg_0": prompt}},
                "resps": [[response] for response in responses],
                "filtered_resps": [item.prediction],
                "filter": "none",
                "metrics": [metric],
                "doc_hash": sha256_json(document),
                "prompt_hash": sha256_json(prompt),
                "target_hash": sha256_json(item.gold),
                metric: item.score,
            }
        )
    return rows
