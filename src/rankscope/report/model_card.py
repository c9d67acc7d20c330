"""Write model cards: of an adapter as it is saved, of an exported trial, of a changed adapter.

The front matter follows the Hugging Face hub. Every number comes from the study's records; a card
says so if something was not measured.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import MappingProxyType

from rankscope.formatting import (
    Unit,
    count,
    difference,
    interval,
    markdown_text,
    number,
    score_text,
)
from rankscope.records import (
    ArmSummary,
    Estimate,
    ModelRecord,
    StudyRecords,
    TaskAdvice,
    TaskRecord,
    TrialRecords,
    TrialSpec,
)
from rankscope.report.study_view import StudyView, change_on
from rankscope.report.table_formats import Cell, markdown, table_from_rows
from rankscope.report.tables import role_of_tested

HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
"""What the hub accepts as ``base_model``."""


# --- the three cards ------------------------------------------------------------------------------


def adapter_card(trial: TrialSpec, base: ModelRecord) -> str:
    """The card of an adapter inside a study: how it was trained, and how to load it."""
    rows: list[tuple[str, object]] = [
        ("base", f"{folder_name(base.label)} ({base.architecture})"),
        ("base weights, sha256", base.sha256),
        ("training task", trial.task),
        *_trial_rows(trial),
    ]
    return "\n".join(
        [
            _front_matter(method_name(trial)),
            _title(trial),
            f"A {method_name(trial)} adapter trained by Rankscope.\n",
            _settings_table(rows),
            _loading_code(is_full=False, base='"BASE"'),
        ]
    )


def changed_card(folder: Path, note: str) -> str:
    """The card in ``folder`` with a note of what was changed, or the note alone without a card."""
    path = folder / "README.md"
    before = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    scores = "\nThe scores above are those of the adapter before this change.\n" if before else ""
    return f"{before.rstrip()}\n\n## Changed by Rankscope\n\n{note}\n{scores}".lstrip()


def study_card(
    view: StudyView,
    trial: TrialRecords,
    summary: ArmSummary,
    step: int | None = None,
    known_bases: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """The card of an exported trial.

    Args:
        view: the study with its recommendation.
        trial: the trial whose weights are exported.
        summary: the scores of this one trained model.
        step: optimizer step of the weights, if they are not the ones that were scored.
        known_bases: description of each model that ``rankscope fetch`` knows, by name.
    """
    spec, study = trial.spec, view.study
    base = _base_source(study, known_bases)
    method = None if spec.is_full else method_name(spec)
    kind = "fully fine-tuned model" if method is None else f"{method} adapter"
    is_chat = study.model.prompt_format == "chat"
    prompts = "the tokenizer's chat template" if is_chat else "plain text prompts"
    sections = {
        "How it was trained": _settings_table(_study_rows(study, trial, step, base)),
        "What it scores": "\n".join(_scores(view, trial, summary, step)),
        "How it was chosen": "\n".join(_recommendation(view, spec)),
        "How to load it": f"{base.note}{_loading_code(spec.is_full, base.code, base.imports)}\n"
        f"It was trained and scored with {prompts}.\n",
        "Versions": _versions(study),
        "License": "Add `license:` to the front matter before you publish this. The terms of the "
        "base model and of the training data apply.\n",
    }
    return "\n".join(
        [
            _front_matter(method, base.hub_name),
            _title(spec),
            f"A {kind}, one trial of the Rankscope study {markdown_text(study.name)}.\n",
            *(f"## {heading}\n\n{text}" for heading, text in sections.items()),
        ]
    )


# --- parts that cards share -----------------------------------------------------------------------


def method_name(trial: TrialSpec) -> str:
    """The method as hub tags name it."""
    return trial.method if trial.peft is None else str(json.loads(trial.peft)["peft_type"]).lower()


def _front_matter(method: str | None, base_model: str | None = None) -> str:
    """YAML between rules; texts are JSON strings, which are YAML as well. No method: full model."""
    lines = [
        *([] if base_model is None else [f"base_model: {json.dumps(base_model)}"]),
        f"library_name: {'transformers' if method is None else 'peft'}",
        "pipeline_tag: text-generation",
        f"tags: {json.dumps(['rankscope', *([] if method is None else [method])])}",
    ]
    return "---\n" + "\n".join(lines) + "\n---\n"


def _title(trial: TrialSpec) -> str:
    return f"# {markdown_text(f'{trial.task}, {trial.arm_label}, seed {trial.seed}')}\n"


def _settings_table(rows: Iterable[tuple[str, object]]) -> str:
    """A table of settings; those that are None are left out."""
    known = [{"setting": name, "value": str(v)} for name, v in rows if v is not None]
    return markdown(table_from_rows(known))


def _trial_rows(trial: TrialSpec) -> list[tuple[str, object]]:
    return [
        ("method", method_name(trial)),
        ("rank", trial.rank),
        ("alpha", trial.alpha),
        ("settings", trial.peft),
        ("learning rate", f"{trial.lr:.12g}"),
        ("learning rate of B over that of A", trial.lr_ratio),
        ("dropout", None if trial.is_full else trial.dropout),
        ("target modules", ", ".join(trial.targets) or None),
        ("continues the adapter, sha256", trial.init_sha256),
        *((name.replace("_", " "), value) for name, value in trial.overrides.items()),
        *trial.mitigations.items(),
        ("seed", trial.seed),
        ("trial", trial.trial_id),
    ]


def _loading_code(is_full: bool, base: str, imports: str = "") -> str:
    """A few lines of Python; ``base`` holds the arguments that load the base."""
    if is_full:
        code = [
            "from transformers import AutoModelForCausalLM",
            "",
            'model = AutoModelForCausalLM.from_pretrained("THIS FOLDER")',
        ]
    else:
        code = [
            "from peft import PeftModel",
            *([imports] if imports else []),
            "from transformers import AutoModelForCausalLM",
            "",
            f"model = AutoModelForCausalLM.from_pretrained({base})",
            'model = PeftModel.from_pretrained(model, "THIS FOLDER")',
        ]
    return "```python\n" + "\n".join(code) + "\n```\n"


# --- the base and the data of a study -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BaseSource:
    """Where a study's base came from, for readers who do not have the study."""

    text: str
    code: str
    """Arguments of ``from_pretrained``."""
    hub_name: str | None = None
    imports: str = ""
    note: str = ""
    """What to do before the base can be loaded."""


