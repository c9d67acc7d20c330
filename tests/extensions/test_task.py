"""A task from one file of its own: trained on and evaluated without a change to the package."""

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import pytest
from report_studies import ordinary_study

import rankscope
from rankscope.config.study import StudyConfig
from rankscope.data.registry import named_tasks
from rankscope.data.study_data import prepare_data
from rankscope.errors import UserError
from rankscope.models.load import load_tokenizer
from rankscope.models.model_folder import model_folder
from rankscope.report.figures import Section, all_sections, figure_files
from rankscope.report.study_view import StudyView
from rankscope.report.tables import ScoreTable, arms_table, study_tables

NAME = "kinds_of_words"
TASK, ARM = {"name": NAME, "max_train_rows": 40}, {"method": "lora", "rank": 2, "lr": 1e-3}
STUDY = StudyConfig(name="kinds", model="pocket", tasks=[TASK], arms=[ARM])


@pytest.fixture(autouse=True)
def package(load_extension: Callable[[str], ModuleType]) -> ModuleType:
    """The module with the task."""
    return load_extension("task")


def test_a_study_trains_on_the_task() -> None:
    tokenizer = load_tokenizer(model_folder(STUDY.model))
    data = prepare_data(STUDY, tokenizer)
    task = data.tasks[NAME]
    assert (len(task.train), len(task.validation), len(task.test)) == (40, 52, 52)
    item = task.test[0]
    assert (item.prompt, item.completion) == ("what iron ?", "metal")
    assert item.choices == ("metal", "animal", "target", "charge")
    assert item.item_id == f"{NAME}/test/1"
    assert (task.source, task.spec.chance) == ("words of the pocket world", 0.25)
    row = data.rows[NAME].rows[0]
    assert tokenizer.decode([i for i, t in zip(row.input_ids, row.is_label, strict=True) if t]) in (
        f"{choice} <eos>" for choice in item.choices
    )


def test_the_evaluation_engine_scores_the_task() -> None:
    _, (score,) = rankscope.score("pocket", [NAME], settings={"device": "cpu"}, max_items=8)
    assert (score.record.task, score.record.n) == (NAME, 8)
    assert score.source == "words of the pocket world"


def test_two_tasks_or_sections_or_tables_of_one_name_are_refused(package: ModuleType) -> None:
    package.other = replace(package.KINDS_TASK, name="pocket_med")
    with pytest.raises(UserError, match="task 'pocket_med': found two of this name"):
        named_tasks()
    made = Section("training", 1, "Again"), ScoreTable(arms_table), ScoreTable(arms_table)
    vars(figure_files()[-1]).update(zip("abc", made, strict=True))
    with pytest.raises(UserError, match="section 'training': found two of this name"):
        all_sections()
    with pytest.raises(UserError, match="table 'arms_table': found two of this name"):
        study_tables(StudyView(*ordinary_study()))
