"""The use of a trained model: commands and code with every name filled in, for card and page.

The settings that llama.cpp's ``convert_lora_to_gguf.py`` reads come from its source.
"""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

from rankscope.formatting import count, with_leading_space
from rankscope.models.methods import all_methods, get_method
from rankscope.records import ArmSummary, Prompt, StudyRecords, TrialSpec
from rankscope.registry import extension_files
from rankscope.report.page import template_environment
from rankscope.report.study_view import StudyView

ASK = "Ask in the form of the task's items; of a mixture, the examples of one part are shown."
CONVERT_MODEL = "python llama.cpp/convert_hf_to_gguf.py {}"
SENTENCEPIECE = "For some tokenizers the script needs `pip install sentencepiece`."
HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
"""Names that the hub accepts as ``base_model``."""


@dataclass(frozen=True, slots=True)
class UseStep:
    title: str
    code: str
    language: Literal["sh", "python"] = "sh"
    note: str = ""  # Sentences to show below the code


@dataclass(frozen=True, slots=True)
class BaseSource:
    """Origin of a study's base, for readers who do not have the study."""

    text: str
    python: str | None
    """Arguments of ``from_pretrained``; None means the folder in ``adapter_config.json``."""
    shell: str  # For a command line
    dtype: str  # In which the study scored its models
    hub_name: str | None = None
    imports: str = ""
    note: str = ""  # Steps before the base can be loaded


def base_source(study: StudyRecords, name: str = "") -> BaseSource:
    """Describe the base of a study; its user may give a hub id ``name`` for a local folder."""
    model = study.config.model
    hub, revision, dtype = name or model.hub, None if name else model.revision, study.model.dtype
    if hub is not None and HUB_NAME.fullmatch(hub):
        version, python, shell = "", json.dumps(hub), hub
        if revision is not None:
            version, python = f", revision {revision}", f"{python}, revision={json.dumps(revision)}"
            shell = f"{hub} --revision {shlex.quote(revision)}"
        return BaseSource(f"{hub} on the hub{version}", python, shell, dtype, hub)
    if model.pocket:
        imports = "from rankscope.models.model_folder import pocket_folder"
        return BaseSource(
            "the pocket model, built into Rankscope",
            "pocket_folder()",
            f"\"$(python -c '{imports}; print(pocket_folder())')\"",
            dtype,
            imports=imports,
        )
    return BaseSource(
        f"a local folder, {folder_name(study.model.label)}",
        None,
        "FOLDER_OF_THE_BASE",
        dtype,
        note="The base was a local folder: `base_model_name_or_path` in `adapter_config.json` is "
        "its path on the machine of the study. Change it to a path on yours or a name on the hub.",
    )


