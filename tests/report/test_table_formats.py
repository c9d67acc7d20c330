"""Tables as Markdown, CSV and LaTeX: golden texts written by hand, and text that must stay text."""

import csv
import io
import re

import pytest

from rankscope.formatting import markdown_text
from rankscope.report.charts.figure import Column, DataTable, table
from rankscope.report.main_tables import main_tables
from rankscope.report.study_view import StudyView
from rankscope.report.table_formats import comma_separated, latex, latex_text, markdown

from .studies import ATTACKS, HOSTILE, hostile_study, ordinary_study

SMALL = table(
    [Column("arm"), Column("gain, %", 1), Column("p", 3), Column("note")],
    [
        ("r=8 lr=0.001", 3.14159, 0.03571, "a_b & 50 %"),
        ("full | x", -0.25, None, "=1+1"),
    ],
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


def test_a_small_table_as_it_was_written_by_hand() -> None:
    assert markdown(SMALL) == MARKDOWN
    assert comma_separated(SMALL) == CSV
    assert latex(SMALL) == LATEX


def test_a_value_and_its_interval_are_one_column_but_in_csv() -> None:
    titles = ("gain", "gain, low", "gain, high")
    made = table(
        [Column("arm"), *(Column(t, 1) for t in titles), Column("n", 0)],
        [("a", 3.14, -1.0, 7.25, 12), ("b", 2.0, None, None, 1), ("c", None, None, None, 0)],
    )
    assert markdown(made) == (
        "| arm | gain \\[95 %\\] | n |\n| --- | --- | ---: |\n"
        "| a | 3.1 \\[\N{MINUS SIGN}1.0, 7.2\\] | 12 |\n| b | 2.0 | 1 |\n"
        "| c | \N{EN DASH} | 0 |\n"
    )
    assert r"a & 3.1 {[}$-$1.0, 7.2] & 12 \\" in latex(made)
    assert comma_separated(made).splitlines() == [
        'arm,gain,"gain, low","gain, high",n',
        "a,3.14,-1.0,7.25,12",
        "b,2.0,,,1",
        "c,,,,0",
    ]


def test_csv_reads_back_with_every_digit() -> None:
    numbers = (1 / 3, -1e-12, 12345678901234567890, 0)
    made = table([Column("n", 1)], [(value,) for value in numbers])
    _, *rows = csv.reader(io.StringIO(comma_separated(made), newline=""))
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
    assert latex_text(text) == latex_


def unescaped(text: str, special: str) -> list[str]:
    """Special characters of ``text`` without a backslash before them."""
    return [c for c in re.sub(r"\\.", "", text) if c in special]


def assert_inert(made: DataTable) -> None:
    """A line for every row, a cell for every column, and no mark-up but the table's own."""
    head, _, *lines = markdown(made).splitlines()
    assert len(lines) == len(made.rows)
    for line in lines:
        assert unescaped(line.replace("| ", " ").replace(" |", " "), "<>|`[]*$") == []
        assert unescaped(line, "|") == unescaped(head, "|")
    body = latex(made).partition("\\midrule\n")[2].partition("\\bottomrule")[0]
    assert len(body.splitlines()) == len(made.rows)
    assert len({len(unescaped(line, "&")) for line in body.splitlines()}) == 1
    macros = set(re.findall(r"\\[a-zA-Z]+", body))
    assert macros <= {r"\textless", r"\textgreater", r"\textbackslash", r"\ldots",
                      r"\textbar"}  # fmt: skip
    _, *rows = csv.reader(io.StringIO(comma_separated(made), newline=""))
    assert [len(row) for row in rows] == [len(made.columns)] * len(made.rows)
    texts = [
        cell
        for row, values in zip(rows, made.rows, strict=True)
        for cell, value in zip(row, values, strict=True)
        if isinstance(value, str)
    ]
    assert all(cell[:1] not in ("=", "+", "-", "@", "\t", "\r") for cell in texts)
    for text in (markdown(made), latex(made), comma_separated(made)):
        assert "\u202e" not in text
        assert "\x00" not in text


def test_files_hold_an_answer_whole() -> None:
    answer = " ".join(f"sentence {i}." for i in range(250))
    made = table([Column("answer")], [(answer,)])
    assert len(answer) > 3000
    for text in (markdown(made), latex(made), comma_separated(made)):
        assert answer in text


def test_hostile_text_stays_text_in_every_format() -> None:
    assert_inert(table([Column("x")], [(attack,) for attack in ATTACKS]))


def cells(made: DataTable, key: str) -> list[object]:
    place = [c.title for c in made.columns].index(key)
    return [row[place] for row in made.rows]


def test_main_tables_hold_the_arms_figures() -> None:
    study, advice = ordinary_study()
    found = main_tables(StudyView(study, advice))
    assert list(found) == ["arms", "changes", "comparisons", "answers", "tasks", "training",
                           "failed"]  # fmt: skip
    everything = [arm for task in advice.advice for arm in task.arms]
    assert cells(found["arms"], "arm") == [arm.label for arm in everything]
    gains = [arm.gain for arm in everything]
    assert cells(found["arms"], "gain") == [100 * g.value for g in gains if g is not None]
    assert cells(found["arms"], "recommended").count("yes") == sum(
        task.chosen is not None for task in advice.advice
    )
    # Seven arms of two tasks, each tested on both, on math and on general.
    assert len(found["changes"].rows) == 7 * 2 * 4
    assert cells(found["changes"], "role").count("retention") == 14
    assert len(found["comparisons"].rows) == sum(len(t.comparisons) for t in advice.advice)


def test_main_tables_of_a_hostile_study_stay_text() -> None:
    for made in main_tables(StudyView(*hostile_study())).values():
        assert any(isinstance(v, str) and HOSTILE[:20] in v for row in made.rows for v in row)
        assert_inert(made)
