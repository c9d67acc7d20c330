"""The tables of a study."""

from dataclasses import replace

import pytest
from report_studies import ordinary_study, study_and_advice
from synthetic_study import Truth

from rankscope.formatting import POINTS, Unit
from rankscope.records import StopRecord
from rankscope.report.columns import Column, shown_rows
from rankscope.report.study_view import StudyView
from rankscope.report.table_formats import (
    frame_rows,
    latex,
    markdown,
    shown,
    table,
    table_from_rows,
)
from rankscope.report.tables import (
    arms_table,
    failed_trials_table,
    paper_table,
    stopped_trials_table,
    tasks_table,
    training_table,
)


def test_failures_contamination_and_rows_are_listed(view: StudyView) -> None:
    failed = frame_rows(failed_trials_table(view))
    assert [row[0] for row in failed] == ["med r=32 lr=0.003 seed=1", "law r=32 lr=0.003 seed=1"]
    assert all(row[1:3] == ("diverged", "simulated: diverged at step 7") for row in failed)
    tasks = tasks_table(view).set_index("task")
    assert tasks.loc["med", "contamination_exact"] == 2
    assert tasks.loc["general", "role"] == "retention"
    assert tasks.loc["med", "test_rows"] == 60
    trained = training_table(view).set_index("training_task")
    assert (trained.dtypes == "Int64").all()
    assert tuple(trained.loc["med"].iloc[:2]) == (20, 200)


def test_differences_at_a_rung_are_in_points() -> None:
    study, advice = ordinary_study()
    first, *others = study.trials
    stop = StopRecord(
        trial_id=first.spec.trial_id,
        num_steps=80,
        reason="outranked",
        rival="r=8",
        difference=0.0,
        low=-0.39,
        high=None,
        projected_difference=-0.125,
        train=first.train,
    )
    study = replace(study, trials=(replace(first, status="stopped", stop=stop), *others))
    (row,) = frame_rows(shown(stopped_trials_table(StudyView(study, advice))))
    assert row[1:] == (40, 80, "outranked", "r=8", 0.0, -39.0, None, -12.5, "points")


def test_the_paper_table_has_a_row_per_rank_and_a_column_per_task() -> None:
    study, advice = ordinary_study()
    table = paper_table(StudyView(study, advice)).set_index("arm")
    assert list(table.index) == ["base", "r=2", "r=8", "r=32", "full"]
    assert list(table.columns)[::3] == ["med_score", "law_score"]
    for task in advice.advice:
        chosen = {a.label: a for a in task.arms if a.label in task.candidate_labels}
        assert len(chosen) == 4  # two learning rates for each rank, one for full fine-tuning
        for label, arm in chosen.items():
            assert table.loc[label.split()[0], f"{task.task}_score"] == arm.score.value


def test_with_one_task_it_shows_what_was_retained() -> None:
    study, advice = study_and_advice(Truth(ranks=(2, 8), num_items=40))
    table = paper_table(StudyView(study, advice)).set_index("arm")
    arms = {a.label.split()[0]: a for a in advice.advice[0].arms}
    forgetting = arms["r=8"].forgetting
    assert table.loc["r=8", "retention_change"] == -forgetting.value
    assert table.loc["r=8", "parameters"] == arms["r=8"].trainable_parameters


def test_the_best_as_shown_is_bold_ties_included() -> None:
    rows = [
        {"arm": "base", "x": 3.0, "y": None, "y, low": None, "y, high": None},
        {"arm": "a", "x": 90.54, "y": 1.26, "y, low": 1.0, "y, high": 2.0},
        {"arm": "b", "x": 90.51, "y": 1.31, "y, low": 1.0, "y, high": 2.0},
    ]
    table = table_from_rows(rows, {"x": 1, "y": 1, "y, low": 1, "y, high": 1}, ["x", "y"])
    assert markdown(table).splitlines()[2:] == [
        "| base | 3.0 | \N{EN DASH} |",
        "| a | **90.5** | **1.3 \\[1.0, 2.0\\]** |",
        "| b | **90.5** | **1.3 \\[1.0, 2.0\\]** |",
    ]
    assert r"b & \textbf{90.5} & \textbf{1.3 {[}1.0, 2.0]} \\" in latex(table)


def test_programs_get_names_and_plain_numbers_and_people_titles_and_units() -> None:
    columns = {
        "gain": Column("gain over base", unit_from="score_unit", digits=2),
        "bytes": Column("memory, MB", Unit(1e-6, "MB", "MB", 0)),
        "score_unit": Column("unit", words={"accuracy": "points"}),
    }
    ends = {"gain_low": -0.5, "gain_high": None}
    made = table(
        [
            {"task": "a", "gain": 0.125, **ends, "bytes": 2_000_000, "score_unit": "accuracy"},
            {"task": "b", "gain": 0.125, **ends, "bytes": None, "score_unit": "log_probability"},
        ],
        columns,
    )
    titles = ["task", "gain over base", "gain over base, low", "gain over base, high"]
    read = shown(made)
    assert list(read.columns) == [*titles, "memory, MB", "unit"]
    assert frame_rows(read)[0] == ("a", 12.5, -50.0, None, 2.0, "points")
    assert frame_rows(read)[1] == ("b", 0.125, -0.5, None, None, "log_probability")
    assert list(made["gain"]) == [0.125, 0.125]
    assert markdown(made).splitlines()[2] == "| a | 12.50 | 2 | points |"


def test_the_table_of_arms_begins_with_the_base_and_says_yes_to_programs_by_true() -> None:
    study, advice = ordinary_study()
    frame = arms_table(StudyView(study, advice))
    assert [(r["task"], r["score"]) for _, r in frame[frame["arm"] == "base"].iterrows()] == [
        (task.task, advice.base[task.task].value) for task in advice.advice
    ]
    chosen = [task.chosen.label for task in advice.advice if task.chosen]
    assert list(frame[frame["recommended"]]["arm"]) == chosen
    assert frame["recommended"].dtype == bool
    assert {"lr", "gain_low", "p_holm", "peak_memory_bytes", "score_unit"} <= set(frame.columns)


def test_wide_tables_print_sizes_and_p_values_that_can_be_read() -> None:
    table = arms_table(StudyView(*ordinary_study()))
    text = markdown(table)
    assert "\\<0.001" in text
    assert " 0.0000 " not in text


@pytest.mark.parametrize(
    "tasks", [("arm",), ("parameters",), ("retention_change",), ("x_largest",), ("law", "law_low")]
)
def test_a_task_may_be_called_like_a_column_or_like_the_end_of_one(tasks: tuple[str, ...]) -> None:
    study, advice = study_and_advice(Truth(ranks=(8,), full_lrs=(), num_items=40, tasks=tasks))
    made = paper_table(StudyView(study, advice))
    assert list(made["arm"]) == ["base", "r=8"]
    for task in tasks:
        score = advice.base[task].value
        assert made[f"{task}_score"][0] == score
        assert shown(made)[f"{task}, %"][0] == 100 * score
    if len(tasks) == 1:
        assert made["parameters"][1] == advice.advice[0].arms[0].trainable_parameters
    read, _ = shown_rows([{"x_largest": 0.5}], {"x_largest": Column("most", POINTS)})
    assert read == [{"most": 50}]
