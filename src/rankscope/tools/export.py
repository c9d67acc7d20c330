"""Export of one trial's weights: adapter or model, tokenizer, model card, scores for the hub."""

import json
import re
import shutil
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from rankscope.advise.arms import summarize
from rankscope.advise.recommend import recommend
from rankscope.config.study import ModelConfig
from rankscope.config.yaml_lines import Document, compose
from rankscope.data.registry import named_tasks
from rankscope.errors import UserError
from rankscope.filesystem import check_outside, check_taken, folder_in_one_step, read_json_object
from rankscope.hashing import weights_sha256
from rankscope.models.adapters.settings import CONFIG
from rankscope.models.load import check_stored_weights, load_model, load_tokenizer
from rankscope.models.model_folder import model_folder
from rankscope.models.parameters import architecture, read_model_config
from rankscope.records import StudyRecords, TaskRecord, TrialRecords, TrialSpec
from rankscope.report.model_card import study_card
from rankscope.report.study_view import StudyView
from rankscope.report.use_it import (
    BaseSource,
    UseStep,
    base_source,
    by_label,
    folder_name,
    system_of,
    use_steps,
)
from rankscope.store import Ledger, snapshot_path, weights_path
from rankscope.tools.formats import PEFT, check_format, get_format

TIED_HEAD = "an adapter of the output layer, which shares its weights with the input embedding"
WHOLE = "--merge, which writes a whole model"
WITHOUT_MERGE = "export the adapter without --merge"
MOST_LISTED = 12  # Trials named in a message about an ambiguous label


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    label: str | None = None  # Id of a trial, its beginning, or an arm's label from the report
    best_lora: bool = False  # The best LoRA arm, even if another one or none is recommended
    task: str | None = None  # Training task, for a study with several
    step: int | None = None  # Weights kept during training, instead of the final ones
    merge: bool = False  # Write a full model with the adapter merged into the base
    format: str = PEFT  # Format of the adapter
    base_name: str | None = None  # Hub id of a base that the study read from a local folder


Export = tuple[TrialSpec, str, list[str]]
"""The exported trial; ``adapter``, ``model`` or ``merged model``; and notes."""


def export_trial(folder: Path, out: Path, request: ExportRequest) -> Export:
    """Write one trial's weights to ``out``, a new or empty folder, ready to be loaded elsewhere.

    All hashes are compared first, and ``out`` appears in one step. Raises UserError: the study, the
    trial or its weights do not exist, or ``out`` cannot be used. Raises IntegrityError: the stored
    weights were altered, or do not fit their configuration. Raises DiskFull: ``out`` is unchanged.
    """
    check_format(request.format, whole=WHOLE * request.merge)
    check_outside(out, folder, "--out")
    check_taken(out)
    with Ledger.open(folder, write=False) as ledger:
        study = ledger.load()
        view = StudyView(study, recommend(study))
        spec, reason = choose_trial(
            view, folder, request.label, request.task, best_lora=request.best_lora
        )
        trial = next(t for t in study.trials if t.spec == spec)
        check_format(request.format, whole="a fully fine-tuned model" * spec.is_full)
        source = ledger.checked_path(_weights(ledger, trial, request.step))
        with folder_in_one_step(out) as partial:
            return _write(view, trial, reason, source, partial, request)


def _last_step(trial: TrialRecords) -> int | None:
    """Return the step of the final weights; with early stopping, of the best ones."""
    return None if trial.train is None else trial.train.best_step or trial.train.steps


def _weights(ledger: Ledger, trial: TrialRecords, step: int | None) -> str:
    """Return the path of a trial's final weights, or of those kept at one step."""
    spec, last = trial.spec, _last_step(trial)
    where = f"{ledger.out}: trial {spec.trial_id} ({spec.label})"
    if spec.given is not None and spec.given.folder:
        found, do = "a given model", f"use its own folder, {spec.given.folder}"
        raise UserError(where, found, "a trial that was trained here", do)
    if spec.prompt is not None:
        do = "give the base the prompt itself: 'Use it' in report.html shows the recommended one"
        raise UserError(where, "a prompt, which has no weights", "a trained arm", do)
    if step is None or step == last:
        if ledger.artifacts(path := weights_path(spec)):
            return path
        found = f"the status {trial.status!r} and no weights"
        do = f"choose one that 'rankscope status {ledger.out}' shows as done"
        raise UserError(where, found, "a trial that is done and was trained here", do)
    if ledger.artifacts(path := snapshot_path(spec, step)):
        return path
    snapshots = ledger.artifacts(f"artifacts/{spec.trial_id}/steps")
    kept = {int(PurePosixPath(artifact.path).parts[3]) for artifact in snapshots}
    known = ", ".join(map(str, sorted(kept if last is None else kept | {last}))) or "none"
    expected = f"one of {known}, as 'train.checkpoint_every' decides"
    raise UserError(where, f"no weights of step {step}", expected, "give one of these as --step")


