"""The tables of a study, and their formats: golden texts, and text that stays text."""

import csv
import io
import re
from dataclasses import replace

import pandas as pd
import pytest
from report_studies import ATTACKS, HOSTILE, hostile_study, ordinary_study, study_and_advice
from synthetic_study import Truth

from rankscope.formatting import POINTS, Unit, markdown_text
from rankscope.records import RoundRecord
from rankscope.report.columns import Column
from rankscope.report.study_view import StudyView
from rankscope.report.table_formats import (
    FORMATS,
    frame_rows,
    html_table,
    markdown,
    shown,
    table,
)
from rankscope.report.tables import (
    arms_table,
    failed_trials_table,
    paper_table,
    rounds_table,
    study_tables,
    tasks_table,
    training_table,
)


def test_failures_contamination_and_rows_are_listed(view: StudyView) -> None:
    failed = frame_rows(failed_trials_table(view))
    assert [row[0] for row in failed] == ["med r=32 lr=0.003 seed=1", "law r=32 lr=0.003 seed=1"]
    assert all(row[1:3] == ("diverged", "simulated: diverged at step 7") for row in failed)
    leaked = StudyView(*study_and_advice(Truth(num_items=20, seeds=(0,), contamination=2)))
    tasks = tasks_table(leaked).set_index("task")
    assert tuple(tasks.loc["med", ["contamination_exact", "test_rows"]]) == (2, 20)
    assert tasks.loc["general", "role"] == "retention"
    trained = training_table(view).set_index("training_task")
    assert (trained.dtypes == "Int64").all()
    assert tuple(trained.loc["med"].iloc[:2]) == (20, 200)


def test_overflows_are_listed_of_a_base_in_float16() -> None:
    study, advice = ordinary_study()
    assert "loss_scale_halvings" not in training_table(StudyView(study, advice))
    first, *others = study.trials
    assert first.train is not None
    train = first.train.model_copy(update={"loss_scale_halvings": 3})
    model = study.model.model_copy(update={"dtype": "float16"})
    study = replace(study, model=model, trials=(replace(first, train=train), *others))
    row = training_table(StudyView(study, advice)).set_index("training_task").loc["med"]
    assert tuple(row.iloc[-2:]) == (0, 3)
    assert [*row.index[-2:]] == ["loss_scale_halvings_smallest", "loss_scale_halvings_largest"]


def test_the_path_of_a_search_has_what_was_trained_and_is_in_points() -> None:
    """A round that the budget cut has what it began; one of which nothing began is left out."""
    study, advice = ordinary_study()
    first, second, *others = study.trials
    second = replace(second, status="skipped")
    specs = (first.spec, second.spec)
    common = {"task": "med", "seconds": 90.0, "leader": "r=8", "regret": 0.031, "after": 0.004}
    rounds = [
        RoundRecord(
            number=number,
            trial_ids=tuple(spec.trial_id for spec in of),
            labels=tuple(spec.label for spec in of),
            **common,
        )
        for number, of in enumerate([specs, specs[1:]], start=1)
    ]
    study = replace(study, trials=(first, second, *others), rounds=tuple(rounds))
    table = rounds_table(StudyView(study, advice))
    assert list(table["regret"]) == [0.031]
    row = (1, "med", 1.5, "r=8", 3.1, 0.4, "points", first.spec.label)
    assert frame_rows(shown(table)) == [row]


def test_the_paper_table_has_a_row_per_rank_and_a_column_per_task(view: StudyView) -> None:
    made = paper_table(view).set_index("arm")
    assert list(made.index) == ["base", "r=2", "r=8", "r=32", "full"]
    assert list(made.columns)[::3] == ["med_score", "law_score"]
    for task in view.training_tasks:
        for arm in view.candidates(task):
            assert made.loc[arm.label.split()[0], f"{task}_score"] == arm.score.value


def test_with_one_task_it_shows_what_was_retained() -> None:
    view = StudyView(*study_and_advice(Truth(ranks=(2, 8), num_items=40)))
    row, arm = paper_table(view).set_index("arm").loc["r=8"], view.arms("med")[1]
    kept = (-arm.forgetting.value, arm.trainable_parameters)
    assert tuple(row[["retention_change", "parameters"]]) == kept


def test_the_best_as_shown_is_bold_ties_included() -> None:
    rows = [
        {"arm": "base", "x": 3.0, "y": None, "y_low": None, "y_high": None},
        {"arm": "a", "x": 90.54, "y": 1.26, "y_low": 1.0, "y_high": 2.0},
        {"arm": "b", "x": 90.51, "y": 1.31, "y_low": 1.0, "y_high": 2.0},
    ]
    made = table(rows, dict.fromkeys(("x", "y"), Column(digits=1)), ["x", "y"])
    assert markdown(made).splitlines()[2:] == [
        "| base | 3.0 | \N{EN DASH} |",
        "| a | **90.5** | **1.3 \\[1.0, 2.0\\]** |",
        "| b | **90.5** | **1.3 \\[1.0, 2.0\\]** |",
    ]
    assert r"b & \textbf{90.5} & \textbf{1.3 {[}1.0, 2.0]} \\" in FORMATS["tex"](made).decode()


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