def folder_name(label: str) -> str:
    """Return the last part of a local path: a published card must not show the rest."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", PurePath(label).name).strip("-.") or "unknown"


def adapter_settings(spec: TrialSpec) -> dict[str, Any]:
    """Return the fields of ``adapter_config.json`` that decide which programs can serve the
    trial."""
    if spec.peft is not None:
        return {"r": spec.rank or 8, **json.loads(spec.peft)}  # 8 is PEFT's default
    method = get_method(spec.method)
    # An adapter that subtracts its initialization is stored with twice the rank.
    rank = (spec.rank or 1) * (2 if method.init_is_part_of_base else 1)
    ranks = dict(spec.rank_pattern or ())
    alphas = {name: spec.scaling * method.rank_scale(r) for name, r in ranks.items()}
    patterns = {"rank_pattern": ranks, "alpha_pattern": alphas}
    return {"peft_type": "LORA", "r": rank, **patterns, **method.peft_fields}


def general_obstacle(settings: Mapping[str, Any], program: str) -> str:
    """Return why a program cannot serve an adapter unmerged, in one sentence; empty if it can."""
    if settings["peft_type"] != "LORA":
        return f"{program} reads LoRA adapters, not {settings['peft_type']}."
    for method in all_methods():
        is_marked = any(settings.get(name) for name in method.peft_fields)
        if is_marked and program in method.unserved_by:
            return method.unserved_by[program]
    if settings.get("alpha_pattern"):
        return f"{program} gives every module the same scaling; this adapter's modules differ."
    return ""


def system_of(study: StudyRecords, task: str) -> str | None:
    """Return the system text of all training rows, or an empty one; None without a chat
    template."""
    return study.task(task).system if study.model.prompt_format == "chat" else None


def use_steps(
    base: BaseSource,
    settings: Mapping[str, Any] | None,
    name: str,
    place: str,
    system: str | None,
) -> list[UseStep]:
    """Write steps to load, merge, serve and convert an export.

    Args:
        settings: fields of ``adapter_config.json``; None for a full model.
        name: name of the adapter in requests to a server.
        place: folder or hub id of the export.
        system: the result of :func:`system_of`.
    """
    quoted, template = shlex.quote(place), template_environment(str, {}).get_template("load.py.j2")
    is_adapter, folder = settings is not None, json.dumps(place)
    # Python writes out what is not printable; three backticks would end a card's block of code.
    text = system and repr(system).replace("```", "``\\x60")
    load = template.render(base=base, is_adapter=is_adapter, folder=folder, system=text)
    if settings is None:
        return [
            UseStep("Load it with transformers", load, "python"),
            *_serve_steps(base, None, name, quoted),
            UseStep("Convert it to GGUF", CONVERT_MODEL.format(quoted), note=SENTENCEPIECE),
        ]
    merge = (
        "merged = model.merge_and_unload()\n"
        'merged.save_pretrained("merged")\ntokenizer.save_pretrained("merged")'
    )
    return [
        UseStep("Load it with PEFT", load, "python", base.note),
        UseStep(
            "Merge it into the base", merge, "python", "This continues the code that loads it."
        ),
        *_serve_steps(base, settings, name, quoted),
        _convert(base, settings, quoted),
    ]


def _serve_steps(
    base: BaseSource, settings: Mapping[str, Any] | None, name: str, place: str
) -> list[UseStep]:
    """Return the step to serve a model from each extension that has a ``serving.serve_step``.

    Arguments are as in :func:`use_steps`; ``place`` is quoted for a shell.
    """
    return [file.serve_step(base, settings, name, place) for file in extension_files("serving")]


def _convert(base: BaseSource, settings: Mapping[str, Any], place: str) -> UseStep:
    title = "Convert it to GGUF"
    if reason := general_obstacle(settings, "llama.cpp"):
        note = f"{reason} Merge it first. {SENTENCEPIECE}"
        return UseStep(title, CONVERT_MODEL.format("merged"), note=note)
    source = "" if base.hub_name else f" --base {base.shell}"  # the script reads the hub by itself
    command = f"python llama.cpp/convert_lora_to_gguf.py {place}{source} --outfile adapter.gguf"
    return UseStep(title, command)


def steps_for_task(view: StudyView, task: str, folder: str) -> tuple[UseStep, ...]:
    """Write how to export and use the arm of a task's answer; empty without one.

    ``folder`` is the study's, as its user would type it.
    """
    arm = view.focus(task)
    trials = view.trials(arm) if arm is not None else []
    if arm is None or not trials or not view.study.config.arms:  # imported scores: no weights
        return ()
    if (prompt := trials[0].spec.prompt) is not None:
        return _prompt_steps(view, task, prompt)
    done = [trial.spec for trial in trials if trial.status == "done"]
    if not done:
        return ()
    spec = done[0]
    name = folder_name(f"{task}-{arm.short_label.replace('=', '')}")
    command = f"rankscope export {shlex.quote(folder)} {_selection(view, arm)}"
    steps = [UseStep("Export it", f"{command} --out {name}")]
    settings = None if spec.is_full else adapter_settings(spec)
    base = base_source(view.study)
    uses = use_steps(base, settings, name, name, system_of(view.study, task))
    if settings is not None:
        merged = f"{command} --merge --out {name}-merged"
        steps.append(UseStep("Export it merged into the base", merged))
    method = get_method(spec.method)
    if method.has_rank and method.delta_is_low_rank:
        made = [f"{command} --format {form} --out {name}-{form}" for form in ("gguf", "mlx")]
        uses[-1] = UseStep("Export it for Ollama and llama.cpp, or for MLX", "\n".join(made))
    return (*steps, *uses)


def _prompt_steps(view: StudyView, task: str, prompt: Prompt) -> tuple[UseStep, ...]:
    """Write steps to use the base and the prompt before a question.

    The prompt is written as messages, or as the text that was scored.
    """
    pairs = [(q, reply) for part, q, reply in prompt.examples if part == prompt.examples[0][0]]
    if view.study.model.prompt_format == "chat":
        turns = [("system", prompt.system)] * bool(prompt.system)
        turns += [t for q, reply in pairs for t in (("user", q.rstrip()), ("assistant", reply))]
        messages = [{"role": r, "content": text} for r, text in [*turns, ("user", "...")]]
        code = f"messages = {json.dumps(messages, indent=1, ensure_ascii=False)}"
    else:
        solved = (q + with_leading_space(q, reply) for q, reply in pairs)
        code = "\n\n".join([*[prompt.system] * bool(prompt.system), *solved, "..."])
    own = view.study.task(task).num_fewshot if prompt.num_fewshot is None else 0
    note = f" Before the question, show the task's own {count(own, 'solved example')}, too."
    base = base_source(view.study)
    ask = UseStep("Put this before each question", code, "python", ASK + note * bool(own))
    return *_serve_steps(base, None, "", base.shell), ask


def _selection(view: StudyView, arm: ArmSummary) -> str:
    """Return the option or label by which ``export`` finds an arm."""
    if arm == view.advice(arm.task).chosen:
        return f"--best{_of_task(view, arm)}"
    if arm == view.best_lora(arm.task):
        return f"--best-lora{_of_task(view, arm)}"
    return by_label(view, arm)


def by_label(view: StudyView, arm: ArmSummary) -> str:
    """Return arguments of ``export`` that name the arm."""
    return f"{shlex.quote(arm.label)}{_of_task(view, arm)}"


def _of_task(view: StudyView, arm: ArmSummary) -> str:
    return f" --task {shlex.quote(arm.task)}" if len(view.training_tasks) > 1 else ""
