"""The table of the answer's chart: expected net gains, and probabilities within the margin."""

from rankscope.formatting import join_names, percent
from rankscope.report.charts.figure import Figure
from rankscope.report.columns import Column
from rankscope.report.figures import in_section
from rankscope.report.study_view import StudyView
from rankscope.report.table_formats import shown, table
from rankscope.report.tables import STUDY_COLUMNS, arm_row

_COLUMNS = (
    *("arm", "rank", "lr", "expected_net_gain", "expected_net_gain_low", "expected_net_gain_high"),
    *("p_within_margin", "p_better", "p_best", "expected_regret"),
)


@in_section("ranks", 5)
def draw_expected_gain(view: StudyView, task: str) -> Figure | None:
    """Return the table; None if no arm was scored, or all exceed the limit on forgetting."""
    unit = view.net_unit(task)
    gain, regret = (f"expected {name}, {unit.difference}" for name in ("net gain", "regret"))
    units = {"expected_net_gain": Column(gain, unit), "expected_regret": Column(regret, unit)}
    rows = [arm_row(view, arm) for arm in view.candidates(task)]
    if not rows:
        return None
    return Figure(
        key=view.key("expected-gain", task),
        title=f"Expected net gain of every configuration at its best rate, {task}",
        finding=_finding(view, task),
        data=shown(table([{n: row[n] for n in _COLUMNS} for row in rows], STUDY_COLUMNS | units)),
    )


def _finding(view: StudyView, task: str) -> str:
    full = view.best_full(task)
    ranks = [f"r={r.rank} ({percent(r.p)})" for r in view.advice(task).ranks_that_may_do]
    text = "No rank is likely among the best."
    if not any(arm.rank for arm in view.candidates(task)):  # Imported scores may not tell it
        arms = [(a.label, a.expected) for a in view.candidates(task)]
        likely = [f"{label} {percent(of.p_within_margin)}" for label, of in arms if of]
        return f"Likely among the best: {join_names(likely, 12)}."
    if ranks:
        text = f"Ranks that may be among the best: {join_names(ranks, 12)}."
    if full and full.expected:
        text += f" Full fine-tuning: {percent(full.expected.p_within_margin)}."
    for row in view.advice(task).rows:
        name, of = row.arm.label, row.arm.expected
        if "prompt" in row.roles and of:
            text += f" {name[0].upper()}{name[1:]}: {percent(of.p_within_margin)}."
    return text
