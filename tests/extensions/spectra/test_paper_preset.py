"""The preset of the paper: its protocol, its plan, its data, a short run."""

import shutil
from pathlib import Path

import pytest
from architectures import LLAMA_8B
from hub_copies import paper_hub

from rankscope.config.study import StudyConfig
from rankscope.data.study_data import prepare_data
from rankscope.errors import UserError
from rankscope.models.load import load_tokenizer
from rankscope.models.model_folder import model_folder, pocket_folder
from rankscope.models.parameters import architecture
from rankscope.run.study import Study
from rankscope.run.trials import make_trials
from rankscope.tools.new_study import study_template

from ...config.test_presets import load_text
from ...run.test_presets_run import ENDS, page_of


def test_the_paper_preset_is_the_papers_protocol(tmp_path: Path) -> None:
    """arXiv 2512.15634: five data sets, r 8 to 128 on q, k, v, o, alpha 2r, full at 5e-5."""
    config = load_text(study_template("paper"), tmp_path)
    assert [t.name for t in config.tasks] == ["gsm8k", "mmlu", "medmcqa", "mathqa", "legal_mcq"]
    lora, full = config.arms
    assert lora.rank == [8, 16, 32, 64, 128]
    assert lora.target_sets() == [("k_proj", "o_proj", "q_proj", "v_proj")]
    trials = make_trials(config, "b", {task.name: "d" for task in config.tasks})
    assert {t.alpha / t.rank for t in trials if t.alpha and t.rank} == {2.0}
    assert full.lr == [5e-5]
    train = config.train
    assert (train.epochs, train.batch_size, train.gradient_accumulation) == (3, 2, 4)
    assert (train.schedule, train.warmup_fraction) == ("linear", 0.1)
    assert config.analyze.spectra.top_k == 500


def test_the_paper_preset_plans_as_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For an 8B model's configuration and a tokenizer, without weights.

    Its five data sets are in the hub's layout and splits, a few rows of each; no task is set.
    """
    folder = tmp_path / "model"
    LLAMA_8B.save_pretrained(folder)
    for file in pocket_folder().glob("tokenizer*"):
        shutil.copy(file, folder)
    (tmp_path / "hub").mkdir()
    paper_hub(tmp_path / "hub", monkeypatch)
    study = tmp_path / "paper.yaml"
    study.write_text(study_template("paper", str(folder)), encoding="utf-8")
    sets = ["memory_limit=80GB", "dtype=bfloat16"]
    plan = Study.load(study, sets).plan(tokens_per_second=2000)
    # 5 tasks x (5 ranks x 2 rates + full) x 3 seeds.
    assert plan.trials == 165
    assert sum(len(group.labels) for group in plan.groups) == 165
    base_bytes = 2 * architecture(LLAMA_8B).num_parameters
    is_full = [group.labels[0].startswith("full") for group in plan.groups]
    assert sum(is_full) == 15
    for group, full in zip(plan.groups, is_full, strict=True):
        # Float32 weights, gradients and two moments beside the base: 16 + 2 bytes a parameter.
        assert group.memory_bytes > base_bytes * (9 if full else 1)
        assert full or group.memory_bytes <= 80e9
    # Of gsm8k's 100 rows a fifth chooses; MMLU's are the 90 to train on; of medmcqa's 70 a fifth
    # chooses; mathqa's are 60; of 20 rows of law a fifth. Three epochs, steps of 8 rows.
    rows = {"gsm8k": 80, "mmlu": 90, "medmcqa": 56, "mathqa": 60, "legal_mcq": 16}
    steps = {group.task: group.steps for group in plan.groups}
    assert steps == {name: 3 * -(-count // 8) for name, count in rows.items()}
    assert "holds no weights: planned from config.json" in plan.notes[0]
    with pytest.raises(UserError, match=r"found no weights, expected \*\.safetensors"):
        Study.load(study, sets).check()


def test_a_training_task_without_rows_is_refused_with_a_way_out(
    tmp_path: Path, beginnings: Path
) -> None:
    """MMLU's local rows have no train file, which is seen before any file is read."""
    study = tmp_path / "paper.yaml"
    text = study_template("paper", "./model", None, str(beginnings))
    study.write_text(text.replace("model: ./model", "model: pocket"), encoding="utf-8")
    with pytest.raises(UserError) as error:
        Study.load(study)
    assert str(error.value) == (
        "task 'mmlu': found no training rows (only test, validation), although it is trained on, "
        "expected a file of them ('train:' in the task, or train.jsonl in its folder); add it, or "
        "only evaluate the task: move it from 'tasks' to 'evaluate.cross_domain'"
    )
    alone = Study.load(study, ["tasks=[gsm8k,medmcqa,mathqa,legal_mcq]"]).config
    assert "mmlu" in alone.evaluation_tasks()
    config = StudyConfig.model_validate(
        {
            "name": "s",
            "model": "pocket",
            "tasks": ["common_facts"],
            "arms": [{"method": "full", "lr": 1e-3}],
        }
    )
    with pytest.raises(UserError, match="'common_facts': found no training rows"):
        prepare_data(config, load_tokenizer(model_folder(config.model)))


def test_the_preset_runs(tmp_path: Path) -> None:
    page_of("paper", ["tasks=[pocket_med,pocket_gsm]", "arms.0.rank=8", *ENDS], tmp_path)
