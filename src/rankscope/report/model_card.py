"""The model card of an exported trial: what it is, what it scores, how it was chosen.

Front matter as the Hugging Face hub reads it; every figure is of the study's records, and what they
do not hold is said to be unknown.
"""

import json
import re
from collections.abc import Mapping
from pathlib import PurePath
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
    StudyRecords,
    TaskAdvice,
    TaskRecord,
    TrialRecords,
)
from rankscope.report.charts.figure import Column, table
from rankscope.report.main_tables import role
from rankscope.report.study_view import StudyView, change_on
from rankscope.report.table_formats import markdown

HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
"""What the hub takes as ``base_model``; of a base from elsewhere the card names none."""


def model_card(
    view: StudyView,
    trial: TrialRecords,
    own: ArmSummary,
    step: int | None = None,
    known_bases: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """The card as Markdown.

    Args:
        view: the study with its recommendation.
        trial: the trial whose weights stand beside the card.
        own: its figures, of this one trained model.
        step: the weights are those after so many optimizer steps, not those that were scored.
        known_bases: of a base that was fetched, by its name, whose model it is.
    """
    spec = trial.spec
    advice = view.advice(spec.task)
    kind = "fully fine-tuned model" if spec.is_full else f"{method_name(trial)} adapter"
    parts = [
        front_matter(view.study, trial),
        f"# {markdown_text(f'{spec.task}, {spec.arm_label}, seed {spec.seed}')}\n",
        f"A {kind}, one trial of the Rankscope study {markdown_text(view.study.name)}.\n",
        "## How it was trained\n",
        settings_table(view.study, trial, step, known_bases),
        "## What it scores\n",
        *scores(view, trial, own, step),
        "## How it was chosen\n",
        *chosen(view, trial, advice),
        "## How to load it\n",
        loading(view.study, trial),
        "## Versions\n",
        versions(view.study),
        "## License\n",
        "Not chosen here: whoever publishes this adds `license:` to the front matter. The terms of "
        "the base model and of the training data apply.\n",
    ]
    return "\n".join(parts)


def method_name(trial: TrialRecords) -> str:
    """The method as the front matter's tags name it."""
    if trial.spec.peft is None:
        return trial.spec.method
    return str(json.loads(trial.spec.peft)["peft_type"]).lower()


def front_matter(study: StudyRecords, trial: TrialRecords) -> str:
    """YAML between rules; texts are JSON strings, which YAML reads as they are."""
    base = hub_name(study)
    tags = ["rankscope", *([] if trial.spec.is_full else [method_name(trial)])]
    lines = [
        *([] if base is None else [f"base_model: {json.dumps(base)}"]),
        f"library_name: {'transformers' if trial.spec.is_full else 'peft'}",
        "pipeline_tag: text-generation",
        f"tags: {json.dumps(tags)}",
    ]
    return "---\n" + "\n".join(lines) + "\n---\n"


def base_settings(study: StudyRecords) -> Mapping[str, object]:
    """What the study file said of the base: where it was taken from."""
    return study.config.model.model_dump(mode="json")


def hub_name(study: StudyRecords) -> str | None:
    """The base's name on the hub; None where it was not taken from there."""
    hub = base_settings(study).get("hub")
    return hub if isinstance(hub, str) and HUB_NAME.fullmatch(hub) else None


def hub_revision(study: StudyRecords) -> str | None:
    """Branch, tag or commit that the study asked the hub for."""
    revision = base_settings(study).get("revision")
    return str(revision) if revision is not None else None


def folder_name(label: str) -> str:
    """The name alone of a local folder: a card is for strangers."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", PurePath(label).name).strip("-.") or "unknown"


def origin(study: StudyRecords, known_bases: Mapping[str, str]) -> str:
    """Where the base came from, in words."""
    settings, hub, revision = base_settings(study), hub_name(study), hub_revision(study)
    if hub is not None:
        return f"{hub} on the hub" + (f", revision {revision}" if revision else "")
    if settings.get("pocket"):
        return "the pocket model, built into Rankscope"
    if (cached := settings.get("cached")) is not None:
        said = known_bases.get(str(cached))
        return f"{cached}, fetched by Rankscope" + (f": {said}" if said else "")
    return f"a local folder, {folder_name(study.model.label)}"


def settings_table(
    study: StudyRecords, trial: TrialRecords, step: int | None, known_bases: Mapping[str, str]
) -> str:
    """Base, data, method and protocol."""
    spec, train, model = trial.spec, trial.train, study.model
    task = next((t for t in study.tasks if t.name == spec.task), None)
    rows: list[tuple[str, object]] = [
        ("base", f"{origin(study, known_bases)} ({model.architecture})"),
        ("base weights, sha256", model.sha256),
        ("base computed in", model.dtype + (", 4 bit" if model.quantize != "none" else "")),
        ("prompts", "chat template" if model.prompt_format == "chat" else "plain text"),
        ("training task", spec.task),
        *data_rows(study, task),
        ("method", method_name(trial)),
        ("rank", spec.rank),
        ("alpha", spec.alpha),
        ("settings", spec.peft),
        ("learning rate", f"{spec.lr:.12g}"),
        ("learning rate of B over that of A", spec.lr_ratio),
        ("dropout", None if spec.is_full else spec.dropout),
        ("target modules", ", ".join(spec.targets) or None),
        ("continues the adapter, sha256", spec.init_sha256),
        *((name.replace("_", " "), value) for name, value in spec.overrides.items()),
        *((name, value) for name, value in spec.mitigations.items()),
        ("seed", spec.seed),
        ("trial", spec.trial_id),
    ]
    if train is not None:
        rows += [
            ("training rows", f"{train.rows:,}"),
            ("optimizer steps", step or train.best_step or train.steps),
            ("trainable parameters", f"{train.trainable_parameters:,}"),
            ("weights, sha256", train.weights_sha256 if step is None else None),
        ]
    shown = [(name, str(value)) for name, value in rows if value is not None]
    return markdown(table([Column("setting"), Column("value")], shown))


def data_rows(study: StudyRecords, task: TaskRecord | None) -> list[tuple[str, object]]:
    """Where the rows came from, and their hash."""
    if task is None:
        return []
    settings = task_settings(study, task.name)
    given = (settings.get(key) for key in ("train", "validation", "test"))
    # A record's text of several files cannot be parted again: a folder's name may hold ", ".
    files = [PurePath(path).name for path in given if isinstance(path, str)]
    source = ", ".join(files) or without_folders(task.source)
    return [("data", source), ("data as read and asked, sha256", task.sha256)]


def task_settings(study: StudyRecords, name: str) -> Mapping[str, object]:
    """What the study file said of a task that is trained on."""
    task = next((task for task in study.config.tasks if task.name == name), None)
    return {} if task is None else task.model_dump(mode="json")


def without_folders(source: str) -> str:
    """A file or folder of one's own by its name: a card is for strangers."""
    is_public = source.startswith("hub ") or source.endswith(" together")
    return source if is_public else PurePath(source).name


def scores(view: StudyView, trial: TrialRecords, own: ArmSummary, step: int | None) -> list[str]:
    """This one model against the base on every task, and what its arm came to over seeds."""
    if step is not None:
        return [
            f"These are the weights after {count(step, 'optimizer step')}. The study scored those "
            "of the end of training, so it knows no score of these.\n"
        ]
    rows = [row for task in view.study.tasks if (row := score_row(view, trial, own, task))]
    if not rows:
        return ["The study has not scored this trial, so nothing is known of it.\n"]
    columns = ["tested on", "role", "metric", "base", "this model", "change against the base",
               "95 % interval", "p", "items"]  # fmt: skip
    found = [
        "Items of the test split, which nothing was chosen by. Intervals and p are of this one "
        "trained model, over items.\n",
        markdown(table([Column(c) for c in columns], rows)),
        forgetting_sentence(view, own),
    ]
    arm = next((a for a in view.arms(own.task) if a.label == own.label), None)
    if arm is not None and arm.seeds > 1:
        found.append(arm_sentence(view, arm))
    return found


def score_row(
    view: StudyView, trial: TrialRecords, own: ArmSummary, task: TaskRecord
) -> tuple[str, ...] | None:
    """One task; None where this trial was not scored on it."""
    record = view.study.evals.get((trial.spec.trial_id, task.name, "test"))
    if record is None:
        return None
    base, found, unit = view.base(task.name), change_on(own, task.name), view.unit(task.name)
    return (
        task.name,
        role(view.study, own.task, task.name),
        record.metric,
        score_text(base.score, unit) if base else "not scored",
        score_text(record.score, unit),
        difference(found.value, unit) if found else "unknown",
        interval(found, unit).removeprefix("95 % interval ") if found else "unknown",
        "" if found is None or found.p is None else number(found.p),
        f"{record.n:,}",
    )


def forgetting_sentence(view: StudyView, own: ArmSummary) -> str:
    """What it forgot, or that nothing measured it."""
    if own.forgetting is None:
        why = "no retention task" if not view.retained(own.task) else "no score on them"
        return f"What it forgot is unknown: the study has {why}.\n"
    return (
        f"Forgetting, the mean fall on {', '.join(map(markdown_text, view.retained(own.task)))}: "
        f"{words(own.forgetting, view.forgetting_unit(own.task))}; positive is forgotten.\n"
    )


def arm_sentence(view: StudyView, arm: ArmSummary) -> str:
    """The same of all its seeds."""
    known = [
        f"{name} {words(estimate, unit)}"
        for name, estimate, unit in (
            ("gain over the base", arm.gain, view.unit(arm.task)),
            ("forgetting", arm.forgetting, view.forgetting_unit(arm.task)),
        )
        if estimate is not None
    ]
    failed = f" ({count(arm.failed, 'trial')} failed)" if arm.failed else ""
    return f"Trained with {count(arm.seeds, 'seed')}{failed}, these settings came to: " + (
        f"{', '.join(known) or 'nothing that was scored'}.\n"
    )


def words(estimate: Estimate, unit: Unit) -> str:
    """Value and interval in a sentence."""
    return f"{difference(estimate.value, unit)} ({interval(estimate, unit)})"


def prose(text: str) -> str:
    """A sentence or two of the advice."""
    return markdown_text(text, 4000)


def chosen(view: StudyView, trial: TrialRecords, advice: TaskAdvice | None) -> list[str]:
    """What the study recommends, how sure it is, and whether this is it."""
    if advice is None:
        return ["The study has no recommendation for this task.\n"]
    label = trial.spec.arm_label
    if advice.chosen is None:
        this = "The study recommends no arm for this task; this one was exported by hand."
    elif advice.chosen.label == label:
        this = "These are the settings that the study recommends."
    else:
        this = (
            f"The study recommends other settings, {markdown_text(advice.chosen.label)}; "
            "this one was exported by hand."
        )
    sure = "undecided" if advice.confidence == "none" else f"confidence {advice.confidence}"
    findings = [r for r in advice.reasons if r.kind in ("diagnostic", "caveat")]
    lines = [f"{this} Its answer ({sure}): {prose(advice.headline)}\n"]
    if view.recommendation.method:
        lines.append(f"{prose(view.recommendation.method)}\n")
    if findings:
        lines.append("Diagnostics and caveats of the study:\n")
        lines.append("".join(f"- {prose(r.text)}\n" for r in findings))
    return lines


def loading(study: StudyRecords, trial: TrialRecords) -> str:
    """A few lines of Python."""
    asked = "in the tokenizer's chat template" if study.model.prompt_format == "chat" else "as text"
    imports = "from transformers import AutoModelForCausalLM\n"
    if trial.spec.is_full:
        note, code = "", 'model = AutoModelForCausalLM.from_pretrained("THIS FOLDER")'
    else:
        note, imported, base = base_in_code(study)
        imports = f"from peft import PeftModel\n{imported}{imports}"
        code = (
            f"model = AutoModelForCausalLM.from_pretrained({base})\n"
            'model = PeftModel.from_pretrained(model, "THIS FOLDER")'
        )
    return (
        f"{note}```python\n{imports}\n{code}\n```\n\n"
        f"It was trained and scored with prompts {asked}.\n"
    )


def base_in_code(study: StudyRecords) -> tuple[str, str, str]:
    """(what to know first, a line of imports, the arguments that load the base)."""
    settings, hub, revision = base_settings(study), hub_name(study), hub_revision(study)
    if hub is not None:
        return "", "", json.dumps(hub) + (f", revision={json.dumps(revision)}" if revision else "")
    if settings.get("pocket"):
        return "", "from rankscope.models.pocket import pocket_folder\n", "pocket_folder()"
    if (cached := settings.get("cached")) is not None:
        return (
            f"`rankscope fetch` brings the base, {markdown_text(str(cached))}, first.\n\n",
            "from rankscope.models.fetch import cached_model_folder\n",
            f"cached_model_folder({json.dumps(cached)})",
        )
    return (
        "The base was a local folder: put its place, or its name on the hub, there.\n\n",
        "",
        '"FOLDER OF THE BASE"',
    )


def versions(study: StudyRecords) -> str:
    """What the study was run with."""
    made = study.provenance
    rows = [("Rankscope", made.rankscope), ("Python", made.python), *made.libraries.items()]
    text = ", ".join(f"{markdown_text(name)} {markdown_text(version)}" for name, version in rows)
    return f"{text}; run begun {markdown_text(made.created)} on {study.model.device}.\n"
