"""Tables as Markdown, CSV and LaTeX: golden texts written by hand, and text that must stay text."""

import csv
import io
import re

import pandas as pd
import pytest
from report_studies import ATTACKS, HOSTILE, hostile_study, ordinary_study

from rankscope.formatting import markdown_text
from rankscope.report.study_view import StudyView
from rankscope.report.table_formats import (
    FORMATS,
    comma_separated,
    frame_rows,
    html_table,
    latex,
    latex_text,
    markdown,
    table_from_rows,
)
from rankscope.report.tables import study_tables

SMALL = table_from_rows(
    [
        {"arm": "r=8 lr=0.001", "gain, %": 3.14159, "p": 0.03571, "note": "a_b & 50 %"},
        {"arm": "full | x", "gain, %": -0.25, "p": None, "note": "=1+1"},
    ],
    {"gain, %": 1, "p": 3},
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
    '<table>\n<thead><tr><th scope="col">arm</th><th scope="col" class="n">gain, %</th>'
    '<th scope="col" class="n">p</th><th scope="col">note</th></tr></thead>\n<tbody>\n'
    '<tr><td>r=8 lr=0.001</td><td class="n" data-v="3.14159">3.1</td>'
    '<td class="n" data-v="0.03571">0.036</td><td>a_b &amp; 50 %</td></tr>\n'
    '<tr><td>full | x</td><td class="n" data-v="-0.25">\N{MINUS SIGN}0.2</td>'
    '<td class="n">\N{EN DASH}</td><td>=1+1</td></tr>\n</tbody>\n</table>'
)


def test_a_small_table_as_it_was_written_by_hand() -> None:
    assert markdown(SMALL) == MARKDOWN
    assert comma_separated(SMALL) == CSV
    assert latex(SMALL) == LATEX
    assert html_table(SMALL) == HTML
    frame = pd.read_parquet(io.BytesIO(FORMATS["parquet"](SMALL)))
    assert frame_rows(frame) == frame_rows(SMALL)


def test_a_value_and_its_interval_are_one_column_but_in_csv() -> None:
    rows = [("a", 3.14, -1.0, 7.25, 12), ("b", 2.0, None, None, 1), ("c", None, None, None, 0)]
    titles = ("arm", "gain", "gain, low", "gain, high", "n")
    made = table_from_rows(
        [dict(zip(titles, row, strict=True)) for row in rows], dict.fromkeys(titles[1:4], 1)
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
    made = table_from_rows([{"n": value} for value in numbers], {"n": 1})
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


def assert_inert(made: pd.DataFrame) -> None:
    """A line for every row, a cell for every column, and no mark-up but the table's own."""
    head, _, *lines = markdown(made).splitlines()
    assert len(lines) == len(made)
    for line in lines:
        plain = line.replace("| **", "| ").replace("** |", " |")  # the best of a column
        assert unescaped(plain.replace("| ", " ").replace(" |", " "), "<>|`[]*$") == []
        assert unescaped(line, "|") == unescaped(head, "|")
    body = latex(made).partition("\\midrule\n")[2].partition("\\bottomrule")[0]
    assert len(body.splitlines()) == len(made)
    assert len({len(unescaped(line, "&")) for line in body.splitlines()}) == 1
    macros = set(re.findall(r"\\[a-zA-Z]+", body))
    assert macros <= {r"\textless", r"\textgreater", r"\textbackslash", r"\ldots",
                      r"\textbar", r"\textbf"}  # fmt: skip
    _, *rows = csv.reader(io.StringIO(comma_separated(made), newline=""))
    assert [len(row) for row in rows] == [len(made.columns)] * len(made)
    texts = [
        cell
        for row, values in zip(rows, frame_rows(made), strict=True)
        for cell, value in zip(row, values, strict=True)
        if isinstance(value, str)
    ]
    assert all(cell[:1] not in ("=", "+", "-", "@", "\t", "\r") for cell in texts)
    for text in (markdown(made), latex(made), comma_separated(made)):
        assert "\u202e" not in text
        assert "\x00" not in text


def test_files_hold_an_answer_whole() -> None:
    answer = " ".join(f"sentence {i}." for i in range(250))
    made = table_from_rows([{"answer": answer}])
    assert len(answer) > 3000
    for text in (markdown(made), latex(made), comma_separated(made)):
        assert answer in text


def test_hostile_text_stays_text_in_every_format() -> None:
    assert_inert(table_from_rows([{"x": attack} for attack in ATTACKS]))


def test_main_tables_hold_the_arms_figures() -> None:
    study, advice = ordinary_study()
    tables = study_tables(StudyView(study, advice))
    assert [name for name, table in tables.items() if len(table)] == [
        *("paper", "arms", "changes", "comparisons", "answers", "tasks", "training", "failed"),
    ]
    everything = [arm for task in advice.advice for arm in task.arms]
    trained = tables["arms"][tables["arms"]["arm"] != "base"]
    assert list(trained["arm"]) == [arm.label for arm in everything]
    assert list(trained["gain"]) == [arm.gain.value for arm in everything if arm.gain is not None]
    # Seven arms of two tasks, each tested on both, on math and on general.
    assert len(tables["changes"]) == 7 * 2 * 4
    assert list(tables["changes"]["role"]).count("retention") == 14
    assert len(tables["comparisons"]) == sum(len(t.comparisons) for t in advice.advice)


def test_main_tables_of_a_hostile_study_stay_text() -> None:
    for made in study_tables(StudyView(*hostile_study())).values():
        if len(made):
            assert HOSTILE[:20] in made.to_csv()
            assert_inert(made)