def _write(
    view: StudyView,
    trial: TrialRecords,
    reason: str,
    source: Path,
    out: Path,
    request: ExportRequest,
) -> Export:
    study, spec = view.study, trial.spec
    notes = [f"{spec.label}: {reason}"] if reason else []
    merged = request.merge and not spec.is_full
    base = base_source(study, request.base_name or "")
    settings: dict[str, Any] | None = None
    library, steps = "transformers", list[UseStep]()
    if merged:
        _merge_adapter(study, source, out)
        if study.model.quantize != "none":
            notes.append("merged into the base as stored; it was scored on one in 4 bits")
    elif request.format != PEFT:
        library = request.format
        steps = _convert(study, spec.task, source, out, library, base)
    else:
        shutil.copytree(source, out, dirs_exist_ok=True, copy_function=shutil.copyfile)
    if request.merge and spec.is_full:
        notes.append("full fine-tuning gives a whole model; there is nothing to merge")
    if merged or spec.is_full:
        check_stored_weights(out)
    elif request.format == PEFT:
        if spec.peft is None:  # others are PEFT's own, of kinds that only its loader reads
            _check_fits_base(study.config.model, out)
        notes += _copy_tokenizer(study.config.model, out)
        settings = json.loads((out / CONFIG).read_text("utf-8"))
        settings |= _base_reference(study.config.model, request.base_name)
        (out / CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True), "utf-8")
        library = "peft"
    if not steps:
        system = system_of(study, spec.task)
        steps = use_steps(base, settings, folder_name(spec.task), ".", system)
    step = None if request.step == _last_step(trial) else request.step
    card = study_card(view, trial, summarize(study, [trial]), base, (library, steps), step)
    (out / "README.md").write_text(card, encoding="utf-8")
    if step is None:
        _write_hub_scores(study, trial, out / ".eval_results")
    kind = "merged model" if merged else "model" if spec.is_full else "adapter"
    return spec, kind, notes


def _convert(
    study: StudyRecords, task: str, source: Path, out: Path, form: str, base: BaseSource
) -> list[UseStep]:
    """Write the adapter of ``source`` in another format than PEFT's, and return how to use it."""
    from rankscope.models.adapters.folder import load_adapter

    place, kind = f"--format {form}", read_json_object(source / CONFIG).get("peft_type")
    if kind != "LORA":
        raise UserError(place, f"an adapter of {kind}", "LoRA or DoRA", "leave the option out")
    config = read_model_config(model_folder(study.config.model, weights=False))
    shapes = architecture(config)
    adapter = load_adapter(source, task, shapes=shapes.linear_shapes)
    if config.tie_word_embeddings and shapes.output_layer in adapter.a:
        raise UserError(place, TIED_HEAD, do="leave the option out")
    writer = get_format(form)
    steps: list[UseStep] = writer.write(adapter, out, config.get_text_config(), study, base)
    return steps


def _base_reference(model: ModelConfig, name: str | None) -> dict[str, str | None]:
    """Return the place of the base for PEFT: a hub id, or the folder of this machine.

    ``name`` is the id that the user gives.
    """
    hub = name or model.hub
    revision = model.revision if hub and hub == model.hub else None
    path = hub or str(model_folder(model, weights=False))
    return {"base_model_name_or_path": path, "revision": revision}


def _copy_tokenizer(model: ModelConfig, out: Path) -> list[str]:
    """Write the base's tokenizer with its chat template; return a note if its folder is missing."""
    try:
        load_tokenizer(model_folder(model, weights=False)).save_pretrained(out)
    except UserError as error:
        return [f"no tokenizer was written, use the base's ({error})"]
    return []


