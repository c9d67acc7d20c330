"""The model card: front matter that the hub reads, the study's own figures, nothing made up."""

import re
from dataclasses import replace

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from report_studies import hostile_study, study_and_advice
from synthetic_study import Truth

from rankscope.advise.arms import summarize_trial
from rankscope.advise.statistics.estimates import paired_estimate
from rankscope.config.study import ModelConfig
from rankscope.config.task import TaskConfig
from rankscope.formatting import difference, interval, score_text
from rankscope.records import BASE, StudyRecords, TrialRecords
from rankscope.report.model_card import ExportedWeights, study_card
from rankscope.report.study_view import StudyView
from rankscope.report.use_it import adapter_settings, base_source, folder_name

KNOWN = {"smollm2-135m": "SmolLM2-135M-Instruct of somebody"}


def card_of(view: StudyView, trial: TrialRecords, step: int | None = None) -> str:
    settings = None if trial.spec.is_full else adapter_settings(trial.spec)
    weights = ExportedWeights(base_source(view.study, KNOWN), settings, step=step)
    return study_card(view, trial, summarize_trial(view.study, trial), weights)


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
    own, base = (view.study.items[i, "med", "test"].scores for i in (trial.spec.trial_id, BASE))
    gain, unit = paired_estimate(own[np.newaxis], base), view.unit("med")
    row = next(line for line in text.splitlines() if line.startswith("| med | in domain |"))
    for part in (
        score_text(float(base.mean()), unit),
        score_text(float(own.mean()), unit),
        difference(gain.value, unit),
        interval(gain, unit).removeprefix("95 % interval "),
        "| 60 |",
    ):
        assert part in row
    arm = next(a for a in view.arms("med") if a.label == trial.spec.arm_label)
    assert f"Mean over 3 seeds: gain over the base {difference(arm.gain.value, unit)}" in text
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
    advice = view.advice("med")
    assert advice.verdict.split(":")[0] in text.replace("\\", "")


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
            "The study has not scored this trial.",
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


def card_with(
    model: dict[str, object], label: str, task: dict[str, object], source: str = "simulated"
) -> str:
    """The first trial's card, an adapter, of a study on this base and these data."""
    study, advice = study_and_advice(Truth(num_items=20))
    settings = {
        "model": ModelConfig.model_validate(model),
        "tasks": [TaskConfig.model_validate(task)],
    }
    study = replace(
        study,
        config=study.config.model_copy(update=settings),
        model=study.model.model_copy(update={"label": label}),
        tasks=tuple(t.model_copy(update={"source": source}) for t in study.tasks),
    )
    trial = trial_of(study, "med r=8 lr=0.001 seed=0")
    return card_of(StudyView(study, advice), trial)


@pytest.mark.parametrize(
    ("settings", "source", "shown"),
    [
        ({"train": "data/me, mine/train.jsonl", "test": "./x/test.jsonl"},
         "data/me, mine/train.jsonl, ./x/test.jsonl", "train.jsonl, test.jsonl"),
        ({"path": "/home/me/rows, all"}, "/home/me/rows, all", "rows, all"),
        ({}, "data/me/med", "med"),
        ({}, "hub cais/mmlu (all)", "hub cais/mmlu (all)"),
        ({}, "pocket world", "pocket world"),
    ],
)  # fmt: skip
def test_a_card_names_no_folder_of_its_maker(
    settings: dict[str, object], source: str, shown: str
) -> None:
    path = "/home/me/models/Mine 7B"
    text = card_with({"path": path}, path, {"name": "med", **settings}, source)
    assert "/home" not in text
    assert "data/me" not in text
    assert f"| data | {shown} |" in text
    assert "| base | a local folder, Mine-7B (" in text


@pytest.mark.parametrize(
    ("model", "label", "base", "code", "words"),
    [
        (
            {"hub": "Qwen/Qwen2.5-7B", "revision": "abc"}, "Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B",
            'from_pretrained("Qwen/Qwen2.5-7B", revision="abc", dtype="float32")',
            "on the hub, revision abc (",
        ),
        ({"hub": "a/b"}, "a/b", "a/b", 'from_pretrained("a/b", dtype="float32")', "| a/b on"),
        (
            {"pocket": True}, "pocket", None,
            "from_pretrained(pocket_folder(), ", "the pocket model, built into Rankscope (",
        ),
        (
            {"cached": "smollm2-135m"}, "smollm2-135m", None,
            'from_pretrained(cached_model_folder("smollm2-135m"), ',
            ": SmolLM2-135M-Instruct of somebody (",
        ),
        (
            {"path": "models/x"}, "models/x", None,
            'AutoPeftModelForCausalLM.from_pretrained(".", ', "| a local folder, x (",
        ),
    ],
)  # fmt: skip
def test_only_a_base_of_the_hub_is_named_as_one(
    model: dict[str, object], label: str, base: str | None, code: str, words: str
) -> None:
    text = card_with(model, label, {"name": "med"})
    assert ModelCard(text).data.base_model == base
    assert ("base_model:" in text) == (base is not None)
    assert code in text
    assert words in text


@pytest.mark.parametrize(
    ("label", "name"),
    [("/models/Mine 7B", "Mine-7B"), ("../a/b c", "b-c"), ("/", "unknown"), ("a/b/c", "c")],
)
def test_names_of_local_folders(label: str, name: str) -> None:
    assert folder_name(label) == name