def test_the_table_of_arms_begins_with_the_base_and_says_yes_to_programs_by_true(
    view: StudyView,
) -> None:
    frame, advice = arms_table(view), view.recommendation
    base = frame[frame["arm"] == "base"]
    scores = {task.task: advice.base[task.task].value for task in advice.advice}
    assert dict(zip(base["task"], base["score"], strict=True)) == scores
    assert list(frame[frame["recommended"]]["arm"]) == [t.chosen.label for t in advice.advice]
    assert frame.to_parquet()  # pandas stores how people read the columns, too
    assert frame["recommended"].dtype == bool


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
    read = shown(table([{"x_largest": 0.5}], {"x_largest": Column("most", POINTS)}))
    assert read.to_dict("records") == [{"most": 50}]


SMALL = table(
    [
        {"arm": "r=8 lr=0.001", "gain, %": 3.14159, "p": 0.03571, "note": "a_b & 50 %"},
        {"arm": "full | x", "gain, %": -0.25, "p": None, "note": "=1+1"},
    ],
    {"gain, %": Column(digits=1), "p": Column(digits=3)},
)

MARKDOWN = """\
| arm | gain, % | p | note |
| --- | ---: | ---: | --- |
| r=8 lr=0.001 | 3.1 | 0.036 | a_b \\& 50 % |
| full \\| x | \N{MINUS SIGN}0.2 | \N{EN DASH} | =1+1 |
"""
# The exact digits of both numbers; the formula as text; RFC 4180 ends lines with CR LF.
CSV = (
    'arm,"gain, %",p,note\r\nr=8 lr=0.001,3.14159,0.03571,a_b & 50 %\r\nfull | x,-0.25,,\'=1+1\r\n'
)
LATEX = r"""% \usepackage{booktabs}
\begin{tabular}{lrrl}
\toprule
arm & gain, \% & p & note \\
\midrule
r=8 lr=0.001 & 3.1 & 0.036 & a\_b \& 50 \% \\
full \textbar{} x & $-$0.2 & -- & =1+1 \\
\bottomrule
\end{tabular}
"""
HTML = (
    '<table>\n<thead><tr><th scope="col" data-v="arm">configuration</th>'
    '<th scope="col" class="n">gain, %</th>'
    '<th scope="col" class="n">p</th><th scope="col">note</th></tr></thead>\n<tbody>\n'
    '<tr><td>r=8 lr=0.001</td><td class="n" data-v="3.14159">3.1</td>'
    '<td class="n" data-v="0.03571">0.036</td><td>a_b &amp; 50 %</td></tr>\n'
    '<tr><td>full | x</td><td class="n" data-v="-0.25">\N{MINUS SIGN}0.2</td>'
    '<td class="n">\N{EN DASH}</td><td>=1+1</td></tr>\n</tbody>\n</table>'
)


def test_a_small_table_as_it_was_written_by_hand() -> None:
    assert markdown(SMALL) == MARKDOWN
    assert FORMATS["csv"](SMALL).decode() == CSV
    assert FORMATS["tex"](SMALL).decode() == LATEX
    assert html_table(SMALL) == HTML
    frame = pd.read_parquet(io.BytesIO(FORMATS["parquet"](SMALL)))
    assert frame_rows(frame) == frame_rows(SMALL)


def test_a_value_and_its_interval_are_one_column_but_in_csv() -> None:
    rows = [("a", 3.14, -1.0, 7.25, 12), ("b", 2.0, None, None, 1), ("c", None, None, None, 0)]
    titles = ("arm", "gain", "gain_low", "gain_high", "n")
    named = [dict(zip(titles, row, strict=True)) for row in rows]
    made = table(named, {"gain": Column(digits=1)})
    assert markdown(made) == (
        "| arm | gain \\[95 %\\] | n |\n| --- | --- | ---: |\n"
        "| a | 3.1 \\[\N{MINUS SIGN}1.0, 7.2\\] | 12 |\n| b | 2.0 | 1 |\n"
        "| c | \N{EN DASH} | 0 |\n"
    )
    assert r"a & 3.1 {[}$-$1.0, 7.2] & 12 \\" in FORMATS["tex"](made).decode()
    assert FORMATS["csv"](made).decode().splitlines() == [
        "arm,gain,gain_low,gain_high,n",
        "a,3.14,-1.0,7.25,12",
        "b,2.0,,,1",
        "c,,,,0",
    ]