def _base_source(study: StudyRecords, known_bases: Mapping[str, str]) -> BaseSource:
    model = study.config.model
    hub, revision, cached = model.hub, model.revision, model.cached
    if hub is not None and HUB_NAME.fullmatch(hub):
        version, argument = "", ""
        if revision is not None:
            version, argument = f", revision {revision}", f", revision={json.dumps(str(revision))}"
        return BaseSource(f"{hub} on the hub{version}", json.dumps(hub) + argument, hub)
    if model.pocket:
        return BaseSource(
            "the pocket model, built into Rankscope",
            "pocket_folder()",
            imports="from rankscope.models.pocket import pocket_folder",
        )
    if cached is not None:
        description = known_bases.get(str(cached))
        return BaseSource(
            f"{cached}, fetched by Rankscope" + (f": {description}" if description else ""),
            f"cached_model_folder({json.dumps(cached)})",
            imports="from rankscope.models.fetch import cached_model_folder",
            note=f"Run `rankscope fetch {cached}` first to get the base.\n\n",
        )
    return BaseSource(
        f"a local folder, {folder_name(study.model.label)}",
        '"FOLDER OF THE BASE"',
        note="The base was a local folder: replace its path below, or use its name on the hub.\n\n",
    )


def folder_name(label: str) -> str:
    """The last part of a local path: a published card must not show the rest."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", PurePath(label).name).strip("-.") or "unknown"


def _study_rows(
    study: StudyRecords, trial: TrialRecords, step: int | None, base: BaseSource
) -> list[tuple[str, object]]:
    spec, train, model = trial.spec, trial.train, study.model
    task = next((t for t in study.tasks if t.name == spec.task), None)
    rows: list[tuple[str, object]] = [
        ("base", f"{base.text} ({model.architecture})"),
        ("base weights, sha256", model.sha256),
        ("base computed in", model.dtype + (", 4 bit" if model.quantize != "none" else "")),
        ("prompts", "chat template" if model.prompt_format == "chat" else "plain text"),
        ("training task", spec.task),
        ("data", None if task is None else _data_source(study, task)),
        ("data as read and formatted, sha256", None if task is None else task.sha256),
        *_trial_rows(spec),
    ]
    if train is not None:
        rows += [
            ("training rows", f"{train.rows:,}"),
            ("optimizer steps", step or train.best_step or train.steps),
            ("trainable parameters", f"{train.trainable_parameters:,}"),
            ("weights, sha256", train.weights_sha256 if step is None else None),
        ]
    return rows


def _data_source(study: StudyRecords, task: TaskRecord) -> str:
    """File names of the user's own data without their folders; public sources whole."""
    settings = next((t for t in study.config.tasks if t.name == task.name), None)
    # The record joins several files by ", ", which a folder's name may hold as well.
    paths = () if settings is None else (settings.train, settings.validation, settings.test)
    files = [PurePath(path).name for path in paths if path is not None]
    is_public = task.source.startswith("hub ") or task.source.endswith(" together")
    return ", ".join(files) or (task.source if is_public else PurePath(task.source).name)


