"""The model card: front matter that the hub reads, the study's own figures, nothing made up, and
commands that other programs accept."""

import re
from dataclasses import replace

import numpy as np
import pytest
import yaml
from advice import paired_estimate
from huggingface_hub import ModelCard
from report_studies import card_of, hostile_study, study_and_advice
from synthetic_study import Truth

from rankscope.advise.statistics.matching import cluster_labels
from rankscope.config.study import ModelConfig
from rankscope.config.task import TaskConfig
from rankscope.formatting import difference, interval, score_text
from rankscope.records import BASE, StudyRecords, TrialRecords
from rankscope.report.study_view import StudyView
from rankscope.report.use_it import folder_name, general_obstacle, steps_for_task


def trial_of(study: StudyRecords, label: str) -> TrialRecords:
    return next(t for t in study.trials if t.spec.label == label)


def test_the_hub_reads_the_front_matter(view: StudyView) -> None:
    adapter = ModelCard(card_of(view, trial_of(view.study, "med r=8 lr=0.001 seed=0"))).data
    assert adapter.base_model is None
    assert adapter.library_name == "peft"
    assert adapter.tags == ["rankscope", "lora"]
    assert adapter.license is None
    full = ModelCard(card_of(view, trial_of(view.study, "med full lr=0.0005 seed=0"))).data
    assert full.library_name == "transformers"
    assert full.tags == ["rankscope"]


def test_the_figures_are_those_of_the_one_trained_model(view: StudyView) -> None:
    trial = trial_of(view.study, "med r=8 lr=0.001 seed=1")
    text = card_of(view, trial)
    own, base = (view.study.items[i, "med", "test"] for i in (trial.spec.trial_id, BASE))
    clusters, unit = cluster_labels(base.subjects), view.unit("med")
    gain = paired_estimate(own.scores[np.newaxis], base.scores, clusters)
    row = next(line for line in text.splitlines() if line.startswith("| med | in domain |"))
    for part in (
        score_text(float(base.scores.mean()), unit),
        score_text(float(own.scores.mean()), unit),
        difference(gain.value, unit),
        interval(gain, unit).removeprefix("95 % interval "),
        "| 60 |",
    ):
        assert part in row
    of = view.arm("med", trial.spec.arm_label).expected
    assert (
        f"The configuration over 3 seeds: expected gain {difference(of.changes['med'].value, unit)}"
        in text
    )
    for part in (
        view.study.model.sha256,
        view.study.task("med").sha256,
        "| rank | 8 |",
        "| alpha | 16.0 |",
        "| learning rate | 0.001 |",
        "Retention change, the mean over general: ",
        "torch 2.13.0",
        "## License",
    ):
        assert part in text


def test_whether_these_settings_are_the_recommended_ones_is_said(view: StudyView) -> None:
    advice = view.advice("med")
    texts = {t.spec.arm_label: card_of(view, t) for t in view.study.trials if t.spec.task == "med"}
    told = [k for k, text in texts.items() if "The study recommends these settings." in text]
    assert told == [advice.chosen.label]
    others = [text for label, text in texts.items() if label != advice.chosen.label]
    assert all("The study recommends other settings, " in text for text in others)


@pytest.mark.parametrize(
    ("truth", "step", "sentence"),
    [
        (Truth(num_items=20, retention=()), None, "retention tasks are missing from the study."),
        (Truth(num_items=20), 5, "These are the weights after 5 optimizer steps. The study scored"),
        (
            Truth(num_items=20, failed={(8, 1e-3, 0): "failed"}),
            None,
            "The study has not scored this run.",
        ),
    ],
)
def test_what_the_study_does_not_know_is_said(
    truth: Truth, step: int | None, sentence: str
) -> None:
    view = StudyView(*study_and_advice(truth))
    text = card_of(view, trial_of(view.study, "med r=8 lr=0.001 seed=0"), step)
    assert sentence in text
    part = text.partition("## What it scores")[2].partition("## How it was chosen")[0]
    if "retention" not in sentence:
        assert not re.search(r"\d (%|points)", part)
    for word in ("nan", "None"):
        assert not re.search(rf"\b{word}\b", text)


