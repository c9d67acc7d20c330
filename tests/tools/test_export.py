"""Exported weights do what their card says, for whoever has the folder and not the study."""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_line import files_below, rankscope
from huggingface_hub import parse_eval_result_entries
from inspections import inspection
from peft import AutoPeftModelForCausalLM
from report_studies import ordinary_study, study_and_advice
from synthetic_study import Truth
from transformers import AutoModelForCausalLM, AutoTokenizer

from rankscope.advise.recommend import recommend
from rankscope.config.study import ModelConfig
from rankscope.config.task import TaskConfig
from rankscope.errors import UserError
from rankscope.hashing import weights_sha256
from rankscope.report.study_view import StudyView
from rankscope.tools.export import (
    ExportRequest,
    _base_reference as base_reference,
    _merge_adapter as merge_adapter,
    _write_hub_scores as write_hub_scores,
    choose_trial,
    export_trial,
)

PROMPTS = torch.tensor([[1, 20, 30, 40, 50], [1, 60, 21, 99, 7]])


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(PROMPTS).logits.double()


def run_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Execute every Python block of a card in its folder, as a reader would."""
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    card = (folder / "README.md").read_text("utf-8")
    for block in re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL):
        exec(block, names)  # noqa: S102
    return names


@pytest.mark.parametrize("label", ["r=2", "dora", "full"])
def test_the_card_of_an_export_loads_the_model_that_was_scored(
    exportable: Any, label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, _, _ = export_trial(exportable.out, tmp_path / "tuned", ExportRequest(label=label))
    export_trial(exportable.out, tmp_path / "whole", ExportRequest(label=label, merge=True))
    names = run_card(tmp_path / "tuned", monkeypatch)
    tuned = logits(names["model"])
    base = logits(AutoModelForCausalLM.from_pretrained(exportable.base, dtype="float32"))
    assert (tuned - base).abs().max() > 1e-3
    folders = [tmp_path / "whole"]
    if not spec.is_full:
        # The card's own merge has worked on names["model"] in place.
        folders.append(tmp_path / "tuned" / "merged")
    for folder in folders:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
        # Sums of up to 192 float32 products per layer, in another order.
        torch.testing.assert_close(logits(model), tuned, rtol=1e-4, atol=1e-4)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.chat_template == names["tokenizer"].chat_template
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "x "


def test_an_adapter_names_its_base_and_a_merged_model_needs_none(
    exportable: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = rankscope(
        "export", exportable.out, "r=2", "--out", tmp_path / "a", "--base-name", "o/n"
    )
    assert outcome.code == 0, outcome
    assert "seed with the highest validation score of 2" in outcome.told
    settings = json.loads((tmp_path / "a" / "adapter_config.json").read_text("utf-8"))
    assert settings["base_model_name_or_path"] == "o/n"
    assert 'AutoModelForCausalLM.from_pretrained("o/n"' in (tmp_path / "a/README.md").read_text()
    assert {"tokenizer.json", "chat_template.jinja"} <= files_below(tmp_path / "a")
    # A folder of that name is found before the hub is asked: the base as others would load it.
    shutil.copytree(exportable.base, tmp_path / "a" / "o" / "n")
    by_card = logits(run_card(tmp_path / "a", monkeypatch)["base"])  # with the adapter in place
    by_name = AutoPeftModelForCausalLM.from_pretrained(".", dtype="float32")
    torch.testing.assert_close(logits(by_name), by_card, rtol=1e-4, atol=1e-4)
    outcome = rankscope(
        "export", exportable.out, "r=2", "--merge", "--json", "--out", tmp_path / "m"
    )
    assert json.loads(outcome.out)["kind"] == "merged model"
    assert not any("adapter" in name for name in files_below(tmp_path / "m"))
    card = (tmp_path / "m" / "README.md").read_text("utf-8")
    assert "library_name: transformers" in card
    assert "model with a merged lora adapter" in card


@contextmanager
def configured(base: Path, **changes: object) -> Iterator[None]:
    """Other values in the configuration of the base for a while."""
    config = base / "config.json"
    before = config.read_text("utf-8")
    config.write_text(json.dumps(json.loads(before) | changes), "utf-8")
    try:
        yield
    finally:
        config.write_text(before, "utf-8")


def test_a_changed_base_is_not_merged_into(exportable: Any, tmp_path: Path) -> None:
    with (
        configured(exportable.base, rms_norm_eps=1e-5),
        pytest.raises(UserError, match="other weights than the study's base had"),
    ):
        export_trial(exportable.out, tmp_path / "x", ExportRequest(label="r=2", merge=True))
    assert not (tmp_path / "x").exists()


def test_a_base_that_names_code_of_others_is_merged_without_it(
    exportable: Any, tmp_path: Path
) -> None:
    """transformers would fetch attention kernels from the hub if the configuration names some."""
    records = exportable.records
    trial = next(t for t in records.trials if t.spec.rank == 2)
    with configured(exportable.base, attn_implementation="someone/kernel"):
        model = records.model.model_copy(update={"sha256": weights_sha256(exportable.base)})
        adapter = exportable.out / "artifacts" / trial.spec.trial_id / "adapter"
        merge_adapter(replace(records, model=model), adapter, tmp_path)
    assert (tmp_path / "model.safetensors").is_file()


def test_without_the_base_an_adapter_is_exported_with_a_note(
    exportable: Any, tmp_path: Path
) -> None:
    moved = exportable.base.with_name("moved")
    exportable.base.rename(moved)
    try:
        request = ExportRequest(label="r=2", base_name="o/n")
        _, _, notes = export_trial(exportable.out, tmp_path / "x", request)
    finally:
        moved.rename(exportable.base)
    assert any("no tokenizer was written" in note for note in notes)
    assert "tokenizer.json" not in files_below(tmp_path / "x")


# --- which trial ----------------------------------------------------------------------------------


def chosen_label(label: str | None = None, task: str | None = None, best_lora: bool = False) -> str:
    view = StudyView(*ordinary_study())
    return choose_trial(view, Path("s"), label, task, best_lora=best_lora)[0].label


def test_the_recommended_arm_is_the_default_and_its_best_seed_is_taken() -> None:
    view = StudyView(*ordinary_study())
    arm = view.advice("med").chosen
    scores = {
        t.spec.label: view.study.evals[t.spec.trial_id, "med", "validation"].score
        for t in view.trials(arm)
    }
    assert scores[chosen_label(task="med")] == max(scores.values())
    lora = view.best_lora("law")
    assert chosen_label(task="law", best_lora=True).startswith(f"law {lora.label} ")


@pytest.mark.parametrize(
    ("label", "task", "found"),
    [
        ("med r=8 lr=0.001 seed=1", None, "med r=8 lr=0.001 seed=1"),
        ("r=8 lr=0.001", "law", "law r=8 lr=0.001 seed="),
        ("law full", None, "law full lr=0.0005 seed="),
        ("LoRA rank=8 lr=1e-3 alpha=16", "law", "law r=8 lr=0.001 seed="),
        ("r=8 seed=1 lr=.001 task=law", None, "law r=8 lr=0.001 seed=1"),
        # The trial of seed 1 diverged.
        ("r=32 lr=0.003", "med", "med r=32 lr=0.003 seed="),
    ],
)
def test_words_of_the_report_name_an_arm(label: str, task: str | None, found: str) -> None:
    assert chosen_label(label, task).startswith(found)
    assert chosen_label(label, task) != "med r=32 lr=0.003 seed=1"


@pytest.mark.parametrize(
    ("label", "task", "message"),
    [
        (None, None, r"2 training tasks, .* expected one; give one with --task"),
        ("r=8 lr=0.001", None, r"found 2 arms .*\n  med r=8 lr=0.001\n  law r=8 lr=0.001"),
        ("r=8", "med", r"found 2 arms .*\n  med r=8 lr=0.001\n  med r=8 lr=0.003"),
        ("r=5", None, "no trial 'r=5', expected an arm's label"),
        ("", None, "found no trial ''"),
        (None, "physics", "no training task 'physics', expected --task med or law"),
    ],
)
def test_an_unclear_choice_lists_what_it_could_be(
    label: str | None, task: str | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        chosen_label(label, task)


def test_a_study_without_arms_has_nothing_to_export() -> None:
    study = inspection("tiny")
    view = StudyView(study, recommend(study))
    with pytest.raises(UserError, match="a study without arms, which has nothing to export"):
        choose_trial(view, Path("s"), None, None, best_lora=False)


def test_an_undecided_answer_has_no_best_and_its_leader_is_exported_by_its_label() -> None:
    view = StudyView(*study_and_advice(Truth(num_items=20, contamination=5)))
    advice = view.advice("med")
    assert advice.decision == "not_decided"
    with pytest.raises(UserError) as refused:
        choose_trial(view, Path("a b"), None, "med", best_lora=False)
    assert advice.verdict.removesuffix(".") in refused.value.found
    _, label, *_ = shlex.split(refused.value.do)
    assert label == advice.subject_label
    spec, _ = choose_trial(view, Path("a b"), label, None, best_lora=False)
    assert spec.arm_label == label


# --- where the base is found ----------------------------------------------------------------------


# --- the hub --------------------------------------------------------------------------------------


def test_scores_on_hub_data_sets_are_written_as_the_hub_reads_them(tmp_path: Path) -> None:
    study, _ = ordinary_study()
    names = {"med": "arc_easy", "law": "law", "general": "legal_mcq", "math": "mmlu"}
    tasks = tuple(
        t.model_copy(update={"name": names[t.name], "num_fewshot": 2 * (t.name == "math")})
        for t in study.tasks
    )
    config = study.config.model_copy(
        update={"tasks": [TaskConfig.model_validate({"name": name}) for name in names.values()]}
    )
    evals = {(i, names[t], s): e for (i, t, s), e in study.evals.items()}
    study = replace(study, tasks=tasks, config=config, evals=evals)
    trial = next(t for t in study.trials if t.spec.label == "med r=8 lr=0.001 seed=0")
    write_hub_scores(study, trial, tmp_path / ".eval_results")
    # Own rows have no id on the hub, and legal_mcq is a part of another data set.
    assert files_below(tmp_path) == {".eval_results"} | {
        f".eval_results/{name}.yaml" for name in ("arc_easy", "mmlu")
    }
    found = {
        name: parse_eval_result_entries(
            yaml.safe_load((tmp_path / ".eval_results" / f"{name}.yaml").read_text())
        )[0]
        for name in ("arc_easy", "mmlu")
    }
    assert (found["arc_easy"].dataset_id, found["arc_easy"].task_id) == (
        "allenai/ai2_arc",
        "ARC-Easy",
    )
    score = study.evals[trial.spec.trial_id, "arc_easy", "test"].score
    assert found["arc_easy"].value == pytest.approx(100 * score, abs=0.005)
    assert "60 test items, 2-shot, rows from a local copy" in str(found["mmlu"].notes)


@pytest.mark.parametrize(
    ("model", "given", "name", "revision"),
    [
        ({"hub": "a/b", "revision": "abc"}, None, "a/b", "abc"),
        ({"hub": "a/b", "revision": "abc"}, "c/d", "c/d", None),
        ({"path": "/models/x"}, "a/b", "a/b", None),
    ],
)
def test_others_find_the_base(
    model: dict[str, Any], given: str | None, name: str, revision: str | None
) -> None:
    found = base_reference(ModelConfig.model_validate(model), given)
    assert found == {"base_model_name_or_path": name, "revision": revision}