# --- scores and the recommendation ----------------------------------------------------------------


def _scores(
    view: StudyView, trial: TrialRecords, summary: ArmSummary, step: int | None
) -> list[str]:
    """This model against the base on every task, then its arm over all seeds."""
    if step is not None:
        return [
            f"These are the weights after {count(step, 'optimizer step')}. The study scored the "
            "weights at the end of training, so these have no scores.\n"
        ]
    rows = [row for task in view.study.tasks if (row := _score_row(view, trial, summary, task))]
    if not rows:
        return ["The study has not scored this trial.\n"]
    parts = [
        "Scores on the test split, which was not used to choose anything. Intervals and p values "
        "are for this one trained model, over items.\n",
        markdown(table_from_rows(rows)),
        _forgetting_sentence(view, summary),
    ]
    arm = next((a for a in view.arms(summary.task) if a.label == summary.label), None)
    if arm is not None and arm.seeds > 1:
        parts.append(_arm_sentence(view, arm))
    return parts


def _score_row(
    view: StudyView, trial: TrialRecords, summary: ArmSummary, task: TaskRecord
) -> dict[str, Cell] | None:
    """One task; None if this trial was not scored on it."""
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
        "p": "" if gain is None or gain.p is None else number(gain.p),
        "items": f"{record.n:,}",
    }


def _forgetting_sentence(view: StudyView, summary: ArmSummary) -> str:
    retained = view.retained(summary.task)
    if summary.forgetting is None:
        reason = "were not scored" if retained else "are missing from the study"
        return f"Forgetting was not measured: retention tasks {reason}.\n"
    return (
        f"Forgetting, the mean drop on {', '.join(map(markdown_text, retained))}: "
        f"{_with_interval(summary.forgetting, view.forgetting_unit(summary.task))}. "
        "A positive number means that the model forgot.\n"
    )


def _arm_sentence(view: StudyView, arm: ArmSummary) -> str:
    known = [
        f"{name} {_with_interval(estimate, unit)}"
        for name, estimate, unit in (
            ("gain over the base", arm.gain, view.unit(arm.task)),
            ("forgetting", arm.forgetting, view.forgetting_unit(arm.task)),
        )
        if estimate is not None
    ]
    failed = f" ({count(arm.failed, 'trial')} failed)" if arm.failed else ""
    return f"Mean over {count(arm.seeds, 'seed')}{failed}: {', '.join(known) or 'not scored'}.\n"


def _with_interval(estimate: Estimate, unit: Unit) -> str:
    return f"{difference(estimate.value, unit)} ({interval(estimate, unit)})"


def _recommendation(view: StudyView, trial: TrialSpec) -> list[str]:
    """The study's recommendation, its confidence, and whether this trial is the one."""
    advice = view.advice(trial.task)
    if advice is None:
        return ["The study has no recommendation for this task.\n"]
    if advice.chosen is None:
        this = "The study recommends no arm for this task; this trial was exported by hand."
    elif advice.chosen.label == trial.arm_label:
        this = "The study recommends these settings."
    else:
        other = markdown_text(advice.chosen.label)
        this = f"The study recommends other settings, {other}; this trial was exported by hand."
    lines = [f"{this} {_confidence(advice)}: {markdown_text(advice.headline)}\n"]
    if view.recommendation.method:
        lines.append(f"{markdown_text(view.recommendation.method)}\n")
    if warnings := [r for r in advice.reasons if r.kind in ("diagnostic", "caveat")]:
        lines.append("Diagnostics and caveats:\n")
        lines.append("".join(f"- {markdown_text(r.text)}\n" for r in warnings))
    return lines


def _confidence(advice: TaskAdvice) -> str:
    if advice.confidence == "none":
        return "Its answer is undecided"
    return f"Its answer, with {advice.confidence} confidence"


def _versions(study: StudyRecords) -> str:
    provenance = study.provenance
    versions = {"Rankscope": provenance.rankscope, "Python": provenance.python}
    versions |= provenance.libraries
    text = ", ".join(f"{markdown_text(n)} {markdown_text(v)}" for n, v in versions.items())
    begun = markdown_text(provenance.created)
    return f"{text}; the run began {begun} on {study.model.device}.\n"
