"""Model cards: of an adapter as it is saved, of an exported trial, of a changed adapter.

The text is in ``templates/model_card.md.j2``. The front matter follows the Hugging Face hub. Every
number comes from the study's records; a card says so if something was not measured.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import ModelCardData
from jinja2 import Environment
from markupsafe import Markup

from rankscope.config.arm import TRAIN_OVERRIDES
from rankscope.config.study import TrainConfig
from rankscope.formatting import (
    Unit,
    count,
    difference,
    interval,
    markdown_text,
    percent,
    score_text,
)
from rankscope.records import (
    ArmSummary,
    Estimate,
    ExpectedChange,
    ModelRecord,
    StudyRecords,
    TaskRecord,
    TrialRecords,
    TrialSpec,
)
from rankscope.report.columns import Cell
from rankscope.report.page import template_environment
from rankscope.report.study_view import StudyView, change_on
from rankscope.report.table_formats import markdown, table
from rankscope.report.tables import role_of_tested
from rankscope.report.use_it import BaseSource, UseStep, folder_name

# --- the three cards ------------------------------------------------------------------------------


def adapter_card(trial: TrialSpec, base: ModelRecord) -> str:
    """Write the card of an adapter inside a study: how it was trained."""
    settings: dict[str, object] = {
        "base": f"{folder_name(base.label)} ({base.architecture})",
        "base weights, sha256": base.sha256,
        "training task": trial.task,
        **_trial_settings(trial),
    }
    return _render(trial, settings, "transformers" if trial.is_full else "peft")


def changed_card(folder: Path, note: str) -> str:
    """Add a note of the change to the card in ``folder``; without a card the note stands alone."""
    path = folder / "README.md"
    before = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    scores = "\nThe scores above are those of the adapter before this change.\n" if before else ""
    return f"{before.rstrip()}\n\n## Changed by Rankscope\n\n{note}\n{scores}".lstrip()


def study_card(
    view: StudyView,
    trial: TrialRecords,
    summary: ArmSummary,
    base: BaseSource,
    use: tuple[str, Sequence[UseStep]],
    step: int | None = None,
) -> str:
    """Write the card of exported weights.

    Args:
        summary: scores of this one trained model.
        use: the library that loads them, as the hub names it (``transformers`` for a full model),
            and the steps of their use.
        step: step of weights kept during training, which were not scored.
    """
    study, advice, spec = view.study, view.advice(trial.spec.task), trial.spec
    arm, change = view.arm(summary.task, summary.label), view.retention_change(summary)
    versions = {"Rankscope": study.provenance.rankscope, "Python": study.provenance.python}
    return _render(
        spec,
        _study_settings(study, trial, base, step),
        library=use[0],
        base_model=base.hub_name,
        study=study,
        step=count(step, "optimizer step") if step is not None else "",
        steps=use[1],
        scores=[row for task in study.tasks if (row := _score_row(view, trial, summary, task))],
        retained=view.retained(summary.task),
        retention=_text(change, view.retention_unit(summary.task)) if change else "",
        arm=arm,
        arm_changes=_arm_changes(view, arm) if arm else [],
        advice=advice,
        recommendation=view.recommendation,
        versions=versions | dict(study.provenance.libraries),
    )


def _render(
    spec: TrialSpec,
    settings: Mapping[str, object],
    library: str,
    base_model: str | None = None,
    **values: Any,
) -> str:
    method = None if spec.is_full else _method_name(spec)
    known = [{"setting": name, "value": str(v)} for name, v in settings.items() if v is not None]
    front_matter = ModelCardData(
        base_model=base_model,
        library_name=library,
        pipeline_tag="text-generation",
        tags=["rankscope", *([method] if method else [])],
    ).to_yaml()
    template = _environment().get_template("model_card.md.j2")
    values = {"study": None, **values, "spec": spec, "method": method}
    values["is_adapter"] = library != "transformers"
    return template.render(values | {"front_matter": front_matter, "settings": known})


@cache
def _environment() -> Environment:
    filters = {
        "table": lambda rows: Markup(markdown(table(rows))),
        "code": Markup,
    }
    return template_environment(
        lambda value: markdown_text(str(value)), filters, keep_trailing_newline=True
    )


# --- values of a card -----------------------------------------------------------------------------


def _method_name(trial: TrialSpec) -> str:
    """Return the method as hub tags name it."""
    return trial.method if trial.peft is None else str(json.loads(trial.peft)["peft_type"]).lower()


def _trial_settings(trial: TrialSpec) -> dict[str, object]:
    return {
        "method": _method_name(trial),
        "rank": trial.rank,
        "alpha": trial.alpha,
        "modules with ranks of their own": len(trial.rank_pattern or ()) or None,
        "settings": trial.peft,
        "learning rate": f"{trial.lr:.12g}",
        "learning rate of B over that of A": trial.lr_ratio,
        "dropout": None if trial.is_full else trial.dropout,
        "target modules": ", ".join(trial.targets) or None,
        "continues the adapter, sha256": trial.init_sha256,
        **{name.replace("_", " "): value for name, value in trial.overrides.items()},
        **trial.mitigations,
        "seed": trial.seed,
        "trial": trial.trial_id,
    }


def _study_settings(
    study: StudyRecords, trial: TrialRecords, base: BaseSource, step: int | None
) -> dict[str, object]:
    spec, train, model = trial.spec, trial.train, study.model
    task = study.task(spec.task)
    settings: dict[str, object] = {
        "base": f"{base.text} ({model.architecture})",
        "base weights, sha256": model.sha256,
        "base computed in": model.dtype + (", 4 bit" if model.quantize != "none" else ""),
        "prompts": "chat template" if model.prompt_format == "chat" else "plain text",
        "training task": spec.task,
        "data": _data_source(study, task),
        "data as read and formatted, sha256": task.sha256,
        **_protocol(study.config.train),
        **_trial_settings(spec),
    }
    if train is not None:
        settings |= {
            "training rows": f"{train.rows:,}",
            "optimizer steps": step or train.best_step or train.steps,
            "trainable parameters": f"{train.trainable_parameters:,}",
            "weights, sha256": train.weights_sha256 if step is None else None,
        }
    return settings


def _protocol(train: TrainConfig) -> dict[str, object]:
    """Return how long and in which steps a study trains; an arm may override some of it."""
    names = ("epochs", "max_steps", "tokens", *TRAIN_OVERRIDES, "max_length", "labels")
    values = train.model_dump(include=set(names))
    if train.max_steps or train.tokens:  # take precedence
        del values["epochs"]
    return {name.replace("_", " "): values[name] for name in names if name in values}


def _score_row(
    view: StudyView, trial: TrialRecords, summary: ArmSummary, task: TaskRecord
) -> dict[str, Cell] | None:
    """Compare this model with the base on one task; None if it was not scored on it."""
    record = view.study.evals.get((trial.spec.trial_id, task.name, "test"))
    if record is None:
        return None
    base, unit = view.base(task.name), view.unit(task.name)
    gain = change_on(summary, task.name)
    return {
        "tested on": task.name,
        "role": role_of_tested(view.study, summary.task, task.name),
        "metric": record.metric,
        "base": score_text(base.score, unit) if base else "not scored",
        "this model": score_text(record.score, unit),
        "change against the base": difference(gain.value, unit) if gain else "unknown",
        "95 % interval": interval(gain, unit).removeprefix("95 % interval ") if gain else "unknown",
        "items": f"{record.n:,}",
    }


def _arm_changes(view: StudyView, arm: ArmSummary) -> list[str]:
    texts = [
        f"{name.replace('_', ' ')} {_text(change, unit)}"
        for name, (change, unit) in view.expected(arm).items()
        if change is not None
    ]
    if (of := arm.expected) is not None:
        texts.append(f"{percent(of.p_within_margin)} likely among the best")
    return texts


def _text(estimate: Estimate | ExpectedChange, unit: Unit) -> str:
    return f"{difference(estimate.value, unit)} ({interval(estimate, unit)})"


def _data_source(study: StudyRecords, task: TaskRecord) -> str:
    """Name the files of the user's own data without their folders; public sources stay whole."""
    settings = next((t for t in study.config.tasks if t.name == task.name), None)
    # The record joins several files by ", ", which a folder's name may hold as well.
    paths = () if settings is None else (settings.train, settings.validation, settings.test)
    files = [PurePath(path).name for path in paths if path is not None]
    is_public = task.from_hub or task.parts
    return ", ".join(files) or (task.source if is_public else PurePath(task.source).name)
