"""What the summary, tables and counts look like on a terminal."""

import io
import re
from dataclasses import replace
from pathlib import Path

from command_line import rankscope as command
from large_shapes import LLAMA_8B
from report_studies import ordinary_study, study_and_advice
from rich.console import Console
from rich.table import Table
from synthetic_study import Truth

from rankscope.cli.render.summary import summary_table
from rankscope.cli.render.table import terminal_table
from rankscope.records import Status


def printed(table: Table, width: int = 140) -> list[str]:
    output = io.StringIO()
    Console(file=output, width=width, color_system=None).print(table)
    return output.getvalue().splitlines()


def test_summary_has_the_base_first_every_arm_and_one_mark_per_task() -> None:
    study, advice = ordinary_study()
    lines = printed(summary_table(study, advice))
    text = "\n".join(lines)
    arms = [arm for task in advice.advice for arm in task.arms]
    rows = [line for line in lines if "lr=" in line]
    assert len(rows) == len(arms)
    assert text.index("base") < text.index("r=2 lr=")
    marked = [line for line in rows if "▸" in line]
    assert len(marked) == len([a for a in advice.advice if a.chosen])
    assert all(
        a.chosen.label in line for a, line in zip(advice.advice, marked, strict=True) if a.chosen
    )
    failed = [line for line in rows if "2/3" in line]
    assert len(failed) == 2
    assert all("r=32 lr=0.003" in line for line in failed)


def test_summary_writes_points_and_half_widths() -> None:
    study, advice = ordinary_study()
    arm = next(a for a in advice.advice[0].arms if a.seeds == 3)
    net = arm.net_gain
    row = next(line for line in printed(summary_table(study, advice)) if arm.label in line)
    assert f"{100 * net.value:+.1f} ±{50 * (net.high - net.low):.1f}" in row
    assert f"{arm.trainable_parameters:,}" in row


def test_summary_fits_eighty_columns_with_whole_arm_names() -> None:
    study, advice = ordinary_study()
    lines = printed(summary_table(study, advice), width=80)
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for task in advice.advice:
        for arm in task.arms:
            assert arm.label in text
    assert "…" not in text
    heading = next(line for line in lines if "arm" in line)
    assert heading.split() == ["arm", *"seeds in-domain retention net gain params time".split()]
    rows = [line for line in lines if "lr=" in line]
    assert all(re.search(r"\d:\d\d\s*$", line) for line in rows)


def test_summary_of_an_adaptive_study_says_why_arms_have_no_test_score() -> None:
    """An arm that ran out of memory has none for another reason than the arms that were stopped."""

    def caption(status: Status, strategy: str) -> str:
        truth = Truth(num_items=20, seeds=(0,), failed={(2, 1e-3, 0): status})
        study, advice = study_and_advice(truth)
        config = study.config.model_copy(update={"strategy": strategy})
        return str(summary_table(replace(study, config=config), advice).caption)

    assert caption("stopped", "adaptive").endswith(
        "not scored on test items, as only finalists are"
    )
    for status, strategy in (("stopped", "grid"), ("oom", "grid"), ("oom", "adaptive")):
        assert caption(status, strategy).endswith("\N{EN DASH} not scored on test items")
    assert "not scored" not in str(summary_table(*study_and_advice(Truth(num_items=20))).caption)


def test_a_terminal_table_blanks_repeated_names_and_keeps_numbers_whole() -> None:
    rows = [("a", "x", 1234.5, "1 MB"), ("a", "y", None, "22 MB"), ("b", "[red]z", 0.12345, "")]
    titles = ("task", "arm", "value", "size")
    cells = [dict(zip(titles, row, strict=True)) for row in rows]
    table = terminal_table(cells, "[b]t", right=("size",), sections=("task",))
    output = io.StringIO()
    Console(file=output, width=40, color_system=None).print(table)
    lines = [line.rstrip() for line in output.getvalue().splitlines()]
    assert lines == [
        "[b]t",
        "",
        " task arm    value  size",
        " \N{BOX DRAWINGS LIGHT HORIZONTAL}" + "\N{BOX DRAWINGS LIGHT HORIZONTAL}" * 22,
        " a    x      1,234  1 MB",
        "      y          \N{EN DASH} 22 MB",
        "",
        " b    [red]z 0.123",
        "",
    ]


def test_of_many_rows_the_first_are_shown_and_the_others_counted() -> None:
    table = terminal_table([{"n": i} for i in range(1201)], "many")
    assert table.row_count == 200
    assert str(table.caption) == "and 1,001 more; --json lists all"


def test_the_published_counts_of_llama(tmp_path: Path) -> None:
    """The figures that arXiv 2512.15634's setting implies, as a reader would look them up."""
    LLAMA_8B.save_pretrained(tmp_path)
    shown = command("params", tmp_path).out
    for count in ("6,815,744", "27,262,976", "54,525,952", "109,051,904", "8,030,261,248"):
        assert count in shown
