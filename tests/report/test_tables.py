"""The tables of a study."""

from report_studies import ordinary_study

from rankscope.report.study_view import StudyView
from rankscope.report.table_formats import frame_rows
from rankscope.report.tables import failed_trials_table, tasks_table, training_table


def test_failures_contamination_and_rows_are_listed() -> None:
    view = StudyView(*ordinary_study())
    failed = frame_rows(failed_trials_table(view))
    assert [row[0] for row in failed] == ["med r=32 lr=0.003 seed=1", "law r=32 lr=0.003 seed=1"]
    assert all(row[1:3] == ("diverged", "simulated: diverged at step 7") for row in failed)
    tasks = tasks_table(view).set_index("task")
    assert tasks.loc["med", "contamination, exact"] == 2
    assert tasks.loc["general", "role"] == "retention"
    assert tasks.loc["med", "test rows"] == 60
    trained = training_table(view).set_index("training task")
    assert (trained.dtypes == "Int64").all()
    assert tuple(trained.loc["med"].iloc[:2]) == (20, 200)