def _check_fits_base(base: ModelConfig, adapter: Path) -> None:
    """Check a LoRA adapter against the configuration of its base, if that still exists.

    Raises UserError or IntegrityError if its tensors cannot be loaded on the base.
    """
    from rankscope.models.adapters.folder import load_adapter

    try:
        shapes = architecture(read_model_config(model_folder(base, weights=False)))
    except UserError:
        return
    load_adapter(adapter, "checked", shapes=shapes.linear_shapes)


def _merge_adapter(study: StudyRecords, adapter: Path, out: Path) -> None:
    """Write the study's base with an adapter merged into it, and the tokenizer, to ``out``.

    The sum is computed in float32, and stored in the dtype in which the study scored the model.
    Raises UserError: the base differs from the study's, or the adapter cannot be merged.
    """
    import torch
    from peft import PeftModel

    folder = model_folder(study.config.model)
    if weights_sha256(folder) != study.model.sha256:
        raise UserError(
            folder,
            "other weights than the study's base had",
            f"sha256 {study.model.sha256[:12]}..., as the merged model would differ from the "
            "one that was scored",
            "restore them",
        )
    model = load_model(folder, torch.float32)
    with warnings.catch_warnings():
        # PEFT asks transformers for an attribute that was renamed.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        tuned = PeftModel.from_pretrained(model, str(adapter))
    if not hasattr(tuned.base_model, "merge_and_unload"):
        kind = getattr(tuned.peft_config["default"].peft_type, "value", "this method")
        raise UserError("--merge", f"{kind}, which PEFT cannot merge", do=WITHOUT_MERGE)
    head = tuned.get_output_embeddings()
    if getattr(model.config, "tie_word_embeddings", False) and hasattr(head, "base_layer"):
        raise UserError("--merge", TIED_HEAD, do=WITHOUT_MERGE)
    merged = tuned.merge_and_unload(safe_merge=True)
    merged.to(getattr(torch, study.model.dtype)).save_pretrained(out)
    load_tokenizer(folder).save_pretrained(out)


# --- scores in the hub's format -------------------------------------------------------------------


