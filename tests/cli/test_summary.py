"""The summary that ``run`` and ``report`` print."""

import io
import re
from dataclasses import replace

from report_studies import ordinary_study, study_and_advice
from rich.console import Console
from rich.table import Table
from synthetic_study import Truth

from rankscope.cli.render.summary import summary_table
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