def test_hostile_text_stays_text() -> None:
    view = StudyView(*hostile_study())
    text = card_of(view, view.study.trials[0])
    front = text.split("---\n")[1]
    assert set(yaml.safe_load(front)) == {"library_name", "pipeline_tag", "tags"}
    outside = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    body = outside.partition("\n---\n")[2]
    assert "\u202e" not in text
    assert not re.search(r"(?<!\\)<[a-zA-Z/!]", body)
    assert not re.search(r"(?<!\\)\]\(", body)


HUB = {"hub": "Qwen/Qwen2.5-7B", "revision": "abc"}
MINE = {"path": "/home/me/models/Mine 7B"}
OWN = {"train": "data/me, mine/train.jsonl", "test": "./x/test.jsonl"}


@pytest.mark.parametrize(
    ("model", "task", "source", "hub_name", "parts"),
    [
        (HUB, {}, "hub cais/mmlu (all)", "Qwen/Qwen2.5-7B",
         ['from_pretrained("Qwen/Qwen2.5-7B", revision="abc", dtype="float32")',
          "on the hub, revision abc (", "| data | hub cais/mmlu (all) |"]),
        ({"hub": "a/b"}, {}, "pocket world", "a/b",
         ['from_pretrained("a/b", dtype="float32")', "| a/b on", "| data | pocket world |"]),
        ({"pocket": True}, {}, "data/me/med", None,
         ["from_pretrained(pocket_folder(), ", "the pocket model, built into Rankscope (",
          "| data | med |"]),
        ({"hub": "a/b"}, {"path": "/home/me/rows, all"}, "/home/me/rows, all", "a/b",
         ["| data | rows, all |"]),
        (MINE, OWN, ", ".join(OWN.values()), None,
         ['AutoPeftModelForCausalLM.from_pretrained(".", ', "| base | a local folder, Mine-7B (",
          "| data | train.jsonl, test.jsonl |"]),
    ],
)  # fmt: skip
def test_base_and_data_are_named_as_others_can_find_them_and_no_folder_of_the_maker(
    model: dict[str, object],
    task: dict[str, object],
    source: str,
    hub_name: str | None,
    parts: list[str],
) -> None:
    study, advice = study_and_advice(Truth(num_items=20))
    rows = {"source": source, "from_hub": source.startswith("hub ")}
    settings = {
        "model": ModelConfig.model_validate(model),
        "tasks": [TaskConfig.model_validate({"name": "med", **task})],
    }
    study = replace(
        study,
        config=study.config.model_copy(update=settings),
        model=study.model.model_copy(update={"label": str(next(iter(model.values())))}),
        tasks=tuple(t.model_copy(update=rows) for t in study.tasks),
    )
    text = card_of(StudyView(study, advice), trial_of(study, "med r=8 lr=0.001 seed=0"))
    assert ModelCard(text).data.base_model == hub_name
    assert ("base_model:" in text) == (hub_name is not None)
    assert all(part in text for part in parts)
    assert "/home" not in text
    assert "data/me" not in text


@pytest.mark.parametrize(
    ("label", "name"),
    [("/models/Mine 7B", "Mine-7B"), ("../a/b c", "b-c"), ("/", "unknown"), ("a/b/c", "c")],
)
def test_names_of_local_folders(label: str, name: str) -> None:
    assert folder_name(label) == name


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"r": 8, "rank_pattern": {"x": 16}}, ""),
        ({"r": 8, "use_dora": True}, "does not read DoRA"),
        ({"r": 8, "use_rslora": True}, "scales by alpha / r"),
        ({"r": 8, "alpha_pattern": {"x": 16}}, "the same scaling"),
        ({"peft_type": "VERA", "r": 256}, "not VERA"),
    ],
)
def test_what_cannot_be_converted_unmerged_is_said(
    settings: dict[str, object], reason: str
) -> None:
    found = general_obstacle({"peft_type": "LORA", **settings}, "llama.cpp")
    assert (reason in found) if reason else found == ""


def test_the_steps_of_a_task_name_the_arm_of_its_answer(view: StudyView) -> None:
    for task in view.training_tasks:
        export, *others = steps_for_task(view, task, "my studies/one")
        chosen = view.advice(task).chosen
        option = "--best" if chosen else "--best-lora"
        assert export.code.startswith(f"rankscope export 'my studies/one' {option} --task {task} ")
        name = export.code.rpartition(" ")[2]
        assert any(name in step.code for step in others)