def _write_hub_scores(study: StudyRecords, trial: TrialRecords, folder: Path) -> None:
    """Write test scores on data sets of the hub as ``TASK.yaml``, which the hub reads.

    The hub knows a score by its data set's id, so tasks on the user's own rows are left out.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    for task in study.tasks:
        record = study.evals.get((trial.spec.trial_id, task.name, "test"))
        hub = _hub_data_set(study, task)
        if record is None or hub is None or task.score_unit != "accuracy":
            continue
        shots = f", {task.num_fewshot}-shot" if task.num_fewshot else ""
        local = "" if task.from_hub else ", rows from a local copy"
        entry = EvalResultEntry(
            dataset_id=hub[0],
            task_id=hub[1] or "default",
            value=round(100 * record.score, 2),
            date=study.provenance.created,
            notes=f"Rankscope {study.provenance.rankscope}: {record.metric} in %, "
            f"{record.n} test items{shots}{local}",
        )
        folder.mkdir(exist_ok=True)
        text = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
        (folder / f"{task.name}.yaml").write_text(text, encoding="utf-8")


def _hub_data_set(study: StudyRecords, task: TaskRecord) -> tuple[str, str | None] | None:
    """Return id and configuration of the hub data set of a task; None for other rows."""
    given = study.config.evaluation_tasks().get(task.name)
    if given is not None and given.hub is not None:
        return given.hub, None
    spec = named_tasks().get(task.name)
    own_rows = given is None or given.path or given.train or given.test or given.mixture
    if own_rows or spec is None or spec.hub is None or spec.from_hub is not None:
        return None
    return spec.hub.id, spec.hub.config


# --- the trial that the user means


def choose_trial(
    view: StudyView, folder: Path, label: str | None, task: str | None, *, best_lora: bool
) -> tuple[TrialSpec, str]:
    """Choose the trial that a label names; the default is the recommended or the best LoRA arm.

    A label is a trial's id or the beginning of one, or settings: ``r=8 lr=0.001`` as the report
    shows it, ``arc_easy r=8 lr=0.001 seed=1`` in full, ``LoRA rank=8 lr=1e-3`` likewise. Among an
    arm's seeds, the one with the highest score on the validation split is taken; the second value
    says so. Raises UserError: there is no such trial or recommendation, or there are several; the
    message lists them.
    """
    if not view.training_tasks:
        found = "a study without arms, which has nothing to export"
        raise UserError(folder, found, "one that trained", "use the folders of its given models")
    if task is not None and task not in view.training_tasks:
        expected = f"--task {' or '.join(view.training_tasks)}"
        raise UserError(folder, f"no training task {task!r}", expected)
    if label is not None:
        trials = _trials_with_label(view.study, folder, label, task)
    else:
        trials = _trials_of_answer(view, folder, task, best_lora=best_lora)
    if len(trials) == 1:
        return trials[0], ""

    def score(spec: TrialSpec) -> float:
        record = view.study.evals.get((spec.trial_id, spec.task, "validation"))
        return record.score if record else float("-inf")

    return max(trials, key=score), f"the seed with the highest validation score of {len(trials)}"


def _trials_with_label(
    study: StudyRecords, folder: Path, label: str, task: str | None
) -> list[TrialSpec]:
    """Return the seeds of the arm, or the trial, that a label names.

    Raises UserError: there is no such trial, or there are several arms.
    """
    trials = [t.spec for t in study.trials if task in (None, t.spec.task)]
    terms = {term: _value_of(term) for term in re.findall(r"(?:(?:on|from) )?\S+", label)}
    by_id = [spec for spec in trials if label and spec.trial_id.startswith(label)]
    exact = [s for s in trials if label in (s.label, s.arm_label, f"{s.task} {s.arm_label}")]
    partial = [s for s in trials if terms and all(s.is_called(*term) for term in terms.items())]
    matches = by_id or exact or partial
    if not matches:
        raise UserError(
            folder,
            f"no trial {label!r}",
            f"an arm's label from the report such as {trials[0].arm_label!r}, or the id of one of "
            f"its {len(trials)} trials",
            f"see them with 'rankscope status {folder}', or give --best",
        )
    if len(matches) == 1 or (not by_id and len({spec.arm for spec in matches}) == 1):
        done = {t.spec.trial_id for t in study.trials if t.status == "done"}
        return [spec for spec in matches if spec.trial_id in done] or matches[:1]
    arms = dict.fromkeys(f"{spec.task} {spec.arm_label}" for spec in matches)
    names = [f"{s.trial_id}  {s.label}" for s in matches] if by_id else list(arms)
    rest = len(names) - MOST_LISTED
    more = [f"and {rest} more"] if rest > 0 else []
    raise UserError(
        folder,
        f"{len(names)} {'trials' if by_id else 'arms'} that match {label!r}",
        "one",
        "give more of the id" if by_id else "give one of these labels",
        faults=[*names[:MOST_LISTED], *more],
    )


def _value_of(term: str) -> object:
    """Return the value of a term ``NAME=VALUE``, read as in a study file; None without one."""
    node = None
    with suppress(yaml.YAMLError):
        node = compose(term.partition("=")[2], term)
    return node and Document(node, Path()).values


def _trials_of_answer(
    view: StudyView, folder: Path, task: str | None, *, best_lora: bool
) -> list[TrialSpec]:
    """Return the trials of the answer for ``task``, or for the only training task."""
    tasks = view.training_tasks if task is None else (task,)
    if len(tasks) != 1:
        found = f"{len(tasks)} training tasks, each with an answer of its own"
        raise UserError(folder, found, "one", f"give one with --task: {', '.join(tasks)}")
    advice = view.advice(tasks[0])
    arm = view.best_lora(advice.task) if best_lora else advice.chosen
    if arm is None:
        verdict = advice.verdict.rstrip(".")
        found = "no LoRA arm with scores" if best_lora else f"no recommended arm: {verdict}"
        do, leader = "give an arm's label from the report", view.focus(advice.task)
        if leader is not None and leader.trains:
            do = f"add {by_label(view, leader)} to the command to export that arm all the same"
        raise UserError(f"{folder}: {advice.task}", found, "one", do)
    return [t.spec for t in view.trials(arm) if t.status == "done"]