def test_frames_that_a_user_changes_or_reads_back_are_read_by_their_names() -> None:
    rows = [{"gain": 0.5, "gain_low": 0.25, "gain_high": 0.75, "score_unit": "accuracy"}]
    made = table(rows, {"gain": Column("lead", unit_from="score_unit", digits=1)}, ["gain"])
    assert list(shown(made.assign(z=1))) == [*shown(made), "z"]
    assert "| **50.0** | 75.0 |" in markdown(made.drop(columns="gain_low"))
    with pytest.raises(KeyError, match="score_unit"):
        shown(made.drop(columns="score_unit"))
    read = pd.read_parquet(io.BytesIO(FORMATS["parquet"](made)))
    assert "| gain \\[95 %\\] | score unit |" in markdown(read)


def test_csv_reads_back_with_every_digit() -> None:
    numbers = (1 / 3, -1e-12, 12345678901234567890, 0)
    made = table([{"n": value} for value in numbers], {"n": Column(digits=1)})
    _, *rows = csv.reader(io.StringIO(FORMATS["csv"](made).decode(), newline=""))
    assert [float(row[0]) for row in rows] == [float(value) for value in numbers]


@pytest.mark.parametrize(
    ("text", "markdown_", "latex_"),
    [
        ("pocket_med", "pocket_med", r"pocket\_med"),
        ("_x_", r"\_x\_", r"\_x\_"),
        (r"\input{x}", r"\\input{x}", r"\textbackslash{}input\{x\}"),
        ("a|b\n|c", r"a\|b \|c", r"a\textbar{}b \textbar{}c"),
        ("<b>*x*</b>", r"\<b\>\*x\*\</b\>",
         r"\textless{}b\textgreater{}{*}x{*}\textless{}/b\textgreater{}"),
        ("[1pt] \"", '\\[1pt\\] "', "{[}1pt] ''"),
        ("$1^2~3#4--5", r"\$1^2\~3#4--5", r"\$1\textasciicircum{}2\textasciitilde{}3\#4{-}{-}5"),
    ],
)  # fmt: skip
def test_characters_that_mean_something_are_escaped(text: str, markdown_: str, latex_: str) -> None:
    assert markdown_text(text) == markdown_
    assert f"\n{latex_} " in FORMATS["tex"](table([{"x": text}])).decode()


def unescaped(text: str, special: str) -> list[str]:
    """Special characters of ``text`` without a backslash before them."""
    return [c for c in re.sub(r"\\.", "", text) if c in special]


def assert_inert(made: pd.DataFrame) -> None:
    """A line for every row, a cell for every column, and no mark-up but the table's own."""
    head, _, *lines = markdown(made).splitlines()
    assert len(lines) == len(made)
    for line in lines:
        plain = line.replace("| **", "| ").replace("** |", " |")  # the best of a column
        assert unescaped(plain.replace("| ", " ").replace(" |", " "), "<>|`[]*$") == []
        assert unescaped(line, "|") == unescaped(head, "|")
    body = FORMATS["tex"](made).decode().partition("\\midrule\n")[2].partition("\\bottomrule")[0]
    assert len(body.splitlines()) == len(made)
    assert len({len(unescaped(line, "&")) for line in body.splitlines()}) == 1
    macros = set(re.findall(r"\\[a-zA-Z]+", body))
    assert macros <= {r"\textless", r"\textgreater", r"\textbackslash", r"\ldots",
                      r"\textbar", r"\textbf"}  # fmt: skip
    _, *rows = csv.reader(io.StringIO(FORMATS["csv"](made).decode(), newline=""))
    assert [len(row) for row in rows] == [len(made.columns)] * len(made)
    texts = [
        cell
        for row, values in zip(rows, frame_rows(made), strict=True)
        for cell, value in zip(row, values, strict=True)
        if isinstance(value, str)
    ]
    assert all(cell[:1] not in ("=", "+", "-", "@", "\t", "\r") for cell in texts)
    for text in (markdown(made), FORMATS["tex"](made).decode(), FORMATS["csv"](made).decode()):
        assert not {"\u202e", "\x00"} & {*text}


def test_files_hold_an_answer_whole() -> None:
    answer = " ".join(f"sentence {i}." for i in range(250))
    made = table([{"answer": answer}])
    assert len(answer) > 3000
    written = [markdown(made), *(FORMATS[name](made).decode() for name in ("tex", "csv"))]
    assert all(answer in text for text in written)


def test_hostile_text_stays_text_in_every_format() -> None:
    assert_inert(table([{"x": attack} for attack in ATTACKS]))


def test_main_tables_of_a_hostile_study_stay_text() -> None:
    for made in study_tables(StudyView(*hostile_study())).values():
        if len(made):
            assert HOSTILE[:20] in made.to_csv()
            assert_inert(made)
